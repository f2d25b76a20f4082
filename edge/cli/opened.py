"""Load what a command was told to run, after a look at whether it fits."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.model.stablelm import Model
    from edge.tokenizer.tokenizer import Tokenizer

# The context that must fit, if the model has so much: most chats and files stay below, and a
# cache for all of a long window would refuse machines that never fill it.
CONTEXT_TOKENS = 4096


def check_room(path: Path, command: str, kv_bits: int | None = None) -> int:
    """Memory that a model will take while it runs, in bytes; a doubt goes to stderr.

    Raises:
        EdgeError: it does not fit, or its files cannot be read.
    """
    from edge.formats.json import read_json_object
    from edge.model.config import ModelConfig
    from edge.model.load import check_directory, compute_dtype
    from edge.model.memory import check_fits

    check_directory(path)
    config = ModelConfig.from_dict(
        read_json_object(path / "config.json"), str(path / "config.json")
    )
    tokens = min(CONTEXT_TOKENS, config.max_position_embeddings)
    fit = check_fits(path, compute_dtype(), tokens, kv_bits)
    if fit.warning:
        print(f"edge {command}: warning: {fit.warning}", file=sys.stderr)
    return fit.need.running_bytes


@contextlib.contextmanager
def opened(
    path: Path, command: str, kv_bits: int | None = None
) -> Iterator[tuple[Model, Tokenizer]]:
    """A model and its tokenizer, resident while the block runs where that can be asked for.

    Raises:
        EdgeError: it does not fit, or its files cannot be read.
    """
    need_bytes = check_room(path, command, kv_bits)
    from edge.device.memory import wired
    from edge.model.load import load

    with wired(need_bytes):
        yield load(path)
