"""Versions of the software that can change a measurement."""

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import edge
from edge.device.system import output_of

PACKAGES = ("mlx", "mlx-lm", "llama-cpp-python", "gguf", "numpy")
# Environment variables of llama-cpp-python and of MLX.
LLAMA_CPP_LIB_PATH = "LLAMA_CPP_LIB_PATH"
# What two machines, or two environments, must have in common to measure the same.
COMPARED = ("edge", "edge-revision", "mlx", "mlx-lm", "llama-cpp-python", "llama.cpp")
TF32 = "MLX_ENABLE_TF32"


def software_versions() -> dict[str, str]:
    versions = {"edge": edge.__version__, "python": platform.python_version()}
    if revision := checkout_revision(Path(edge.__file__).parent):
        versions["edge-revision"] = revision
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    if library := llama_cpp_library():
        versions["llama.cpp"] = library
    if tag := mlx_metal_tag():
        versions["mlx-metal-wheel"] = tag
    return versions


def compared_versions() -> dict[str, str]:
    return {name: text for name, text in software_versions().items() if name in COMPARED}


def mlx_metal_tag() -> str | None:
    """The platform that MLX's Metal wheel was built for, such as macosx_26_0_arm64."""
    try:
        wheel = metadata.distribution("mlx-metal").read_text("WHEEL") or ""
    except metadata.PackageNotFoundError:
        return None
    tag = re.search(r"^Tag: \S+-(\S+)$", wheel, re.MULTILINE)
    return tag[1] if tag else None


def llama_cpp_library() -> str | None:
    """The library that runs in place of llama-cpp-python's own, without folders; else None.

    llama-cpp-python loads `libllama` from the folder that LLAMA_CPP_LIB_PATH names.
    """
    folder = os.environ.get(LLAMA_CPP_LIB_PATH)
    if folder is None:
        return None
    endings = (".so", ".dylib") if sys.platform == "darwin" else (".so",)
    names = [Path(folder, f"libllama{ending}") for ending in endings]
    library = next((path.resolve() for path in names if path.exists()), names[-1])
    keg = re.search(r"/Cellar/llama\.cpp/([^/]+)/", str(library))
    return f"{library.name} of {f'Homebrew {keg[1]}' if keg else LLAMA_CPP_LIB_PATH}"


def tf32_allowed() -> bool:
    """True if MLX may round float32 products to TF32, as it does on M5 by default."""
    return os.environ.get(TF32, "1") != "0"


def checkout_revision(package: Path) -> str | None:
    """The commit that a package runs from, with `-dirty` if it was changed; None for a wheel."""
    root = package.parent
    if not (root / ".git").exists():  # an installed package can be inside another repository
        return None
    # Explicit, because hooks set GIT_DIR.
    git = ("git", "--no-optional-locks", "-C", str(root), "--git-dir=.git", "--work-tree=.")
    commit = output_of((*git, "rev-parse", "--quiet", "--verify", "HEAD"))
    changed = output_of((*git, "status", "--porcelain", "--", package.name))
    return f"{commit}-dirty" if commit and changed else commit or None
