"""The text that learned quantisation looks at, cut into sequences of tokens.

Nothing is downloaded: the text is a file of the user's, or this package's own source
code, which every installation has and no published checkpoint was trained on.
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import EdgeError

Ids = np.ndarray[Any, np.dtype[np.int32]]

# What quality is measured on; of two files the tests measure on an old copy.
LEFT_OUT = ("corpus", "runner.py", "statistics.py")


def bundled_text() -> str:
    """The package's own Python files, one after the other in the order of their paths."""
    return "\n\n".join(_sources(resources.files("edge")))


def read_text(path: Path) -> str:
    """A text file to calibrate on.

    Raises:
        EdgeError: it is missing, empty or no text.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise EdgeError(
            f"{path} cannot be read ({error.strerror}); choose another text to calibrate on."
        ) from None
    except UnicodeDecodeError:
        raise _unfit(path, "is no UTF-8 text") from None
    if "\0" in text:
        raise _unfit(path, "is no text")
    if not text.strip():
        raise _unfit(path, "is empty")
    return text


def sequences(tokenizer: Any, text: str, tokens: int, count: int, seed: int) -> Ids:
    """Cut a text into equal pieces and draw some of them.

    Args:
        tokenizer: has `encode(text) -> ids`.
        text: what to cut.
        tokens: length of a sequence.
        count: how many at most.
        seed: decides which, and in which order.

    Returns:
        Ids (sequences, tokens), at least one.

    Raises:
        EdgeError: the text is shorter than one sequence.
    """
    ids = np.asarray(tokenizer.encode(text), np.int32)
    if ids.size < tokens:
        raise EdgeError(
            f"the text to calibrate on has {ids.size} tokens, one sequence needs {tokens}; "
            f"choose a longer text."
        )
    pieces = ids[: ids.size // tokens * tokens].reshape(-1, tokens)
    order = np.random.RandomState(seed).permutation(len(pieces))
    return pieces[order[:count]]


def _unfit(path: Path, what: str) -> EdgeError:
    return EdgeError(
        f"{path} {what}; calibrate on a text like what the model is for, some hundred kilobytes "
        f"of it."
    )


def _sources(folder: Traversable) -> list[str]:
    texts: list[str] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name in LEFT_OUT:
            continue
        if entry.is_dir():
            texts += _sources(entry)
        elif entry.name.endswith(".py"):
            texts.append(entry.read_text(encoding="utf-8"))
    return texts
