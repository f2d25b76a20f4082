"""Downloads from a real server on this machine, each by a process of its own.

huggingface_hub reads its environment when it is imported, so a process with HF_ENDPOINT and
HF_HOME set is what a user has.
"""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from edge.checkpoints.sources.hub import choose_files, split_revision
from edge.checkpoints.sources.hub_transfer import WAITS_S
from edge.errors import EdgeError
from tests.support.hub_server import commit_of, hub_server, oid_of
from tests.support.tiny import PLAIN, write_checkpoint

ROOT = Path(__file__).resolve().parents[3]
NAME = "owner/name"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BREAK_AT = 100_000  # of some 360 kB
# Each call's answer: the snapshot and its commit, or the one sentence.
DOWNLOADS = """
import json, sys
from edge.checkpoints.sources import hub, hub_transfer
from edge.errors import EdgeError
hub.WAITS_S = hub_transfer.WAITS_S = json.loads(sys.argv[2])
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


def environment(hub, home, **more):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return {
        **inherited,
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "*",
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **more,
    }


def python(hub, home, *words, **more):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=home.parent,
        env=environment(hub, home, **more),
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def downloads(hub, home, *asked, waits_s=(0, 0, 0), **more):
    """What each of (repo, revision) came to, without waiting where the user would."""
    done = python(hub, home, "-c", DOWNLOADS, json.dumps(asked), json.dumps(waits_s), **more)
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [a if isinstance(a, str) else (Path(a[0]), a[1]) for a in answers]


def sentence(answer):
    assert isinstance(answer, str), answer
    assert "\n" not in answer
    assert answer.endswith(".")
    return answer


def weights(answer):
    return (answer[0] / WEIGHTS).read_bytes()


def ranges(hub, name=WEIGHTS):
    return [request.range for request in hub.asked_for(name)]


def partial(home, directory, repo="owner--name"):
    oid = oid_of(WEIGHTS, (directory / WEIGHTS).read_bytes())
    return home / "hub" / f"models--{repo}" / "blobs" / f"{oid}.incomplete"


# --- which files


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "model.fp16.safetensors", "consolidated.safetensors"], [WEIGHTS]),
        (["gptq_model-4bit-128g.safetensors", "x.bin"], ["gptq_model-4bit-128g.safetensors"]),
        (["a.safetensors", "a.fp16.safetensors"], ["a.safetensors"]),
        (["a-bf16.safetensors"], ["a-bf16.safetensors"]),
        (["onnx/model.safetensors", "model.gguf", "m.py", "a.png"], []),
        (
            [WEIGHTS, "tokenizer.json", "quantize_config.json", "config.json", "README.md"],
            ["config.json", "quantize_config.json", "tokenizer.json", WEIGHTS],
        ),
    ],
)
def test_only_what_the_checkpoint_consists_of(names, chosen):
    assert choose_files(names) == chosen


def test_with_an_index_exactly_its_shards():
    names = ["b.safetensors", "a.safetensors", WEIGHTS, INDEX]
    assert choose_files(names, ["a.safetensors"]) == [INDEX, "a.safetensors"]


@pytest.mark.parametrize(
    ("model", "revision", "expected"),
    [
        ("o/n", None, ("o/n", None)),
        ("o/n", "b", ("o/n", "b")),
        ("o/n:gptq-4bit-32g-actorder_True", None, ("o/n", "gptq-4bit-32g-actorder_True")),
        ("o/n:refs/pr/1", "refs/pr/1", ("o/n", "refs/pr/1")),
    ],
)
def test_a_branch_after_a_colon_is_a_revision(model, revision, expected):
    assert split_revision(model, revision) == expected


@pytest.mark.parametrize(
    ("model", "revision", "words"), [("o/n:a", "b", "give only one"), ("o/n:", None, "no branch")]
)
def test_a_revision_that_is_unclear(model, revision, words):
    with pytest.raises(EdgeError, match=words):
        split_revision(model, revision)


# --- what comes


def test_from_the_hub_to_an_artefact(hub, home, tiny, tmp_path):
    extra = ("pytorch_model.bin", "modeling_evil.py", "picture.png", "model.fp16.safetensors")
    hub.add(NAME, tiny, **dict.fromkeys(extra, b"not wanted"))
    words = ("-m", "edge", "convert", NAME, "--to", "mlx-int4", "--out", tmp_path / "out")
    done = python(hub, home, *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "mlx-int4" / WEIGHTS).is_file()
    assert hub.names() == {path.name for path in tiny.iterdir()}


def test_what_is_there_is_used_without_a_network_and_by_other_programs(hub, home, tiny):
    hub.add(NAME, tiny)
    [(path, commit)] = downloads(hub, home, (NAME, None))
    hub.seen.clear()
    assert downloads(hub, home, (NAME, None), (NAME, commit)) == [(path, commit)] * 2
    assert [s.path for s in hub.seen] == [f"/api/models/{NAME}/revision/main"]
    hub.seen.clear()
    others = (
        "from huggingface_hub import snapshot_download, hf_hub_download as one\n"
        f"print(snapshot_download({NAME!r}), one({NAME!r}, {WEIGHTS!r}), sep='\\n')"
    )
    found = python(hub, home, "-c", others, HF_HUB_OFFLINE="1").stdout.splitlines()
    assert found == [str(path), str(path / WEIGHTS)]
    offline = downloads(hub, home, (NAME, None), (NAME, "other"), ("o/n", None), HF_HUB_OFFLINE="1")
    assert offline[0] == (path, commit)
    assert "revision other" in sentence(offline[1])
    assert "the cache holds it only at revision main" in offline[1]
    assert "HF_HUB_OFFLINE is set, and the cache holds no whole" in sentence(offline[2])
    assert hub.seen == []
    hub.mute = True  # down, or no network: what is there is good enough
    assert downloads(hub, home, (NAME, None)) == [(path, commit)]
    assert len(hub.seen) == 1


def test_branches_and_commits(hub, home, tiny, tmp_path):
    other = write_checkpoint(tmp_path / "other", PLAIN, seed=1)
    hub.add(NAME, tiny)
    hub.add(NAME, other, "gptq-4bit/32g")
    commit = commit_of(hub.repos[NAME].revisions["gptq-4bit/32g"])
    answers = downloads(hub, home, (NAME, None), (NAME, "gptq-4bit/32g"), (NAME, commit))
    assert weights(answers[0]) == (tiny / WEIGHTS).read_bytes()
    assert weights(answers[1]) == (other / WEIGHTS).read_bytes()
    assert answers[2] == answers[1] == (answers[1][0], commit)
    assert len(hub.asked_for("config.json")) == 1  # the same file in both


def test_a_branch_that_moved_is_followed(hub, home, tiny, tmp_path):
    hub.add(NAME, tiny)
    [old] = downloads(hub, home, (NAME, None))
    hub.add(NAME, write_checkpoint(tmp_path / "new", PLAIN, seed=1))
    [new] = downloads(hub, home, (NAME, None))
    assert old[1] != new[1]
    assert weights(old) != weights(new)


def test_shards_come_as_the_index_names_them(hub, home, tiny):
    tensors = load_file(tiny / WEIGHTS)
    halves = {"a.safetensors": list(tensors)[:5], "b.safetensors": list(tensors)[5:]}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, tiny / file)
    weight_map = {name: file for file, names in halves.items() for name in names}
    (tiny / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    hub.add(NAME, tiny)
    [(path, _)] = downloads(hub, home, (NAME, None))
    assert sorted(p.name for p in path.glob("*.safetensors*")) == [*halves, INDEX]
    assert WEIGHTS not in hub.names()
    (path / "b.safetensors").resolve().unlink()  # the link to it stays
    [answer] = downloads(hub, home, (NAME, None), HF_HUB_OFFLINE="1")
    assert "holds no whole checkpoint" in sentence(answer)
    downloads(hub, home, (NAME, None))
    assert (path / "b.safetensors").read_bytes() == (tiny / "b.safetensors").read_bytes()
    assert [len(hub.asked_for(file)) for file in halves] == [1, 2]


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, home, tiny):
    hub.add(NAME, tiny)
    downloads(hub, home, (NAME, None), HF_TOKEN="hf_secret")
    sent = {("/content/" in request.path, request.token) for request in hub.seen}
    assert sent == {(False, "Bearer hf_secret"), (True, None)}


# --- what breaks off


def test_a_break_is_resumed_in_the_same_run(hub, home, tiny):
    hub.add(NAME, tiny)
    hub.break_at, hub.breaks, hub.stumbles = BREAK_AT, 1, [503]
    [answer] = downloads(hub, home, (NAME, None))
    assert weights(answer) == (tiny / WEIGHTS).read_bytes()
    assert ranges(hub) == [None, f"bytes={BREAK_AT}-"]


def test_the_next_run_resumes_where_the_last_one_gave_up(hub, home, tiny):
    hub.add(NAME, tiny)
    hub.break_at, hub.breaks = BREAK_AT, 1000
    [answer] = downloads(hub, home, (NAME, None), waits_s=WAITS_S)
    assert "broke off" in sentence(answer)
    assert "at 100.0 kB of 365.6 kB of model.safetensors" in answer
    assert "run the same command again to resume" in answer
    assert ranges(hub) == [None, *[f"bytes={BREAK_AT}-"] * 3]
    assert partial(home, tiny).stat().st_size == BREAK_AT
    hub.breaks = 0
    hub.seen.clear()
    [answer] = downloads(hub, home, (NAME, None))
    assert weights(answer) == (tiny / WEIGHTS).read_bytes()
    assert ranges(hub) == [f"bytes={BREAK_AT}-"]
    assert hub.names() == {WEIGHTS}  # the small files had come
    assert not partial(home, tiny).exists()


def test_old_partial_files(hub, home, tiny):
    """A right one saves its bytes; a damaged one is found out, and the next run starts anew."""
    content = (tiny / WEIGHTS).read_bytes()
    old = {"right": content[:1000], "wrong": b"x" * 1000, "long": content + b"x"}
    for name, start in old.items():
        hub.add(f"o/{name}", tiny)
        path = partial(home, tiny, f"o--{name}")
        path.parent.mkdir(parents=True)
        path.write_bytes(start)
    asked = [(f"o/{name}", None) for name in (*old, "wrong")]
    right, wrong, long, again = downloads(hub, home, *asked)
    assert weights(right) == weights(long) == weights(again) == content
    assert "its hash is" in sentence(wrong)
    assert ranges(hub) == ["bytes=1000-", "bytes=1000-", None, None]


def test_a_server_without_ranges_starts_again(hub, home, tiny):
    hub.add(NAME, tiny)
    hub.break_at, hub.breaks, hub.ignores_range = BREAK_AT, 1, True
    [answer] = downloads(hub, home, (NAME, None))
    assert weights(answer) == (tiny / WEIGHTS).read_bytes()


def test_a_server_that_never_answers_is_a_sentence(hub, home):
    hub.mute = True
    [answer] = downloads(hub, home, (NAME, None))
    assert f"{NAME} cannot be fetched from the hub" in sentence(answer)
    assert "the cache holds no whole checkpoint of it" in answer
    assert len(hub.seen) == 4


# --- what is refused

# What the listing says of a file that is not so: its size or its hash.
LIES = {
    "hash": {WEIGHTS: (None, "0" * 64)},
    "small": {"tokenizer.json": (None, "0" * 40)},
    "size": {WEIGHTS: (400_000, None)},
    "huge": {WEIGHTS: (10**18, None)},
}


def test_each_refusal_says_what_to_do(hub, home, tiny):
    for name in ("gated", "refused", "off", "bare", "pickled", "without", "lying", *LIES):
        hub.add(f"o/{name}", tiny)
    hub.repos["o/gated"].refusal = (403, "GatedRepo")
    hub.repos["o/refused"].refusal = (401, "BadToken")
    hub.repos["o/off"].refusal = (403, "Disabled")
    for name in ("bare", "pickled"):
        del hub.repos[f"o/{name}"].revisions["main"][WEIGHTS]
    hub.repos["o/pickled"].revisions["main"]["pytorch_model.bin"] = b"x"
    del hub.repos["o/without"].revisions["main"]["config.json"]
    stray = json.dumps({"weight_map": {"a": "../b.safetensors"}}).encode()
    hub.repos["o/lying"].revisions["main"][INDEX] = stray
    for name, lie in LIES.items():
        hub.repos[f"o/{name}"].lies = lie
    expected = {
        ("o/gated", None): f"accept its licence on {hub.address}/o/gated, then run 'hf auth login'",
        ("o/refused", None): "refuses your token for o/refused; run 'hf auth login'",
        ("o/off", None): "it answers with status 403",
        ("o/none", None): "the hub has no o/none, or it is private",
        ("o/no--ne", None): "the hub has no o/no--ne",
        ("o/gated", "nope"): f"no revision 'nope'; choose one of those on {hub.address}/o/gated",
        ("o/gated", "../../x"): "is no revision",
        ("o/bare", None): "holds no *.safetensors at revision main; choose",
        ("o/pickled", None): "(pytorch_model.bin), which are never opened because unpickling runs",
        ("o/without", None): "holds no config.json",
        ("o/lying", None): "names '../b.safetensors', which is no safetensors file",
        ("o/hash", None): "model.safetensors of o/hash is not what the hub announced (its hash is",
        ("o/small", None): "tokenizer.json of o/small is not what the hub announced (its hash is",
        ("o/size", None): "(365632 bytes, not 400000) and was thrown away; run the same command",
        ("o/huge", None): "o/huge needs 1000000000.0 GB more, and the disk of",
    }
    answers = downloads(hub, home, *expected)
    for words, answer in zip(expected.values(), answers, strict=True):
        assert words in sentence(answer)
    assert "GB free; make room or set HF_HOME" in answers[-1]
    touched = {request.path.split("/")[2] for request in hub.asked_for(WEIGHTS)}
    assert touched == {"hash", "size"}
    assert hub.asked_for("pytorch_model.bin") == []
    assert list(home.rglob("*.incomplete")) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up(hub, home, tiny):
    hub.add(NAME, tiny)
    path = partial(home, tiny)
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/full")
    [answer] = downloads(hub, home, (NAME, None))
    assert f"the disk of {home / 'hub'} filled up" in sentence(answer)


# --- what is shown


def test_progress_is_drawn_on_a_terminal_only(hub, home, tiny):
    hub.add(NAME, tiny)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-c", DOWNLOADS, json.dumps([(NAME, None)]), "[]"]
    subprocess.run(
        words, stdout=subprocess.DEVNULL, stderr=theirs, env=environment(hub, home), check=True
    )
    os.close(theirs)
    drawn = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert WEIGHTS in drawn  # `downloads` sees to it that a pipe gets nothing
    assert "365.6" in drawn
