"""Where chat keeps what it remembers: the typed lines and the conversations."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path


def state_folder() -> Path:
    """The platform's folder for state that nobody configured; it need not be there yet.

    $XDG_STATE_HOME/edge (default: ~/.local/state/edge), and ~/Library/Application Support/edge
    on macOS where that variable is not set.
    """
    named = os.environ.get("XDG_STATE_HOME", "")
    if Path(named).is_absolute():  # the specification: a relative path is to be ignored
        return Path(named) / "edge"
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Application Support" / "edge"
    return Path.home() / ".local" / "state" / "edge"


def history_file() -> Path:
    """The lines typed so far, over all conversations."""
    return state_folder() / "history"


def new_transcript_file() -> Path:
    """A name for this conversation; two processes never share one."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return state_folder() / "chats" / f"{stamp}-{os.getpid()}.jsonl"


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can look into.

    Raises:
        OSError: it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
