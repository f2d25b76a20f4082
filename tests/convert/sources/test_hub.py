"""Downloads from a real server on this machine, each by a process of its own.

huggingface_hub reads its environment when it is imported, so a process with HF_ENDPOINT and
HF_HOME set is what a user has.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from edge.convert.sources.find import split_revision
from edge.convert.sources.hub import choose_weights
from edge.errors import EdgeError
from tests.support.hub_server import commit_of, hub_server
from tests.support.tiny import PLAIN, write_checkpoint

ROOT = Path(__file__).resolve().parents[3]
NAME = "owner/name"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Each call's answer: the snapshot and its commit, or the one sentence.
DOWNLOADS = """
import json, sys
from edge.convert.sources import hub
from edge.errors import EdgeError
for repo, revision in json.loads(sys.argv[1]):
    try:
        path, commit = hub.download(repo, revision)
        assert hub.cached(repo, revision) == hub.cached(repo, commit) == path, hub.cached(repo)
        print(json.dumps([str(path), commit]))
    except EdgeError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def hub():
    with hub_server() as server:
        yield server


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", PLAIN)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def python(hub, home, *words, **more):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=home.parent,
        env={**inherited, "PYTHONPATH": str(ROOT), "NO_PROXY": "*", **settings, **more},
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def downloads(hub, home, *asked, **more):
    """What each of (repo, revision) came to."""
    done = python(hub, home, "-c", DOWNLOADS, json.dumps(asked), **more)
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [a if isinstance(a, str) else (Path(a[0]), a[1]) for a in answers]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([WEIGHTS, "model.fp16.safetensors", "consolidated.safetensors"], [WEIGHTS]),
        (["gptq_model-4bit-128g.safetensors", "x.bin"], ["gptq_model-4bit-128g.safetensors"]),
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


def test_from_the_hub_to_an_artefact(hub, home, tiny, tmp_path):
    extra = ("pytorch_model.bin", "modeling_evil.py", "picture.png", "model.fp16.safetensors")
    hub.add(NAME, tiny, **dict.fromkeys(extra, b"not wanted"))
    words = ("-m", "edge", "convert", NAME, "--to", "mlx-int4", "--out", tmp_path / "out")
    done = python(hub, home, *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "mlx-int4" / WEIGHTS).is_file()
    assert sorted(hub.fetched()) == sorted(path.name for path in tiny.iterdir())


def test_what_is_there_is_used_without_a_network(hub, home, tiny):
    hub.add(NAME, tiny)
    [(path, commit)] = downloads(hub, home, (NAME, None))
    hub.seen.clear()
    assert downloads(hub, home, (NAME, None), (NAME, commit)) == [(path, commit)] * 2
    assert hub.fetched() == []
    hub.seen.clear()
    asked = ((NAME, None), (NAME, "other"), ("o/n", None))
    there, other, missing = downloads(hub, home, *asked, HF_HUB_OFFLINE="1")
    assert there == (path, commit)
    assert f"{NAME} at revision other cannot be fetched" in other
    assert "HF_HUB_OFFLINE is set, and the cache holds no whole" in missing
    assert hub.seen == []
    hub.mute = True  # down, or no network: what is there is good enough
    there, missing = downloads(hub, home, (NAME, None), ("o/n", None))
    assert there == (path, commit)
    assert "o/n cannot be fetched from the hub" in missing


def test_each_refusal_says_what_to_do(hub, home, tiny):
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
        ("o/refused", None): "it answers with status 401); check",
        ("o/off", None): "it answers with status 403",
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
    answers = downloads(hub, home, *expected)
    for words, answer in zip(expected.values(), answers, strict=True):
        assert words in answer
    assert "GB free; make room or set HF_HOME" in answers[-1]
    assert WEIGHTS not in hub.fetched()


def test_shards_branches_and_broken_files(hub, home, tiny, tmp_path):
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
    broken, whole, branch, by_commit = downloads(hub, home, *asked)
    assert "should be of size 365632 but has size 182816" in broken
    assert "run the command again" in broken
    assert (whole[0] / WEIGHTS).read_bytes() == (tiny / WEIGHTS).read_bytes()
    assert by_commit == branch == (branch[0], commit)
    assert sorted(p.name for p in branch[0].glob("*.safetensors*")) == [*halves, INDEX]
    fetched = hub.fetched()
    assert (fetched.count(WEIGHTS), fetched.count("tokenizer.json")) == (2, 1)
    (branch[0] / "b.safetensors").resolve().unlink()  # the link to it stays
    [answer] = downloads(hub, home, (NAME, commit), HF_HUB_OFFLINE="1")
    assert "holds no whole checkpoint" in answer
    hub.add(NAME, other)  # the branch moves
    assert downloads(hub, home, (NAME, None)) == [branch]
    assert [hub.fetched().count(file) for file in halves] == [1, 2]
