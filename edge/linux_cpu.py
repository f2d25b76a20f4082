"""MLX on a Linux CPU: a fast BLAS, and a private folder for what MLX compiles.

Both must be there before MLX is imported: the import hook in `edge/__init__.py` calls `prepare`.
With another wheel or build of MLX, for macOS or for a GPU, nothing is changed.

- MLX's wheel multiplies with the reference BLAS. It asks the dynamic linker for `cblas_sgemm`,
  which gives what was loaded globally before the wheel's own library: so `cpu_blas.c`, compiled
  once for this CPU, can bring the OpenBLAS that numpy's wheel carries.
- MLX compiles functions into a folder of a known name under TMPDIR and loads what it finds there,
  even if another user put it there or another process is still writing it. So TMPDIR becomes a
  folder of this process in the user's cache: filled from there, and kept there at the end.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

SOURCE = Path(__file__).with_name("cpu_blas.c")
FLAGS = ("-O3", "-march=native", "-fopenmp-simd", "-shared", "-fPIC")
NAMES = ("-DINT=long", "-DOPENBLAS_SGEMM=scipy_cblas_sgemm64_")  # of the OpenBLAS in numpy's wheel
# Set to anything, MLX keeps the BLAS that it comes with: so peers are measured as they are.
KEEP_BLAS = "EDGE_REFERENCE_BLAS"
LOWEST_FREE_BYTES = 16 << 20  # MLX compiles some 30 files of up to 100 kB
OLD_S = 86400.0  # what killed processes left is removed after a day

_library: ctypes.CDLL | None = None
_blas_problem: str | None = "MLX was imported before edge"
_compile_problem: str | None = None


def prepare(module: str) -> None:
    """Make ready for the first import of numpy or mlx.core; never fails.

    Args:
        module: which of the two is about to be imported. OpenBLAS is loaded before numpy loads
            it, because only then can it be told how long its threads spin.
    """
    global _compile_problem
    if "mlx.core" in sys.modules or not _has_reference_blas():
        return
    _load_openblas()
    if module == "mlx.core":
        _use_openblas()
        try:
            _compile_privately(_private_folder())
        except OSError as error:
            os.environ["MLX_DISABLE_COMPILE"] = "1"
            _compile_problem = _sentence(error)


@cache
def uses_openblas() -> bool:
    """Whether MLX's products on the CPU are those of `cpu_blas.c`: one is computed and counted."""
    if _library is None:
        return False
    import mlx.core as mx

    counter = ctypes.c_long.in_dll(_library, "edge_products")
    before = counter.value
    mx.eval(mx.matmul(mx.ones((1, 2)), mx.ones((2, 2)), stream=mx.cpu))
    return counter.value > before


def blas() -> str:
    """The name of the BLAS that MLX multiplies with on the CPU."""
    if _library is not None and uses_openblas():
        config = _library.scipy_openblas_get_config64_
        config.restype = ctypes.c_char_p
        name, version, *_ = config().decode().split()
        return f"{name} {version}"
    return "the reference BLAS" if _has_reference_blas() else "the BLAS that it was built with"


def problems() -> list[str]:
    """What makes MLX slower here than it could be: sentences with the reasons."""
    found = []
    if _has_reference_blas() and not uses_openblas() and _blas_problem is not None:
        found.append(f"MLX multiplies with the reference BLAS: {_blas_problem}")
    if _compile_problem is not None:
        found.append(f"MLX runs without compiled functions: {_compile_problem}")
    return found


@cache
def _load_openblas() -> None:
    """Load it before numpy does, its threads told not to spin.

    By default they do for 0.1 s after a product, on cores that decoding needs. OpenBLAS reads
    the variable when it is loaded, and programs that we start are not to inherit it.
    """
    timeout = os.environ.get("OPENBLAS_THREAD_TIMEOUT")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "8")
    with suppress(OSError):
        ctypes.CDLL(str(_openblas()))
    if timeout is None:
        del os.environ["OPENBLAS_THREAD_TIMEOUT"]


def _use_openblas() -> None:
    """Give it to MLX, or note why not."""
    global _library, _blas_problem
    _blas_problem = None
    if os.environ.get(KEEP_BLAS):
        return
    try:
        library = _compiled_library(_private_folder())
        _library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        _blas_problem = _sentence(error)


@cache
def _has_reference_blas() -> bool:
    """Whether this MLX is the wheel for Linux CPUs."""
    return _of_wheel("mlx", "mlx_cpu.libs", "libblas-*") is not None


def _of_wheel(package: str, folder: str, pattern: str) -> Path | None:
    """A library that a wheel carries in a folder beside its package."""
    spec = PathFinder.find_spec(package)  # not by way of the import hook that called us
    for place in (spec and spec.submodule_search_locations) or ():
        for path in Path(place).parent.joinpath(folder).glob(pattern):
            return path
    return None


def _openblas() -> Path:
    found = _of_wheel("numpy", "numpy.libs", "libscipy_openblas64_*")
    if found is None:
        raise OSError("this numpy does not carry an OpenBLAS")
    return found


def _compiled_library(folder: Path) -> Path:
    """The library made of `cpu_blas.c`, in a file that appears whole.

    Raises:
        OSError: there is no OpenBLAS or no compiler, or the compiler fails.
    """
    openblas = _openblas()
    key = hashlib.sha256(f"{openblas}{FLAGS}".encode() + SOURCE.read_bytes()).hexdigest()[:16]
    library = folder / f"cpu_blas-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as made:
            partial = Path(made, library.name)
            files = (str(SOURCE), "-o", str(partial), str(openblas))
            command = ("cc", *FLAGS, *NAMES, *files, f"-Wl,-rpath,{openblas.parent}")
            try:
                subprocess.run(command, check=True, capture_output=True)
            except FileNotFoundError:
                raise OSError("there is no C compiler (cc); install gcc") from None
            except subprocess.CalledProcessError as error:
                said = error.stderr.decode("utf-8", "replace").strip().splitlines()
                raise OSError(f"cc failed ({said[0] if said else error.returncode})") from None
            partial.replace(library)
    return library


@cache
def _private_folder() -> Path:
    """A folder that only this user can write to, for code compiled for this CPU.

    Raises:
        OSError: it cannot be made or written to, or it belongs to another user.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")  # a relative one is to be ignored
    top = Path(base if base.startswith("/") else "~/.cache").expanduser() / "edge"
    top.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = top.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise OSError(f"{top} is not a folder of this user")
    if stat.S_IMODE(found.st_mode) != 0o700:
        top.chmod(0o700)
    folder = top / hashlib.sha256(_cpu()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise OSError(f"{folder} cannot be written to")
    if shutil.disk_usage(folder).free < LOWEST_FREE_BYTES:
        raise OSError(f"the disk of {folder} is full")
    return folder


def _cpu() -> bytes:
    """The first core's model and instructions: a home may be shared by different machines."""
    keys = (b"model name", b"flags", b"Features", b"CPU part")
    with Path("/proc/cpuinfo").open("rb") as file:
        core = file.read(16384).split(b"\n\n")[0]
    return b"\n".join(line for line in core.splitlines() if line.startswith(keys))


def _compile_privately(folder: Path) -> None:
    """Have MLX compile into a folder of this process, where all is that was compiled before."""
    kept = folder / "kept"
    kept.mkdir(exist_ok=True)
    for other in folder.glob("process-*"):
        with suppress(FileNotFoundError):  # its process ends just now
            if other.stat().st_mtime < time.time() - OLD_S:
                shutil.rmtree(other, ignore_errors=True)
    tempfile.gettempdir()  # looked up now, so that Python's own files stay where they were
    own = Path(tempfile.mkdtemp(prefix="process-", dir=folder))
    _link_libraries(kept, own)
    os.environ["TMPDIR"] = str(own)
    atexit.register(_keep, own, kept, os.getpid())


def _keep(own: Path, kept: Path, pid: int) -> None:
    if os.getpid() == pid:  # not at the end of a fork
        with suppress(OSError):
            _link_libraries(own, kept)
        shutil.rmtree(own, ignore_errors=True)


def _link_libraries(source: Path, target: Path) -> None:
    """Every library below a folder under the same path below another; it appears whole."""
    for library in source.rglob("*.so"):
        link = target / library.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.hardlink_to(library)


def _sentence(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
