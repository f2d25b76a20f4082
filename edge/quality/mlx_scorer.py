"""Logits of an MLX artefact: our network, in the dtype that it runs in here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from edge.model.kv_cache import make_cache
from edge.model.load import load_model
from edge.quality.scorer import Pieces
from edge.quality.windows import Ids


class MlxScorer:
    """Our network with all that makes it fast: what is judged is what runs."""

    def __init__(self, path: Path):
        self._model = load_model(path)

    @property
    def vocab_size(self) -> int:
        """As its config says."""
        return self._model.config.vocab_size

    def logits(self, windows: Ids, pieces: Pieces) -> Iterator[mx.array]:
        """Windows side by side, or one after the other in parts with a cache."""
        ids = mx.array(windows[:, :-1])
        if pieces.positions >= ids.shape[1]:
            yield self._flat(self._model(ids))
            return
        for i in range(len(windows)):
            cache = make_cache(self._model)
            for start in range(0, ids.shape[1], pieces.positions):
                part = ids[i : i + 1, start : start + pieces.positions]
                yield self._flat(self._model(part, cache))

    def close(self) -> None:
        """MLX frees what nobody holds."""
        del self._model
        mx.clear_cache()

    @staticmethod
    def _flat(logits: mx.array) -> mx.array:
        return logits.reshape(-1, logits.shape[-1]).astype(mx.float32)
