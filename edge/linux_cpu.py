"""MLX on a Linux CPU: a fast BLAS, and a private folder for functions that MLX compiles.

The import hook in `edge/__init__.py` calls `prepare` before MLX is imported. MLX's wheel for Linux
CPUs, the only one changed, links to `cblas_sgemm` of the reference BLAS. `cpu_blas.c`, compiled
once, is loaded globally before it and takes its place; it calls numpy's OpenBLAS.

MLX compiles functions into a folder with a predictable name under TMPDIR and loads any library it
finds there, also another user's. So TMPDIR is set to a folder of this process in the user's cache.
"""

import atexit
import ctypes
import fcntl
import os
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

SOURCE = Path(__file__).with_name("cpu_blas.c")
FLAGS = ("-O3", "-march=native", "-fopenmp-simd", "-shared", "-fPIC")
# Environment variable: if set, MLX keeps its own BLAS, so that mlx-lm is measured as installed.
KEEP_BLAS = "EDGE_REFERENCE_BLAS"
PROCESS, LOCK = "process-", "lock"
MIN_FREE_BYTES = 16 << 20  # MLX compiles some 30 files of up to 100 kB
OLD_S = 86400.0  # a folder without a lock is being made, or was left by a killed process
ST_NOEXEC = 8  # of statvfs; os has it on Linux only
# RuntimeError: no home directory; ValueError: a null byte in a path.
FAILURES = (OSError, RuntimeError, ValueError)

_library: ctypes.CDLL | None = None  # of `cpu_blas.c`
_openblas: ctypes.CDLL | None = None
_blas_problem: str | None = "MLX was imported before edge"
_compile_problem: str | None = None
_outer_tmpdir: str | None = None  # TMPDIR before it was set for MLX


def prepare(module: str) -> None:
    """Prepares for the first import of numpy or mlx.core; never raises."""
    global _compile_problem
    if "mlx.core" in sys.modules or not _has_reference_blas():
        return
    _load_openblas()
    if module == "mlx.core":
        _use_openblas()
        try:
            _compile_privately(_private_folder())
        except FAILURES as error:
            os.environ["MLX_DISABLE_COMPILE"] = "1"
            _compile_problem = str(error)


def uses_openblas() -> bool:
    """True if MLX is imported and multiplies on the CPU with `cpu_blas.c`."""
    return _library is not None and "mlx.core" in sys.modules and _counts_a_product(_library)


@cache
def _counts_a_product(library: ctypes.CDLL) -> bool:
    import mlx.core as mx

    counter = ctypes.c_long.in_dll(library, "edge_products")
    before = counter.value
    mx.eval(mx.matmul(mx.ones((1, 2)), mx.ones((2, 2)), stream=mx.cpu))
    return counter.value > before


def blas() -> str:
    """Name of the BLAS that MLX multiplies with on the CPU."""
    if _openblas is not None and uses_openblas():
        config = _openblas.scipy_openblas_get_config64_
        config.restype = ctypes.c_char_p
        name, version, *_ = config().decode().split()
        return f"{name} {version}"
    return "the reference BLAS" if _has_reference_blas() else "the BLAS that it was built with"


def problems() -> list[str]:
    """Reasons why MLX is slower here than it could be."""
    found = []
    if _library is not None and not uses_openblas():
        found.append("MLX does not multiply with OpenBLAS: another BLAS was loaded before")
    elif _has_reference_blas() and _library is None and _blas_problem is not None:
        found.append(f"MLX multiplies with the reference BLAS: {_blas_problem}")
    if _compile_problem is not None:
        found.append(f"MLX runs without compiled functions: {_compile_problem}")
    return found


@cache
def _load_openblas() -> None:
    """Loads OpenBLAS before numpy does, with threads that do not spin on cores decoding needs."""
    global _openblas
    path = _of_wheel("numpy", "numpy.libs", "libscipy_openblas64_*")
    name = "OPENBLAS_THREAD_TIMEOUT"  # read at loading; child processes must not inherit it
    given = os.environ.get(name)
    os.environ[name] = given or "8"
    with suppress(*FAILURES):
        _openblas = None if path is None else ctypes.CDLL(str(path))
    if given is None:
        del os.environ[name]


def _use_openblas() -> None:
    global _library, _blas_problem
    _blas_problem = None
    if os.environ.get(KEEP_BLAS):
        return
    try:
        if _openblas is None:
            raise OSError("this numpy does not carry an OpenBLAS")
        sgemm = ctypes.cast(_openblas.scipy_cblas_sgemm64_, ctypes.c_void_p)
        path = _compiled_library(_private_folder())
        _library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        ctypes.c_void_p.in_dll(_library, "edge_openblas_sgemm").value = sgemm.value
    except (*FAILURES, AttributeError) as error:
        _blas_problem = str(error)


@cache
def _has_reference_blas() -> bool:
    """True for MLX's wheel for Linux CPUs."""
    return _of_wheel("mlx", "mlx_cpu.libs", "libblas-*") is not None


def _of_wheel(package: str, folder: str, pattern: str) -> Path | None:
    """A library that a wheel installs in a folder beside its package."""
    spec = PathFinder.find_spec(package)  # avoids the import hook that called this
    places = (spec and spec.submodule_search_locations) or ()
    return next((p for at in places for p in Path(at).parent.joinpath(folder).glob(pattern)), None)


def _compiled_library(folder: Path) -> Path:
    """The library compiled from `cpu_blas.c`; raises an OSError if there is no compiler."""
    key = f"{zlib.crc32(repr(FLAGS).encode() + SOURCE.read_bytes()):08x}"
    library = folder / f"cpu_blas-{key}.so"
    if not library.exists():
        import subprocess  # here: saves 3 ms at every later start

        with tempfile.TemporaryDirectory(prefix=PROCESS, dir=folder) as made:
            partial = Path(made, library.name)
            # Not through "." in the PATH: any folder could hold its own cc.
            folders = os.pathsep.join(filter(os.path.isabs, os.get_exec_path()))
            if (compiler := shutil.which("cc", path=folders)) is None:
                raise OSError("there is no C compiler (cc); install gcc")
            command = (compiler, *FLAGS, str(SOURCE), "-o", str(partial))
            try:
                subprocess.run(command, check=True, capture_output=True)
            except subprocess.CalledProcessError as error:
                first_line = error.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
                raise OSError(f"cc failed ({first_line or error.returncode})") from None
            partial.replace(library)
    return library


@cache
def _private_folder() -> Path:
    """Folder for code compiled for this CPU, writable for this user only; raises an OSError."""
    base = os.environ.get("XDG_CACHE_HOME", "")  # the specification ignores relative paths
    top = Path(base if base.startswith("/") else "~/.cache").expanduser() / "edge"
    top.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = top.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise OSError(f"{top} is not a folder of this user")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{top} can be written to by others; remove it")
    top.chmod(0o700)
    folder = top / f"{zlib.crc32(_cpu()):08x}"
    folder.mkdir(exist_ok=True)
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < MIN_FREE_BYTES:
        raise OSError(f"the disk of {folder} is full")
    if disk.f_flag & ST_NOEXEC:
        raise OSError(f"the disk of {folder} is mounted with noexec")
    return folder


def _cpu() -> bytes:
    """Model and instructions of the first core, and the C library: machines may share a home."""
    keys = (b"model name", b"flags", b"Features", b"CPU part")
    with Path("/proc/cpuinfo").open("rb") as file:
        core = file.read(16384).split(b"\n\n")[0]
    lines = [line for line in core.splitlines() if line.startswith(keys)]
    with suppress(ValueError):  # a C library other than GNU's
        lines.append((os.confstr("CS_GNU_LIBC_VERSION") or "").encode())
    return b"\n".join(lines)


def _compile_privately(folder: Path) -> None:
    """Sets TMPDIR to a folder of this process that contains everything compiled before."""
    global _outer_tmpdir
    kept = folder / "kept"
    kept.mkdir(exist_ok=True)
    for other in folder.glob(f"{PROCESS}*"):
        if _is_left(other):
            shutil.rmtree(other, ignore_errors=True)
    tempfile.gettempdir()  # caches the old TMPDIR for Python's own files
    own = Path(tempfile.mkdtemp(prefix=PROCESS, dir=folder))
    lock = os.open(own / LOCK, os.O_CREAT | os.O_RDWR, 0o600)  # held until the process ends
    fcntl.flock(lock, fcntl.LOCK_EX)
    atexit.register(_keep, own, kept, os.getpid())
    _link([path.relative_to(kept) for path in kept.rglob("*.so")], kept, own)
    _outer_tmpdir = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(own)


def child_environment() -> dict[str, str]:
    """Environment for child processes, with the original TMPDIR."""
    environment = dict(os.environ)
    if environment.get("TMPDIR", "").rpartition("/")[2].startswith(PROCESS):
        environment.pop("TMPDIR")
        environment |= {} if _outer_tmpdir is None else {"TMPDIR": _outer_tmpdir}
    return environment


def _is_left(folder: Path) -> bool:
    """True if the process of a folder has ended."""
    try:
        with (folder / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        pass
    except OSError:  # no lock yet, or already removed
        with suppress(OSError):
            return folder.stat().st_mtime < time.time() - OLD_S
    return False


def _keep(own: Path, kept: Path, pid: int) -> None:
    """Keeps the libraries that MLX compiled and loaded, removes the rest; runs at exit."""
    if os.getpid() != pid:  # a forked process
        return
    with suppress(OSError):
        loaded = Path("/proc/self/maps").read_text(encoding="utf-8")
        whole = [path for path in own.rglob("*.so") if str(path) in loaded]
        _link([path.relative_to(own) for path in whole], own, kept)
    shutil.rmtree(own, ignore_errors=True)


def _link(names: Iterable[Path], source: Path, target: Path) -> None:
    """Links files of one folder into another, each atomically."""
    for name in names:
        link = target / name
        if link.exists():
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        partial = link.with_name(f"{link.name}.{os.getpid()}")
        try:
            partial.hardlink_to(source / name)
        except OSError:  # a disk without hard links
            shutil.copyfile(source / name, partial)
        partial.replace(link)
