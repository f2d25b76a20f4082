"""One converter at a time in a folder, room on the disk, and nobody else's files touched."""

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from edge.convert import output_folder
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.convert.listing import list_artefacts
from edge.convert.output_folder import SPARE_BYTES, check_room, lock_folder
from edge.convert.targets import Options
from edge.convert.verify import verify
from edge.errors import EdgeError
from tests.support.tiny import CONFIGS, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", CONFIGS["stable-code"])


def run(path, out, *names, notice=lambda _: None, **options):
    recipes = [RECIPES[name] for name in names]
    checkpoint = open_checkpoint(str(path))
    return convert(checkpoint, recipes, out, lambda *_: None, Options(**options), notice)


def command(path, out, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "edge", "convert", path, "--out", out, "-o", "json", "--to", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def contents(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def whole(path, out):
    checkpoint = open_checkpoint(str(path))
    names = sorted(p.name for p in out.iterdir())
    assert [verify(out / n, checkpoint, lambda _: None).problems for n in names] == [()] * len(
        names
    )
    return names


# --- two at once


@pytest.mark.parametrize(
    ("first", "second", "force"),
    [
        (["mlx-int4", "gguf-f16"], ["mlx-int4", "gguf-f16"], False),
        (["mlx-int4", "gguf-f16"], ["mlx-int8", "gguf-q8_0"], False),
        (["mlx-int4", "gguf-f16"], ["mlx-int4", "gguf-f16"], True),
    ],
    ids=["the-same", "others", "the-same-forced"],
)
def test_two_converters_of_one_folder_both_succeed(tiny, tmp_path, first, second, force):
    out = tmp_path / "out"
    if force:
        run(tiny, out, *first)
    flags = ["--force"] if force else []
    both = [command(tiny, out, *names, *flags) for names in (first, second)]
    answers = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    names = {name if "mlx" in name else f"{name}.gguf" for name in (*first, *second)}
    assert set(whole(tiny, out)) == names
    kept = sorted(all(a["kept"] for a in json.loads(answer)) for answer, _ in answers)
    assert kept == ([False, True] if first == second and not force else [False, False])


def test_the_second_says_that_it_waits_and_looks_again_afterwards(tiny, tmp_path):
    out = tmp_path / "out"
    with lock_folder(out, pytest.fail):
        process = command(tiny, out, "mlx-int4")
        said = process.stderr.readline()
        assert f"another process is converting to {out}; waiting for it to finish." in said
        elsewhere = tmp_path / "elsewhere"  # what the first one makes meanwhile
        run(tiny, elsewhere, "mlx-int4")
        shutil.move(elsewhere / "mlx-int4", out)
    answer, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(answer)[0]["kept"]


def test_a_killed_holder_lets_go(tiny, tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys, pathlib; from edge.convert.output_folder import lock_folder\n"
        "with lock_folder(pathlib.Path(sys.argv[1]), print):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert holder.stdout.readline() == "held\n"
    waiter = command(tiny, out, "mlx-int4")
    assert "waiting" in waiter.stderr.readline()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    waiter.communicate(timeout=60)
    assert waiter.returncode == 0
    assert whole(tiny, out) == ["mlx-int4"]


def test_a_process_started_meanwhile_does_not_hold_the_folder(tmp_path):
    """A quantiser that outlives its parent for a moment must not keep others waiting."""
    out = tmp_path / "out"
    with lock_folder(out, pytest.fail):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with lock_folder(out, pytest.fail):
            assert child.poll() is None
    finally:
        child.communicate(b"\n")


# --- what a killed process left


def test_leftovers_are_cleared_and_nobody_elses_files(tmp_path):
    out = tmp_path / "out"
    ours = [".mlx-mixed_2_6.partial-12", ".gguf-q6_k.gguf.partial-7", ".mlx-int4.old-9"]
    others = [
        "mlx-int4",
        "notes.txt",
        ".notes.partial-1",
        "mlx-int4.partial-3",
        ".mlx-int4.partial-x",
        ".mlx-int4.partial-3.bak",
        ".mlx-int4.new-3",
    ]
    for name in (*ours, *others):
        (out / name).mkdir(parents=True)
        (out / name / "file").write_text(name)
    (out / ours[1] / "file").unlink()
    (out / ours[1]).rmdir()
    (out / ours[1]).write_text("a file this time")
    with lock_folder(out, pytest.fail):
        assert sorted(p.name for p in out.iterdir()) == sorted(others)


def test_what_was_taken_away_is_put_back_and_kept(tiny, tmp_path):
    """The state that a kill between a directory's two renames leaves."""
    out = tmp_path / "out"
    run(tiny, out, "mlx-int4")
    before = contents(out / "mlx-int4")
    (out / "mlx-int4").rename(out / ".mlx-int4.old-99")
    (out / ".mlx-int4.partial-99").mkdir()
    (made,) = run(tiny, out, "mlx-int4")
    assert made.kept
    assert [p.name for p in out.iterdir()] == ["mlx-int4"]
    assert contents(made.path) == before


def test_a_link_among_the_leftovers_is_removed_and_not_followed(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    out.mkdir()
    (out / ".mlx-int4.partial-5").symlink_to(elsewhere)
    with lock_folder(out, pytest.fail):
        assert list(out.iterdir()) == []
    assert (elsewhere / "precious").read_text() == "x"


# --- room


def test_too_small_a_disk_is_a_sentence_before_anything_is_written(tiny, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(tiny, out, "mlx-int8")
    before = contents(out)
    sizes = {a.recipe.name: a.weight_bytes for a in list_artefacts(open_checkpoint(str(tiny)))}
    # gguf-q8_0 is made of a float16 file, which must have room for a while.
    needed = sizes["mlx-int4"] + sizes["gguf-q8_0"] + sizes["gguf-f16"]
    free = [needed + SPARE_BYTES - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, free[0]))
    with pytest.raises(EdgeError) as error:
        run(tiny, out, "mlx-int4", "gguf-q8_0", "mlx-int8")
    sentence = str(error.value)
    assert f"{out} needs" in sentence
    assert f"{needed / 1e9:.2f} GB" in sentence
    assert f"{free[0] / 1e9:.2f} GB free" in sentence
    assert contents(out) == before
    assert sorted(p.name for p in out.iterdir()) == ["mlx-int8"]
    free[0] += 1
    run(tiny, out, "mlx-int4", "gguf-q8_0", "mlx-int8")


def test_a_published_model_asks_for_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 4_000_000_000))
    with pytest.raises(EdgeError, match=r"needs 5\.59 GB and its disk has 4\.00 GB free"):
        run("synthetic:stable-code-3b", tmp_path / "out", "mlx-fp16")
    assert list((tmp_path / "out").iterdir()) == []


def test_room_is_asked_of_the_disk_that_the_folder_is_on(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path, 0 if free > SPARE_BYTES else -SPARE_BYTES)
    with pytest.raises(EdgeError, match="choose another --out"):
        check_room(tmp_path, free + 10**12)


# --- the source's own place


def test_a_source_is_never_replaced_by_what_is_made_of_it(tiny, tmp_path):
    out = tmp_path / "out"
    mlx, gguf = run(tiny, out, "mlx-int4", "gguf-q8_0")
    before = contents(out)
    for source in (mlx, gguf):
        name = source.recipe.name
        with pytest.raises(EdgeError, match=r"is the source itself; choose another --out"):
            run(source.path, out, name, force=True)
    assert contents(out) == before


def test_a_volume_without_locks_is_one_sentence(monkeypatch, tmp_path):
    """As some network volumes of macOS are."""

    def refuse(descriptor, operation):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(output_folder.fcntl, "flock", refuse)
    with (
        pytest.raises(EdgeError, match=r"cannot be locked .*; choose another --out, on a local"),
        lock_folder(tmp_path / "out", print),
    ):
        pass
