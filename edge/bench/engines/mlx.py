"""MLX: our network, or one with the same parts."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from edge.bench.engines.engine import Engine, Ids, Logits
from edge.generate.decode import PREFILL_TOKENS, prefill_parts
from edge.linux_cpu import blas, problems
from edge.model.follow import backend, open_together
from edge.model.kv_cache import GROUP_SIZE, make_cache
from edge.model.load import load_model
from edge.model.shard import WHOLE, Part
from edge.profile.profile import EngineFacts, Split

FLOAT32_REMARK = (
    "MLX computes in float32 on this CPU, whose half-precision kernels are far slower, and "
    "multiplies with {blas}: not a figure to expect on a Mac"
)
# On M5 a product was wrong for 1024 rows and right for 256.
GPU_ROWS = 1024


class MlxEngine(Engine):
    """Our network, or mlx-lm's on the same files.

    `model` owns the parameters; its `model` maps ids (B, L) and the caches to hidden states
    (B, L, hidden), `head` those to logits. `cache` has one empty cache per layer.
    """

    def __init__(self, model: Any, head: Callable[..., mx.array], cache: Sequence[Any]):
        self._model = model
        self._head = head
        self._cache = cache
        self._logits = mx.zeros((1,))
        self._part: Part = getattr(model, "part", WHOLE)
        self._sent_bytes = 0  # for the last token

    def prefill(self, ids: Ids) -> None:
        self._logits = self._prefilled(ids)

    def _prefilled(self, ids: Sequence[int], slot: int = 0) -> mx.array:
        """Computes the parts of `edge.generate.decode`, with the same evaluations.

        Of all parts but the last only the cache is evaluated, as in mlx-lm; the head runs on
        the last position only, as in llama.cpp. Returns its logits (1, vocab).
        """
        *parts, last = prefill_parts(len(ids), PREFILL_TOKENS, len(self._model.layers))
        for part in parts:
            self._extend([ids[part.start : part.stop]], [slot])
            mx.eval(self._held())
            mx.clear_cache()
        hidden = self._extend([ids[last.start :]], [slot])
        logits = self._head(hidden[:, -1:])[:, -1]
        mx.eval(logits)
        return logits

    def _extend(self, ids: list[Any], slots: Sequence[int]) -> mx.array:
        """The hidden states (rows, L, hidden) of ids (rows, L), with which the cache is extended.

        Only a batch has several rows; `slots` are their numbers.
        """
        hidden: mx.array = self._model.model(mx.array(ids), self._cache)
        return hidden

    def _held(self) -> list[Any]:
        """What to evaluate to have the cache computed."""
        return [layer.state for layer in self._cache]

    def decode(self, ids: Ids, stamp: Callable[[], None]) -> None:
        self._step([[token] for token in ids], stamp)

    def _step(self, steps: Iterable[Sequence[int]], stamp: Callable[[], None]) -> None:
        """A pass for each of `steps`, an id of every row.

        Builds the next graph while one runs, as mlx-lm does.
        """
        ahead: mx.array | None = None
        for tokens in steps:
            logits = self._next(tokens)
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            if ahead is not None:
                mx.eval(ahead)
                stamp()
            ahead = logits
        if ahead is not None:
            mx.eval(ahead)
            stamp()
            self._logits = ahead

    def _next(self, tokens: Sequence[int]) -> mx.array:
        """Logits (rows, vocab) after an id of every row."""
        before = self._part.sent_bytes
        hidden = self._extend([[token] for token in tokens], range(len(tokens)))
        logits = self._head(hidden)[:, -1]
        self._sent_bytes = self._part.sent_bytes - before
        return logits

    def trim(self, length: int) -> None:
        for layer in self._cache:
            if length > layer.offset:
                raise ValueError(f"the cache holds {layer.offset} positions, not {length}")
            layer.trim(layer.offset - length)

    def last_logits(self) -> Logits:
        return np.array(self._logits.astype(mx.float32)).ravel()

    def least_rows(self) -> int:
        return GPU_ROWS if mx.default_device().type == mx.DeviceType.gpu else 0

    def growing(self) -> Sequence[Any]:
        """The layers' caches that get longer with every token."""
        return self._cache

    def stored(self) -> tuple[list[mx.array], int | None]:
        """Keys and values (rows, kv_heads, positions, width), and the bits of quantised ones.

        Of those there are codes, scales and biases.
        """
        growing = self.growing()
        found = [a for _, a in tree_flatten([(layer.keys, layer.values) for layer in growing])]
        return found, getattr(growing[0], "bits", None) if growing else None

    def facts(self) -> EngineFacts:
        (stored, bits), remarks = self.stored(), cpu_remarks()
        kv_dtype = dtype_name(stored[0].dtype) if stored else None
        if stored and bits is not None:
            kv_dtype = f"{bits} bits in groups of {GROUP_SIZE}"
            remarks.insert(0, f"keys and values are stored in {bits} bits (--kv-bits {bits})")
        return EngineFacts(
            device=str(mx.device_info().get("device_name", mx.default_device())),
            compute_dtype=dtype_name(self._logits.dtype),
            kv_dtype=kv_dtype,
            weight_bytes_per_token=self.weight_bytes_per_token(),
            kv_bytes_per_position=self._part.size
            * sum(a.shape[1] * a.shape[3] * a.itemsize for a in stored),
            remarks=remarks,
            split=self._split(),
        )

    def _split(self) -> Split | None:
        part = self._part
        if part.size == 1:
            return None
        return Split(part.size, part.machines, backend(), self._sent_bytes)

    def weight_bytes_per_token(self) -> int:
        """All weights of all devices; one row of a table that is not the head too."""
        arrays = dict(tree_flatten(self._model.parameters()))
        total = int(sum(a.nbytes for a in arrays.values()))
        if any("lm_head." in name for name in arrays):
            table = (a for name, a in arrays.items() if ".embed_tokens." in name)
            total -= int(sum(a.nbytes - a.nbytes // a.shape[0] for a in table))
        return total * self._part.size

    def peak_device_bytes(self) -> int:
        return int(mx.get_peak_memory())


def open_ours(path: Path, kv_bits: int | None = None, is_split: bool = False) -> MlxEngine:
    """Our network; with `is_split` over the processes of mlx.launch, of which this is rank 0."""
    model = open_together(path, kv_bits).model if is_split else load_model(path)
    return MlxEngine(model, model.head, make_cache(model, kv_bits))


def cpu_remarks() -> list[str]:
    """Sentences on MLX's speed here; none on a GPU."""
    if mx.default_device().type == mx.DeviceType.gpu:
        return []
    return [FLOAT32_REMARK.format(blas=blas()), *problems()]


def dtype_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
