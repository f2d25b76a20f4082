"""Versions of everything that can change a figure."""

from __future__ import annotations

import platform
from importlib import metadata

import edge

PACKAGES = ("mlx", "mlx-lm", "llama-cpp-python", "gguf", "numpy")


def software_versions() -> dict[str, str]:
    """Package -> version, with edge's and Python's own."""
    versions = {"edge": edge.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
