"""MLX on a Linux CPU: OpenBLAS, the private folder for compiled code, and the fallbacks."""

import fcntl
import json
import os
import subprocess
import sys

import pytest

from edge.linux_cpu import KEEP_BLAS
from tests.support.profiles import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="edge changes MLX on Linux only")

# Runs one compiled function and prints the state.
STATE = """
import json, os, tempfile
from edge import linux_cpu
from edge.model.stablelm import PerHeadLayerNorm
import mlx.core as mx
mx.eval(PerHeadLayerNorm(1, 8, 1e-5)(mx.ones((1, 1, 1, 8))))
print(json.dumps({
    "fast": linux_cpu.uses_openblas(), "blas": linux_cpu.blas(), "problems": linux_cpu.problems(),
    "temporary": tempfile.gettempdir(), "tmpdir": os.environ.get("TMPDIR"),
    "timeout": os.environ.get("OPENBLAS_THREAD_TIMEOUT"),
    "child": linux_cpu.child_environment().get("TMPDIR"),
}))
"""


def start(cache, before="import edge, numpy", after="", **environment):
    return subprocess.Popen(
        [sys.executable, "-P", "-c", f"{before}\n{STATE}\n{after}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
    )


def result(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err == "", err
    return json.loads(out)


def state(*args, **environment):
    return result(start(*args, **environment))


def files(cache, pattern):
    return sorted(path.name for path in cache.rglob(pattern))


@pytest.mark.parametrize("tmpdir", ["/tmp", None])
@pytest.mark.parametrize("first", ["numpy", "mlx.core"])
def test_openblas_is_used_whatever_is_imported_first(first, tmpdir, tmp_path, monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
    seen = state(tmp_path, f"import edge, {first}", **({"TMPDIR": tmpdir} if tmpdir else {}))
    assert seen["fast"] and seen["blas"].startswith("OpenBLAS 0.") and seen["problems"] == []
    assert seen["tmpdir"].startswith(str(tmp_path)) and seen["timeout"] is None
    assert seen["temporary"] == "/tmp" and seen["child"] == tmpdir  # unchanged for all others


def test_libraries_are_compiled_once_and_only_loaded_ones_are_kept(tmp_path):
    incomplete = "import pathlib; pathlib.Path(os.environ['TMPDIR'], 'half.so').write_text('half')"
    processes = [start(tmp_path, after=incomplete) for _ in range(3)]
    assert all(result(process)["fast"] for process in processes)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*.so")}
    assert len(files(tmp_path, "cpu_blas-*.so")) == 1 and len(before) > 1
    assert state(tmp_path, PATH=str(tmp_path))["fast"]  # no compiler
    state(tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*.so")} == before
    assert files(tmp_path, "process-*") == files(tmp_path, "half.so") == []


def test_folders_of_dead_processes_are_removed(tmp_path):
    """A locked folder stays at any age, one without a lock for a day."""
    state(tmp_path)
    folder = next(tmp_path.joinpath("edge").iterdir())
    for name in ("process-old", "process-new", "process-dead", "process-alive"):
        (folder / name).mkdir()
    os.utime(folder / "process-old", (0, 0))
    (folder / "process-dead" / "lock").touch()
    with (folder / "process-alive" / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(folder / "process-alive", (0, 0))
        state(tmp_path)
    assert files(tmp_path, "process-*") == ["process-alive", "process-new"]


NO_BLAS = "MLX multiplies with the reference BLAS: "
FAILING_CC = "#!/bin/sh\necho 'no such flag' >&2\necho half >\"${10}\"\nexit 1\n"
NOEXEC = """import os
statvfs = os.statvfs
class Disk:
    def __init__(self, real): self.real = real
    def __getattr__(self, name): return getattr(self.real, name) | 8 * (name == 'f_flag')
os.statvfs = lambda path: Disk(statvfs(path))
"""


@pytest.mark.parametrize(
    ("code", "environment", "problems"),
    [
        ("", {"PATH": "{tmp}"}, ["there is no C compiler (cc); install gcc"]),
        ("", {"PATH": "{tmp}/bin:/usr/bin:/bin"}, ["cc failed (no such flag)"]),
        ("", {"PYTHONPATH": f"{{tmp}}:{ROOT}"}, ["this numpy does not carry an OpenBLAS"]),
        ("", {KEEP_BLAS: "1"}, []),
        ("import mlx.core\n", {}, ["MLX was imported before edge"]),
        (NOEXEC, {}, ["noexec", "noexec"]),
    ],
    ids=["no compiler", "failing compiler", "numpy", "kept", "too late", "noexec"],
)
def test_without_openblas_the_reason_is_reported(code, environment, problems, tmp_path):
    for name in ("bin", "numpy"):
        (tmp_path / name).mkdir()
    (tmp_path / "numpy" / "__init__.py").touch()
    (tmp_path / "bin" / "cc").write_text(FAILING_CC)
    (tmp_path / "bin" / "cc").chmod(0o755)
    environment = {name: value.format(tmp=tmp_path) for name, value in environment.items()}
    seen = state(cache := tmp_path / "cache", f"{code}import edge, mlx.core", **environment)
    assert not seen["fast"] and seen["blas"] == "the reference BLAS"
    assert all(words in problem for words, problem in zip(problems, seen["problems"], strict=True))
    assert all(problem.startswith(NO_BLAS) for problem in seen["problems"][:1])
    assert files(cache, "cpu_blas-*") == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder.write_text(""), "File exists"),
        (lambda folder: folder.symlink_to("/tmp"), "is not a folder of this user"),
        (lambda folder: folder.mkdir() or folder.chmod(0o777), "can be written to by others"),
    ],
    ids=["file", "link", "writable for all"],
)
def test_without_a_private_folder_nothing_is_compiled(make, words, tmp_path):
    make(tmp_path / "edge")
    blas, compiled = state(tmp_path)["problems"]
    assert blas.startswith(NO_BLAS) and words in blas
    assert compiled.startswith("MLX runs without compiled functions: ") and words in compiled


def test_libraries_planted_in_the_temporary_folder_are_not_loaded(tmp_path):
    state(tmp_path / "cache")
    kept, planted = next((tmp_path / "cache").rglob("kept")), tmp_path / "tmp"
    for library in kept.rglob("*.so"):
        (planted / library.relative_to(kept)).parent.mkdir(parents=True, exist_ok=True)
        (planted / library.relative_to(kept)).write_text("not a library")
    assert files(planted, "*.so")
    assert state(tmp_path / "new", TMPDIR=str(planted))["fast"]
    assert state(tmp_path / "new", TMPDIR=str(tmp_path / "missing"))["fast"]
