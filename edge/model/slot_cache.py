"""KV caches of several sequences, each in a slot of its own, for passes over some or one of them.

Nothing is ever moved: a slot keeps its positions until others are written over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx

from edge.model.kv_cache import GROUP_SIZE, with_room
from edge.model.stablelm import Cache, Mask, Model


class SlotCache:
    """Keys and values of `count` slots; `lengths` are the positions that each holds.

    Each layer has one array of keys and one of values, (count, kv_heads, positions, width), or
    three of each with `kv_bits`: codes, scales and biases. Passes write beyond the lengths, which
    the caller raises when the pass counts.
    """

    def __init__(self, model: Model, count: int, kv_bits: int | None = None):
        self.lengths = [0] * count
        self._layers: list[list[mx.array]] = [[] for _ in model.layers]
        self._kv_bits = kv_bits

    @property
    def arrays(self) -> list[mx.array]:
        return [array for layer in self._layers for array in layer]

    def view(self, slots: Sequence[int], positions: int) -> list[Cache]:
        """One cache per layer, for one pass over so many new positions of these slots.

        A pass over several has a row for each slot from the first to the last of them, so that
        attention reads the arrays where they are. Other slots' rows change nothing. The view of
        one slot is like an `edge.model.kv_cache.KVCache` of it.
        """
        window = _Window(self.lengths, slots, positions)
        views = [_View(layer, window, self._kv_bits) for layer in self._layers]
        views[0].owner = self
        return views

    def clear(self, slot: int) -> None:
        """Empties a slot that may hold NaN: times 0 it is still NaN in a pass over several."""
        self.lengths[slot] = 0
        for array in self.arrays:
            array[slot] = 0


class _Window:
    """Where one pass writes and what it sees, the same in all layers."""

    def __init__(self, lengths: Sequence[int], slots: Sequence[int], positions: int):
        self.rows = range(min(slots), max(slots) + 1)
        self.slots, self.positions, self.all = slots, positions, len(lengths)
        # Rows of other slots are as if at the beginning: their first position is all they see.
        self.offsets = [lengths[row] if row in slots else 0 for row in self.rows]
        self.end = max(self.offsets) + positions
        self._places: mx.array | None = None

    @property
    def is_wide(self) -> bool:
        return len(self.rows) > 1

    @cached_property
    def offset(self) -> int | mx.array:
        return mx.array(self.offsets) if self.is_wide else self.offsets[0]

    @cached_property
    def mask(self) -> mx.array:
        """True where a new position sees another one, (rows, 1, positions, end)."""
        new = mx.array(self.offsets)[:, None] + mx.arange(self.positions)
        return mx.arange(self.end) <= new[:, None, :, None]

    def places(self, heads: int, room: int) -> mx.array:
        """Where a pass writes in an array (slots x heads x room, width), the same in all layers.

        The rows of other slots write to the last position, which no slot holds.
        """
        if self._places is None:
            each = range(self.positions)
            at = [
                [offset + i if row in self.slots else room - 1 for i in each]
                for row, offset in zip(self.rows, self.offsets, strict=True)
            ]
            head = mx.array([[row * heads + h for h in range(heads)] for row in self.rows])
            self._places = head[..., None] * room + mx.array(at)[:, None]
        return self._places


class _View:
    """The cache of one layer for one pass; with `bits` keys and values are quantised."""

    owner: SlotCache  # of the first layer's, for `edge.model.follow`

    def __init__(self, arrays: list[mx.array], window: _Window, kv_bits: int | None):
        self._arrays, self._window, self.offset = arrays, window, window.offset
        if kv_bits is not None:
            self.bits, self.group_size = kv_bits, GROUP_SIZE

    def make_mask(self, length: int, **options: Any) -> Mask:
        if self._window.is_wide:
            return self._window.mask
        return "causal" if length > 1 else None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Writes keys and values (rows, kv_heads, positions, width); returns all of these rows."""
        window, new = self._window, [*self._stored(keys), *self._stored(values)]
        held: Sequence[mx.array | None] = self._arrays or [None] * len(new)
        self._arrays[:] = [self._written(*pair) for pair in zip(held, new, strict=True)]
        rows = slice(window.rows.start, window.rows.stop)
        seen = [array[rows, :, : window.end] for array in self._arrays]
        half = len(seen) // 2
        return (seen[0], seen[1]) if half == 1 else (tuple(seen[:half]), tuple(seen[half:]))

    def _stored(self, x: mx.array) -> Sequence[mx.array]:
        if not hasattr(self, "bits"):
            return (x,)
        return mx.quantize(x, group_size=self.group_size, bits=self.bits)

    def _written(self, held: mx.array | None, new: mx.array) -> mx.array:
        """The array with the new part; MLX writes in place where nothing else refers to it."""
        window = self._window
        kept = 0 if held is None else held.shape[2]
        held = with_room(held, new, kept, window.end + 1, window.all)
        if not window.is_wide:
            slot, before = window.rows.start, window.offsets[0]
            held[slot : slot + 1, :, before : window.end] = new
            return held
        # By one index per row of memory; with several MLX would compute these in every layer.
        flat = held.reshape(-1, held.shape[-1])
        flat[window.places(*held.shape[1:3])] = new
        return flat.reshape(held.shape)
