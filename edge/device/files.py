"""Small files of /proc and /sys, read without ceremony: most exist on some machines only."""

from __future__ import annotations

from pathlib import Path


def text_of(path: Path) -> str | None:
    """A small file's content without white space around it; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number_in(path: Path) -> int | None:
    """The whole number that a file holds; None where there is none."""
    try:
        return int(text_of(path) or "")
    except ValueError:
        return None
