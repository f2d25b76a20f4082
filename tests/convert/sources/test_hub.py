"""Downloads from a server on this machine into an empty cache."""

import json

import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from edge.convert.sources.find import split_revision
from edge.convert.sources.hub import cached, download
from edge.errors import EdgeError
from edge.formats.safetensors import INDEX
from tests.support.conversions import make
from tests.support.hub_server import commit_of, hub_server
from tests.support.tiny import PLAIN, write_checkpoint

NAME = "owner/name"
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        place = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + place)
        yield server


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", PLAIN)


def result(repo, revision=None):
    """Snapshot and commit, or the error's sentence."""
    try:
        path, commit = download(repo, revision)
    except EdgeError as error:
        return str(error)
    assert cached(repo, revision) == cached(repo, commit) == path
    return path, commit


def test_a_branch_after_a_colon_is_a_revision():
    assert split_revision("o/n:b", "b") == ("o/n", "b")
    assert split_revision("o/n:refs/pr/1") == ("o/n", "refs/pr/1")
    for model, words in (("o/n:a", "give only one"), ("o/n:", "no branch")):
        with pytest.raises(EdgeError, match=words):
            split_revision(model, "b")


def test_a_converted_checkpoint_is_downloaded_without_other_files(hub, tmp_path, tiny):
    extra = ("pytorch_model.bin", "modeling_evil.py", "picture.png", "model.fp16.safetensors")
    hub.add(NAME, tiny, **dict.fromkeys(extra, b"not wanted"))
    (made,) = make(NAME, tmp_path / "out", "mlx-int4")
    assert (made.path / WEIGHTS).is_file()
    assert sorted(hub.fetched()) == sorted(path.name for path in tiny.iterdir())


def test_a_cached_checkpoint_is_used_without_a_network(hub, monkeypatch, tiny):
    hub.add(NAME, tiny)
    path, commit = result(NAME)
    hub.seen.clear()
    assert result(NAME) == result(NAME, commit) == (path, commit)
    assert hub.fetched() == []
    hub.seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert result(NAME) == (path, commit)
        assert f"{NAME} cannot be downloaded" in result(NAME, "other")
        assert "HF_HUB_OFFLINE" in result("o/n")
    assert hub.seen == []
    hub.mute = True  # the server is down
    assert result(NAME) == (path, commit)
    assert "o/n cannot be downloaded" in result("o/n")


def test_each_refusal_names_its_remedy(hub, tiny):
    for name in ("gated", "refused", "bare", "pickled", "lying", "huge"):
        hub.add(f"o/{name}", tiny)
    files = {name.removeprefix("o/"): revisions["main"] for name, revisions in hub.repos.items()}
    hub.refusals = {"o/gated": (403, "GatedRepo"), "o/refused": (401, "BadToken")}
    del files["bare"][WEIGHTS], files["pickled"][WEIGHTS]
    files["pickled"]["pytorch_model.bin"] = b"x"
    files["lying"][INDEX] = json.dumps({"weight_map": {"a": "../b.safetensors"}}).encode()
    hub.sizes[f"o/huge/{WEIGHTS}"] = 10**18
    for repo, words in {
        "o/gated": f"accept its licence on {hub.address}/o/gated, then run 'hf auth login'",
        "o/refused": "(status 401): your token is missing, has expired or has no access",
        "o/none": "the hub has no o/none, or it is private",
        "o/bare": "o/bare at revision main holds no weights; choose",
        "o/pickled": "only pytorch_model.bin, a pickle, which can run any code",
        "o/lying": "points outside its directory",
        "o/huge": "o/huge needs 1,000,000,000,000.1 MB and the disk of",
    }.items():
        assert words in result(repo)
    assert f"choose one of those on {hub.address}/o/gated" in result("o/gated", "nope")
    assert "is not a revision" in result("o/gated", "../../x")
    assert WEIGHTS not in hub.fetched()


def test_shards_branches_and_moved_branches(hub, tmp_path, tiny):
    other = write_checkpoint(tmp_path / "other", PLAIN, seed=1)
    tensors = load_file(other / WEIGHTS)
    halves = {"a.safetensors": list(tensors)[:5], "b.safetensors": list(tensors)[5:]}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, other / file)
    weight_map = {name: file for file, names in halves.items() for name in names}
    (other / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    hub.add(NAME, tiny)
    hub.add(NAME, other, "gptq-4bit/32g")
    commit = commit_of(hub.repos[NAME]["gptq-4bit/32g"])
    main, branch = result(NAME), result(NAME, "gptq-4bit/32g")
    assert (main[0] / WEIGHTS).read_bytes() == (tiny / WEIGHTS).read_bytes()
    assert result(NAME, commit) == branch == (branch[0], commit)
    assert sorted(p.name for p in branch[0].glob("*.safetensors*")) == [*halves, INDEX]
    assert hub.fetched().count("tokenizer.json") == 1  # files of equal content are cached once
    (branch[0] / "b.safetensors").resolve().unlink()  # the link to it stays
    assert cached(NAME, commit) is None
    hub.add(NAME, other)  # the branch moves
    assert result(NAME) == branch
    assert [hub.fetched().count(file) for file in halves] == [1, 2]
