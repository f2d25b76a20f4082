"""What an evaluation needs of a checkpoint: trained weights, its tokenizer, windows of a corpus."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edge.convert.artefacts.manifest import read_manifest
from edge.convert.checkpoint import Checkpoint
from edge.errors import EdgeError
from edge.quality.sizes import TOKENS, WINDOW_TOKENS, WINDOWS
from edge.quality.texts import corpus_name, iter_texts
from edge.quality.windows import Windows, make_windows
from edge.tokenizer.tokenizer import Tokenizer


def check_trained(checkpoint: Checkpoint) -> None:
    """Refuse random weights, and what was made of them.

    Raises:
        EdgeError: it has such weights.
    """
    path = checkpoint.source.path
    manifest = read_manifest(path) if path else None
    if checkpoint.source.synthetic or (manifest is not None and manifest.synthetic):
        raise EdgeError(
            f"{checkpoint.source.origin} has random weights: they have no quality to measure; name "
            f"a trained model."
        )


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's own, which all of its artefacts are given.

    Raises:
        EdgeError: it has none, or it is broken.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in checkpoint.companions.items():
            (Path(folder) / name).write_bytes(content)
        return Tokenizer.load(Path(folder))


def windows_of(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    corpus: Path | None = None,
    window: int | None = None,
    tokens: int | None = None,
) -> Windows:
    """Cut a corpus for a checkpoint.

    Args:
        checkpoint: says how long a window may be, and how many tokens there are.
        tokenizer: its own.
        corpus: a file or folder; None for the sample that comes with edge.
        window: ids in each; None for WINDOW_TOKENS, or the model's context if that is less.
        tokens: at most so many; 0 for all of the corpus, None for a number that is quick.

    Raises:
        EdgeError: the corpus cannot be used, or the window is longer than the context.
    """
    limit = checkpoint.config.max_position_embeddings
    if window is None:
        window = min(WINDOW_TOKENS, limit)
    elif window > limit:
        raise EdgeError(
            f"--window {window} is longer than the model's context of {limit}; choose a shorter "
            f"one."
        )
    return make_windows(
        iter_texts(corpus),
        tokenizer,
        checkpoint.config.vocab_size,
        corpus_name(corpus),
        window,
        max(TOKENS, WINDOWS * window) if tokens is None else tokens or None,
    )
