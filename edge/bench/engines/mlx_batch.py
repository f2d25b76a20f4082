"""Our network over several sequences at once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from edge.bench.engines.engine import Logits, Rows
from edge.bench.engines.mlx import MlxEngine
from edge.errors import EdgeError
from edge.model.kv_cache import make_cache
from edge.model.load import load_model
from edge.model.slot_cache import SlotCache
from edge.model.stablelm import Model


class MlxBatch(MlxEngine):
    """Our network over the slots of one cache, in the passes of `edge serve`."""

    def __init__(self, model: Model, sequences: int, kv_bits: int | None):
        super().__init__(model, model.head, ())
        self._slots, self._kv_bits = SlotCache(model, sequences, kv_bits), kv_bits

    def prefill(self, ids: Rows) -> None:
        """Computes one prompt after the other, as they are served."""
        self._logits = mx.concatenate([self._prefilled(row, slot) for slot, row in enumerate(ids)])

    def _extend(self, ids: list[Any], slots: Sequence[int]) -> mx.array:
        count = len(ids[0])
        hidden: mx.array = self._model.model(mx.array(ids), self._slots.view(slots, count))
        for slot in slots:
            self._slots.lengths[slot] += count
        return hidden

    def _held(self) -> list[Any]:
        return self._slots.arrays

    def decode(self, ids: Rows, stamp: Callable[[], None]) -> None:
        self._step(zip(*ids, strict=True), stamp)

    def trim(self, length: int) -> None:
        if length > min(self._slots.lengths):
            raise ValueError(f"the cache holds {min(self._slots.lengths)} positions, not {length}")
        self._slots.lengths[:] = [length] * len(self._slots.lengths)

    def last_logits(self) -> Logits:
        return np.array(self._logits.astype(mx.float32))

    def stored(self) -> tuple[list[mx.array], int | None]:
        return self._slots.arrays, self._kv_bits

    def alone(self) -> MlxEngine:
        self.trim(0)
        return MlxEngine(self._model, self._head, make_cache(self._model, self._kv_bits))


def open_batch(path: Path, kv_bits: int | None, sequences: int) -> MlxBatch:
    """The engine of an artefact; an EdgeError for one that `edge serve` computes one by one too."""
    model = load_model(path)
    scaling = model.config.rope_scaling
    if scaling is not None and scaling.rope_type == "dynamic":
        raise EdgeError(f"{path} rotates by the length of its context; leave out -npl.")
    return MlxBatch(model, sequences, kv_bits)
