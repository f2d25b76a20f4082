"""Logits of a GGUF artefact from llama.cpp, with its own defaults as `edge bench` runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from edge.llama_cpp.session import LlamaSession
from edge.quality.scorer import Pieces
from edge.quality.windows import Ids


class LlamaCppScorer:
    """A session that forgets everything between windows."""

    def __init__(self, path: Path, window: int, threads: int):
        self._session = LlamaSession(path, window, threads)

    @property
    def vocab_size(self) -> int:
        """As the file says."""
        return self._session.vocab_size

    def logits(self, windows: Ids, pieces: Pieces) -> Iterator[mx.array]:
        """One window after the other; those that share a piece are put together again."""
        if pieces.positions < windows.shape[1] - 1:
            for window in windows:
                yield from map(mx.array, self._parts(window, pieces.positions))
            return
        parts = [part for window in windows for part in self._parts(window, pieces.positions)]
        yield mx.array(np.concatenate(parts) if len(parts) > 1 else parts[0])

    def close(self) -> None:
        """Free llama.cpp's memory."""
        self._session.close()

    def _parts(self, window: Ids, positions: int) -> Iterator[np.ndarray]:
        self._session.trim(0)
        ids = [int(i) for i in window[:-1]]
        for start in range(0, len(ids), positions):
            yield self._session.all_logits(ids[start : start + positions])
