"""Versions of the software that can change a measurement."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import edge
from edge.device.system import output_of

PACKAGES = ("mlx", "mlx-lm", "llama-cpp-python", "gguf", "numpy")
# An environment variable of MLX.
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
