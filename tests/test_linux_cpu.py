"""MLX on a Linux CPU: the fast BLAS, the private folder, and what happens without them."""

import fcntl
import json
import os
import subprocess
import sys
import sysconfig
import zipfile

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
from edge.model.stablelm import LayerNorm
import mlx.core as mx
mx.eval(LayerNorm(8)(mx.ones((1, 1, 8))))
print(json.dumps({
    "fast": linux_cpu.uses_openblas(), "blas": linux_cpu.blas(), "problems": linux_cpu.problems(),
    "temporary": tempfile.gettempdir(), "compiled_in": os.environ.get("TMPDIR"),
    "timeout": os.environ.get("OPENBLAS_THREAD_TIMEOUT"),
}))
"""


def start(code, cache, python=sys.executable, **environment):
    """A process with a cache of its own."""
    return subprocess.Popen(
        [python, "-P", "-c", code],
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


def test_all_is_compiled_once(tmp_path):
    look(tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*.so")}
    assert len(files(tmp_path, "cpu_blas-*.so")) == 1 and len(before) > 1
    no_compiler = {"PATH": str(tmp_path)}  # MLX asks whether there is a g++, and gives up without
    assert look(tmp_path, **no_compiler)["fast"]
    look(tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*.so")} == before
    assert files(tmp_path, "process-*") == []


def test_processes_that_start_at_once_share_one_library(tmp_path):
    processes = [start(f"import edge\n{LOOK}", tmp_path) for _ in range(4)]
    assert all(found(process)["fast"] for process in processes)
    assert len(files(tmp_path, "cpu_blas-*.so")) == 1 and files(tmp_path, "process-*") == []
    folder = next(tmp_path.joinpath("edge").iterdir())
    assert sorted(p.name.partition("-")[0] for p in folder.iterdir()) == ["cpu_blas", "kept"]


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


def test_what_was_not_loaded_is_not_kept(tmp_path):
    """A library that the compiler did not finish, say."""
    code = "import pathlib; pathlib.Path(os.environ['TMPDIR'], 'half.so').write_text('half')"
    found(start(f"import edge\n{LOOK}\n{code}", tmp_path))
    kept = files(tmp_path, "*.so")
    assert "half.so" not in kept and len(kept) > 1


def test_a_disk_without_hard_links_keeps_copies(tmp_path):
    code = "import pathlib\ndef no(*_): raise OSError('no links')\npathlib.Path.hardlink_to = no"
    seen = []
    for _ in range(2):
        found(start(f"{code}\nimport edge\n{LOOK}", tmp_path))
        seen.append({path: path.stat().st_ino for path in tmp_path.rglob("*.so")})
    assert seen[0] == seen[1] and len(seen[0]) > 1


def test_programs_that_we_start_have_the_old_temporary_folder(tmp_path, monkeypatch):
    code = "import edge, json, mlx.core\nfrom edge.linux_cpu import child_environment"
    code += "\nprint(json.dumps(child_environment().get('TMPDIR')))"
    assert found(start(code, tmp_path, TMPDIR="/tmp")) == "/tmp"
    monkeypatch.delenv("TMPDIR", raising=False)
    assert found(start(code, tmp_path)) is None


NO_BLAS = "MLX multiplies with the reference BLAS: "
FAILING_CC = "#!/bin/sh\necho 'no such flag' >&2\necho half >\"${10}\"\nexit 1\n"
HOMELESS = """import os, pwd
os.environ.pop('HOME'); os.environ.pop('XDG_CACHE_HOME')
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
"""
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
        ("", {"PATH": "{tmp}"}, [f"{NO_BLAS}there is no C compiler (cc); install gcc"]),
        ("", {"PATH": "{tmp}/bin:/usr/bin:/bin"}, [f"{NO_BLAS}cc failed (no such flag)"]),
        (
            "",
            {"PYTHONPATH": f"{{tmp}}:{ROOT}"},
            [f"{NO_BLAS}this numpy does not carry an OpenBLAS"],
        ),
        ("", {KEEP_BLAS: "1"}, []),
        ("import mlx.core\n", {}, [f"{NO_BLAS}MLX was imported before edge"]),
        (HOMELESS, {}, ["home", "home"]),
        (NOEXEC, {}, ["(noexec)", "(noexec)"]),
    ],
    ids=["no compiler", "failing compiler", "numpy", "kept", "too late", "no home", "noexec"],
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
    assert files(cache, "cpu_blas-*") == []


def somebody_elses(folder):
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    folder.mkdir(parents=True)
    os.chown(folder, 12345, 12345)


def open_to_others(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o777)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder.parent.write_text(""), "Not a directory"),
        (lambda folder: folder.symlink_to("/tmp"), "is not a folder of this user"),
        (somebody_elses, "is not a folder of this user"),
        (open_to_others, "can be written to by others; remove it"),
    ],
    ids=["no home", "a link", "another user's", "everybody's"],
)
def test_without_a_private_folder_nothing_is_compiled(make, words, tmp_path):
    cache = tmp_path / "cache"
    if words != "Not a directory":
        cache.mkdir()
    make(cache / "edge")
    seen = look(cache)
    assert not seen["fast"]
    blas, compiled = seen["problems"]
    assert blas.startswith("MLX multiplies with the reference BLAS: ") and words in blas
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


def test_a_relative_cache_is_ignored(tmp_path):
    seen = look("cache", HOME=str(tmp_path))
    assert seen["fast"] and files(tmp_path / ".cache" / "edge", "cpu_blas-*.so")


def test_an_mlx_that_does_not_load_is_reported_not_raised(tmp_path):
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "core.py").write_text("raise ImportError('broken binary')\n")
    (tmp_path / "mlx_cpu.libs").mkdir()
    (tmp_path / "mlx_cpu.libs" / "libblas-1.so").touch()
    code = "import edge, json\ntry: import mlx.core\nexcept ImportError: pass\n"
    code += "from edge import linux_cpu\nprint(json.dumps(linux_cpu.blas()))"
    assert (
        found(start(code, tmp_path / "cache", PYTHONPATH=f"{tmp_path}:{ROOT}"))
        == "the reference BLAS"
    )


def test_the_wheel_brings_it_along(tmp_path):
    """An environment with the wheel and its dependencies, and without the checkout."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    site = next((tmp_path / "venv").glob("lib/*/site-packages"))
    with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as wheel:
        wheel.extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    process = start(
        f"import edge; assert edge.__file__.startswith({str(site)!r})\n{LOOK}",
        tmp_path / "cache",
        python=str(tmp_path / "venv" / "bin" / "python"),
        PYTHONPATH="",
    )
    assert found(process)["fast"]
