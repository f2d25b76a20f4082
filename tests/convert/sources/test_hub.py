"""Downloads from a real server on this machine, into a cache of their own."""

import errno
import json

import pytest
from huggingface_hub import constants, errors
from safetensors.numpy import load_file, save_file

from edge.convert.sources import hub as source
from edge.convert.sources.find import split_revision
from edge.convert.sources.hub import cached, choose_weights, download
from edge.errors import EdgeError
from tests.support.conversions import make
from tests.support.hub_server import commit_of, hub_server
from tests.support.tiny import PLAIN, write_checkpoint

NAME = "owner/name"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


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


def downloads(*asked):
    """The snapshot and commit, or the error's sentence, of each (repo, revision)."""
    answers = []
    for repo, revision in asked:
        try:
            path, commit = download(repo, revision)
            assert cached(repo, revision) == cached(repo, commit) == path
            answers.append((path, commit))
        except EdgeError as error:
            answers.append(str(error))
    return answers


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([WEIGHTS, "model.fp16.safetensors", "consolidated.safetensors"], [WEIGHTS]),
        (["a.safetensors", "a.fp16.safetensors"], ["a.safetensors"]),
        (["a-bf16.safetensors"], ["a-bf16.safetensors"]),
        (["onnx/model.safetensors", "model.gguf", "m.py"], []),
    ],
)
def test_only_the_weights_of_the_checkpoint_are_chosen(names, chosen):
    assert choose_weights(names) == chosen


def test_a_branch_after_a_colon_is_a_revision():
    assert split_revision("o/n") == ("o/n", None)
    assert split_revision("o/n", "b") == split_revision("o/n:b", "b") == ("o/n", "b")
    assert split_revision("o/n:refs/pr/1") == ("o/n", "refs/pr/1")
    for model, words in (("o/n:a", "give only one"), ("o/n:", "no branch")):
        with pytest.raises(EdgeError, match=words):
            split_revision(model, "b")


def test_from_the_hub_to_an_artefact(hub, tmp_path, tiny):
    extra = ("pytorch_model.bin", "modeling_evil.py", "picture.png", "model.fp16.safetensors")
    hub.add(NAME, tiny, **dict.fromkeys(extra, b"not wanted"))
    (made,) = make(NAME, tmp_path / "out", "mlx-int4")
    assert (made.path / WEIGHTS).is_file()
    assert sorted(hub.fetched()) == sorted(path.name for path in tiny.iterdir())


def test_what_is_there_is_used_without_a_network(hub, monkeypatch, tiny):
    hub.add(NAME, tiny)
    [(path, commit)] = downloads((NAME, None))
    hub.seen.clear()
    assert downloads((NAME, None), (NAME, commit)) == [(path, commit)] * 2
    assert hub.fetched() == []
    hub.seen.clear()
    asked = ((NAME, None), (NAME, "other"), ("o/n", None))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    there, other, missing = downloads(*asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert there == (path, commit)
    assert f"{NAME} at revision other cannot be fetched" in other
    assert "HF_HUB_OFFLINE is set, and the cache holds no whole" in missing
    assert hub.seen == []
    hub.mute = True  # down, or no network: what is there is good enough
    there, missing = downloads((NAME, None), ("o/n", None))
    assert there == (path, commit)
    assert "o/n cannot be fetched from the hub" in missing


def test_each_refusal_says_what_to_do(hub, tiny):
    for name in ("gated", "refused", "off", "bare", "pickled", "without", "lying", "huge"):
        hub.add(f"o/{name}", tiny)
    files = {name.removeprefix("o/"): revisions["main"] for name, revisions in hub.repos.items()}
    hub.refusals["o/gated"] = (403, "GatedRepo")
    hub.refusals["o/refused"] = (401, "BadToken")
    hub.refusals["o/off"] = (403, "Disabled")
    del files["bare"][WEIGHTS], files["pickled"][WEIGHTS], files["without"]["config.json"]
    files["pickled"]["pytorch_model.bin"] = b"x"
    files["lying"][INDEX] = json.dumps({"weight_map": {"a": "../b.safetensors"}}).encode()
    hub.sizes[f"o/huge/{WEIGHTS}"] = 10**18
    expected = {
        ("o/gated", None): f"accept its licence on {hub.address}/o/gated, then run 'hf auth login'",
        ("o/refused", None): "(status 401): your token is missing, has expired or has no access",
        ("o/off", None): "(status 403): your token",
        ("o/none", None): "the hub has no o/none, or it is private",
        ("o/no--ne", None): "the hub has no o/no--ne",
        ("o/gated", "nope"): f"no revision 'nope'; choose one of those on {hub.address}/o/gated",
        ("o/gated", "../../x"): "is not a revision",
        ("o/bare", None): "holds no *.safetensors at revision main; choose",
        ("o/pickled", None): "pickles (pytorch_model.bin), which can run any code",
        ("o/without", None): "holds no config.json",
        ("o/lying", None): "points outside its directory",
        ("o/huge", None): "o/huge needs 1000000000.0 GB more, and the disk of",
    }
    answers = downloads(*expected)
    for words, answer in zip(expected.values(), answers, strict=True):
        assert words in answer
    assert "GB free; make room or set HF_HOME" in answers[-1]
    assert WEIGHTS not in hub.fetched()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), r"cannot be written .*No space left.*; make room"),
        (PermissionError(errno.EACCES, "x"), r"cannot be written .*Permission denied\); change"),
        (RuntimeError("x: No space left on device (os error 28)"), "cannot be written .* room"),
        (errors.LocalEntryNotFoundError("no network"), r"\(no network\); check the network"),
        (ValueError("\n"), r"\(ValueError\); check the network"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_cause_of_a_failed_download_is_named(monkeypatch, error, words, wrapped):
    def fail(*_):
        if not wrapped:
            raise error
        raise errors.LocalEntryNotFoundError("x") from error

    monkeypatch.setattr(source, "_ask", fail)
    monkeypatch.setattr(source, "cached", lambda *_: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(EdgeError, match=words):
        source.download(NAME)


def test_shards_branches_and_broken_files(hub, monkeypatch, tmp_path, tiny):
    other = write_checkpoint(tmp_path / "other", PLAIN, seed=1)
    tensors = load_file(other / WEIGHTS)
    halves = {"a.safetensors": list(tensors)[:5], "b.safetensors": list(tensors)[5:]}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, other / file)
    weight_map = {name: file for file, names in halves.items() for name in names}
    (other / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    hub.add(NAME, tiny)
    hub.add(NAME, other, "gptq-4bit/32g")
    hub.halves.add(WEIGHTS)
    commit = commit_of(hub.repos[NAME]["gptq-4bit/32g"])
    asked = ((NAME, None), (NAME, None), (NAME, "gptq-4bit/32g"), (NAME, commit))
    broken, whole, branch, by_commit = downloads(*asked)
    assert "should be of size 365632 but has size 182816" in broken
    assert "run the command again" in broken
    assert (whole[0] / WEIGHTS).read_bytes() == (tiny / WEIGHTS).read_bytes()
    assert by_commit == branch == (branch[0], commit)
    assert sorted(p.name for p in branch[0].glob("*.safetensors*")) == [*halves, INDEX]
    fetched = hub.fetched()
    assert (fetched.count(WEIGHTS), fetched.count("tokenizer.json")) == (2, 1)
    (branch[0] / "b.safetensors").resolve().unlink()  # the link to it stays
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        [answer] = downloads((NAME, commit))
    assert "holds no whole checkpoint" in answer
    hub.add(NAME, other)  # the branch moves
    assert downloads((NAME, None)) == [branch]
    assert [hub.fetched().count(file) for file in halves] == [1, 2]
