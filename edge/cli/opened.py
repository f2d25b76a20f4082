"""Load what a command was told to run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from edge.device.memory import wired
from edge.model.load import Loaded, open_model
from edge.model.stablelm import Model
from edge.tokenizer.tokenizer import Tokenizer


def open_for(command: str, path: Path, kv_bits: int | None = None) -> Loaded:
    """A model with its tokenizer; a warning that memory is short goes to stderr.

    Raises:
        EdgeError: it does not fit, or its files cannot be read.
    """

    def warn(sentence: str) -> None:
        print(f"edge {command}: warning: {sentence}", file=sys.stderr)

    return open_model(path, kv_bits, warn)


@contextlib.contextmanager
def opened(
    path: Path, command: str, kv_bits: int | None = None
) -> Iterator[tuple[Model, Tokenizer]]:
    """A model and its tokenizer, resident while the block runs where that can be asked for.

    Raises:
        EdgeError: it does not fit, or its files cannot be read.
    """
    model, tokenizer, need = open_for(command, path, kv_bits)
    with wired(need.running_bytes):
        yield model, tokenizer
