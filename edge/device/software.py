"""Versions of everything that can change a figure."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import edge
from edge.device.system import Run, output_of

PACKAGES = ("mlx", "mlx-lm", "llama-cpp-python", "gguf", "numpy")
# Read by MLX.
TF32 = "MLX_ENABLE_TF32"
COMMIT = re.compile(r"[0-9a-f]{40,64}")


def software_versions() -> dict[str, str]:
    """Package -> version, with edge's and Python's own; `edge-revision` where it has one."""
    versions = {"edge": edge.__version__, "python": platform.python_version()}
    if revision := checkout_revision(Path(edge.__file__).parent):
        versions["edge-revision"] = revision
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    if tag := mlx_metal_tag():
        versions["mlx-metal-wheel"] = tag
    return versions


def mlx_metal_tag() -> str | None:
    """The platform that MLX's Metal wheel was built for, such as macosx_26_0_arm64."""
    try:
        wheel = metadata.distribution("mlx-metal").read_text("WHEEL") or ""
    except metadata.PackageNotFoundError:
        return None
    tag = re.search(r"^Tag: \S+-(\S+)$", wheel, re.MULTILINE)
    return tag[1] if tag else None


def tf32_allowed() -> bool:
    """MLX may round float32 products to TF32, as it does on M5 unless it is told not to."""
    return os.environ.get(TF32, "1") != "0"


def checkout_revision(package: Path, run: Run = output_of) -> str | None:
    """The commit that a package runs from, `-dirty` where it was changed; None for a wheel.

    A wheel may lie inside of some other repository.
    """
    root = package.parent
    if not (root / ".git").exists():
        return None
    # Named, so that GIT_DIR as a hook sets it makes no difference.
    git = ("git", "--no-optional-locks", "-C", str(root), "--git-dir=.git", "--work-tree=.")
    commit = run((*git, "rev-parse", "HEAD"))
    if not COMMIT.fullmatch(commit):
        return None
    changed = run((*git, "status", "--porcelain", "--", package.name))
    return f"{commit}-dirty" if changed else commit
