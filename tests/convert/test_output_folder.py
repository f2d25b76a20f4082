"""The output folder: its lock, leftovers of killed processes, free space."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import SPARE_BYTES, lock_folder
from edge.convert.targets import list_artefacts
from edge.errors import EdgeError
from tests.support.conversions import check, make
from tests.support.tiny import CONFIGS, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def tiny(tmp_path):
    return write_checkpoint(tmp_path / "tiny", CONFIGS["stable-code"])


def popen(*words, **pipes):
    command = [sys.executable, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, **pipes)


def test_a_second_converter_waits_and_keeps_what_the_first_made(tiny, tmp_path):
    out = tmp_path / "out"
    with lock_folder(out, pytest.fail):
        words = ("edge", "convert", tiny, "--out", out, "-o", "json", "--to", "mlx-int4")
        process = popen("-m", *words, stderr=subprocess.PIPE)
        said = process.stderr.readline()
        assert f"another process is converting to {out}; waiting for it to finish." in said
        (elsewhere,) = make(tiny, tmp_path / "elsewhere", "mlx-int4")
        shutil.move(elsewhere.path, out)
    answer, _ = process.communicate(timeout=60)
    assert (process.returncode, json.loads(answer)[0]["kept"]) == (0, True)
    assert check(out / "mlx-int4", tiny).problems == ()


def test_a_killed_process_releases_the_lock_though_its_child_lives(tmp_path):
    code = (
        "import sys, pathlib, subprocess; from edge.convert.convert import lock_folder\n"
        "with lock_folder(pathlib.Path(sys.argv[1]), print):\n"
        "    subprocess.Popen([sys.executable, '-c', 'input()'], stdout=subprocess.DEVNULL)\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = popen("-c", code, tmp_path / "out", stdin=subprocess.PIPE)
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock_folder(tmp_path / "out", pytest.fail):  # it would be told of waiting
        pass
    holder.communicate()


def test_leftovers_are_removed_and_other_files_stay(tmp_path):
    out = tmp_path / "out"
    ours = [".mlx-mixed_2_6.partial-12", ".mlx-int4.old-9"]
    others = [
        *("mlx-int4", "notes.txt", ".notes.partial-1", "mlx-int4.partial-3"),
        *(".mlx-int4.partial-x", ".mlx-int4.partial-3.bak", ".mlx-int4.new-3"),
    ]
    for name in (*ours, *others):
        (out / name).mkdir(parents=True)
        (out / name / "file").write_text(name)
    (out / ".gguf-q6_k.gguf.partial-7").write_text("a file")
    precious = tmp_path / "precious"
    precious.mkdir()
    (out / ".mlx-int8.partial-5").symlink_to(precious)
    with lock_folder(out, pytest.fail):
        assert sorted(p.name for p in out.iterdir()) == sorted(others)
    assert precious.exists()


def test_a_directory_between_its_two_renames_is_put_back(tiny, tmp_path):
    out = tmp_path / "out"
    make(tiny, out, "mlx-int4")
    (out / "mlx-int4").rename(out / ".mlx-int4.old-99")
    (out / ".mlx-int4.partial-99").mkdir()
    assert make(tiny, out, "mlx-int4")[0].kept
    assert [p.name for p in out.iterdir()] == ["mlx-int4"]
    assert check(out / "mlx-int4", tiny).problems == ()


def test_a_disk_too_small_is_found_before_anything_is_written(tiny, tmp_path, monkeypatch):
    out = tmp_path / "out"
    make(tiny, out, "mlx-int8")
    sizes = {a.artefact: a.weight_bytes for a in list_artefacts(open_checkpoint(str(tiny)))}
    # gguf-q8_0 is made of a float16 file, which must have room for a while.
    needed = sizes["mlx-int4"] + sizes["gguf-q8_0"] + sizes["gguf-f16"]
    free = [needed + SPARE_BYTES - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, free[0]))
    with pytest.raises(EdgeError, match=r"needs .* MB and the disk of") as refused:
        make(tiny, out, "mlx-int4", "gguf-q8_0", "mlx-int8")
    assert [path.name for path in out.iterdir()] == ["mlx-int8"]
    shown = [float(mb.replace(",", "")) for mb in re.findall(r"([\d,.]+) MB", str(refused.value))]
    assert shown[1] > shown[2]
    free[0] += 1
    make(tiny, out, "mlx-int4", "gguf-q8_0", "mlx-int8")
