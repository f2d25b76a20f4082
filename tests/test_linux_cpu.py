"""MLX on a Linux CPU: the fast BLAS, the private folder, and what happens without them."""

import fcntl
import json
import os
import subprocess
import sys

import pytest

from edge.linux_cpu import KEEP_BLAS
from tests.support.profiles import ROOT

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="MLX has another BLAS and another compiler elsewhere"
)

# One of the network's compiled functions runs, and what there is to know is printed.
LOOK = """
import json, os, tempfile
from edge import linux_cpu
from edge.model.stablelm import PerHeadLayerNorm
import mlx.core as mx
mx.eval(PerHeadLayerNorm(1, 8, 1e-5)(mx.ones((1, 1, 1, 8))))
print(json.dumps({
    "fast": linux_cpu.uses_openblas(), "blas": linux_cpu.blas(), "problems": linux_cpu.problems(),
    "temporary": tempfile.gettempdir(), "compiled_in": os.environ.get("TMPDIR"),
    "timeout": os.environ.get("OPENBLAS_THREAD_TIMEOUT"),
}))
"""


def start(code, cache, **environment):
    """A process with a cache of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
    )


def found(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err == "", err
    return json.loads(out)


def look(cache, first="import numpy", **environment):
    return found(start(f"import edge\n{first}\n{LOOK}", cache, **environment))


def files(cache, pattern):
    return sorted(path.name for path in cache.rglob(pattern))


@pytest.mark.parametrize("first", ["import numpy", "import mlx.core"])
def test_mlx_multiplies_with_openblas_whatever_is_imported_first(first, tmp_path):
    seen = look(tmp_path, first, TMPDIR="/tmp")
    assert seen["fast"] and seen["blas"].startswith("OpenBLAS 0.") and seen["problems"] == []
    assert seen["temporary"] == "/tmp"  # Python's own files stay there
    assert seen["compiled_in"].startswith(str(tmp_path)) and seen["timeout"] is None


def test_all_is_compiled_once_and_only_what_was_loaded_is_kept(tmp_path):
    code = "import pathlib; pathlib.Path(os.environ['TMPDIR'], 'half.so').write_text('half')"
    processes = [start(f"import edge\n{LOOK}\n{code}", tmp_path) for _ in range(3)]
    assert all(found(process)["fast"] for process in processes)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*.so")}
    assert len(files(tmp_path, "cpu_blas-*.so")) == 1 and len(before) > 1
    no_compiler = {"PATH": str(tmp_path)}  # MLX asks whether there is a g++, and gives up without
    assert look(tmp_path, **no_compiler)["fast"]
    look(tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*.so")} == before
    assert files(tmp_path, "process-*") == files(tmp_path, "half.so") == []


def test_what_a_killed_process_left_is_removed(tmp_path):
    """One that runs keeps its folder, however old; one that has no lock yet is given a day."""
    look(tmp_path)
    folder = next(tmp_path.joinpath("edge").iterdir())
    for name, age_s in (("process-old", 90_000), ("process-new", 0), ("process-dead", 0)):
        (folder / name).mkdir()
        then = folder.stat().st_mtime - age_s
        os.utime(folder / name, (then, then))
    (folder / "process-dead" / "lock").touch()
    (folder / "process-lives").mkdir()
    with (folder / "process-lives" / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(folder / "process-lives", (0, 0))
        look(tmp_path)
    assert files(tmp_path, "process-*") == ["process-lives", "process-new"]


def test_programs_that_we_start_have_the_old_temporary_folder(tmp_path, monkeypatch):
    code = "import edge, json, mlx.core\nfrom edge.linux_cpu import child_environment"
    code += "\nprint(json.dumps(child_environment().get('TMPDIR')))"
    assert found(start(code, tmp_path, TMPDIR="/tmp")) == "/tmp"
    monkeypatch.delenv("TMPDIR", raising=False)
    assert found(start(code, tmp_path)) is None


NO_BLAS = "MLX multiplies with the reference BLAS: "
FAILING_CC = "#!/bin/sh\necho 'no such flag' >&2\necho half >\"${10}\"\nexit 1\n"
NOEXEC = """import os
plain = os.statvfs
class Disk:
    def __init__(self, real): self.real = real
    def __getattr__(self, name): return getattr(self.real, name) | 8 * (name == 'f_flag')
os.statvfs = lambda path: Disk(plain(path))
"""


@pytest.mark.parametrize(
    ("code", "environment", "problems"),
    [
        ("", {"PATH": "{tmp}"}, ["there is no C compiler (cc); install gcc"]),
        ("", {"PATH": "{tmp}/bin:/usr/bin:/bin"}, ["cc failed (no such flag)"]),
        ("", {"PYTHONPATH": f"{{tmp}}:{ROOT}"}, ["this numpy does not carry an OpenBLAS"]),
        ("", {KEEP_BLAS: "1"}, []),
        ("import mlx.core\n", {}, ["MLX was imported before edge"]),
        (NOEXEC, {}, ["(noexec)", "(noexec)"]),
    ],
    ids=["no compiler", "failing compiler", "numpy", "kept", "too late", "noexec"],
)
def test_what_is_missing_is_told_and_mlx_keeps_its_blas(code, environment, problems, tmp_path):
    for name in ("bin", "numpy"):
        (tmp_path / name).mkdir()
    (tmp_path / "numpy" / "__init__.py").touch()
    (tmp_path / "bin" / "cc").write_text(FAILING_CC)
    (tmp_path / "bin" / "cc").chmod(0o755)
    environment = {name: value.format(tmp=tmp_path) for name, value in environment.items()}
    cache = tmp_path / "cache"
    seen = found(start(f"{code}import edge, mlx.core\n{LOOK}", cache, **environment))
    assert not seen["fast"] and seen["blas"] == "the reference BLAS"
    assert len(seen["problems"]) == len(problems)
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
    ids=["a file", "a link", "everybody's"],
)
def test_without_a_private_folder_nothing_is_compiled(make, words, tmp_path):
    make(tmp_path / "edge")
    seen = look(tmp_path)
    assert not seen["fast"]
    blas, compiled = seen["problems"]
    assert blas.startswith(NO_BLAS) and words in blas
    assert compiled.startswith("MLX runs without compiled functions: ") and words in compiled


def test_files_planted_in_the_temporary_folder_are_not_loaded(tmp_path):
    look(tmp_path / "cache")
    kept = next((tmp_path / "cache").rglob("kept"))
    planted = tmp_path / "tmp"
    for library in kept.rglob("*.so"):
        (planted / library.relative_to(kept)).parent.mkdir(parents=True, exist_ok=True)
        (planted / library.relative_to(kept)).write_text("no library")
    assert files(planted, "*.so")
    assert look(tmp_path / "new", TMPDIR=str(planted))["fast"]
    assert look(tmp_path / "new", TMPDIR=str(tmp_path / "not there"))["fast"]
