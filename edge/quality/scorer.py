"""Logits of windows, piece by piece, whatever computes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mlx.core as mx

from edge.errors import EdgeError
from edge.quality.windows import Ids

# Logits of a piece in float32. Some five arrays of this size are alive at a time.
PIECE_BYTES = 128 << 20
# llama.cpp's largest batch; the largest part of a prompt that our decode loop computes at once.
MOST_POSITIONS = 2048
# Short windows go side by side up to so many positions. More gain nothing that could be measured,
# and what was computed is kept, and the progress bar moves, after each step only.
POSITIONS_AT_ONCE, MOST_WINDOWS = 512, 8


@dataclass(frozen=True)
class Pieces:
    """How much is computed at a time, the same for every scorer so that pieces correspond.

    Attributes:
        windows: side by side; more than one only where they fit into one piece.
        positions: of one window.
    """

    windows: int
    positions: int

    @classmethod
    def of(cls, window: int, vocab_size: int, piece_bytes: int | None = None) -> Pieces:
        """As many as a piece has room for."""
        room = max(1, (piece_bytes or PIECE_BYTES) // (4 * vocab_size))
        positions = min(room, window - 1, MOST_POSITIONS)
        if positions < window - 1:
            return cls(1, positions)
        fit = min(room, POSITIONS_AT_ONCE) // positions
        return cls(min(max(fit, 1), MOST_WINDOWS), positions)


class Scorer(Protocol):
    """An artefact, loaded."""

    @property
    def vocab_size(self) -> int:
        """How many logits it gives per token."""

    def logits(self, windows: Ids, pieces: Pieces) -> Iterator[mx.array]:
        """Ids (B, W) -> float32 logits after each token but the last, in order.

        Yields pieces (n, vocab); together (B * (W - 1), vocab). Nothing is kept between calls.
        """

    def close(self) -> None:
        """Give its memory back."""


def open_scorer(path: Path, window: int, threads: int) -> Scorer:
    """Load an artefact: a directory is MLX's, a file GGUF.

    Args:
        path: the artefact.
        window: ids in a window.
        threads: of llama.cpp.

    Raises:
        EdgeError: it cannot be loaded.
    """
    if path.is_dir():
        from edge.quality.mlx_scorer import MlxScorer

        return MlxScorer(path)
    from edge.quality.llama_cpp_scorer import LlamaCppScorer

    return LlamaCppScorer(path, window, threads)


def check_vocabulary(scorer: Scorer, name: str, vocab_size: int) -> None:
    """Refuse an artefact whose probabilities are over another vocabulary.

    Raises:
        EdgeError: they are.
    """
    if scorer.vocab_size != vocab_size:
        raise EdgeError(
            f"{name} has a vocabulary of {scorer.vocab_size} and the checkpoint one of "
            f"{vocab_size}; compare artefacts of one model, or convert it again."
        )
