"""MLX engines: our network, and mlx-lm's on the same files for comparison."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from edge.bench.engines.engine import Engine, Logits
from edge.errors import EdgeError
from edge.generate.decode import PREFILL_TOKENS, prefill_parts
from edge.linux_cpu import blas, problems
from edge.model.kv_cache import make_cache
from edge.model.load import compute_dtype, has_input_orders, load_model
from edge.profile.profile import EngineFacts

FLOAT32_REMARK = (
    "MLX computes in float32 on this CPU, whose half-precision kernels are far slower, and "
    "multiplies with {blas}: not a figure to expect on a Mac"
)


class MlxEngine(Engine):
    """Our network or mlx-lm's.

    `model` owns the parameters; its `model` maps ids (B, L) and the caches to hidden states
    (B, L, hidden), `head` those to logits. `cache` has one empty cache per layer.
    """

    def __init__(self, model: Any, head: Callable[..., mx.array], cache: Sequence[Any]):
        self._model = model
        self._head = head
        self._cache = cache
        self._logits = mx.zeros((1,))

    def prefill(self, ids: Sequence[int]) -> None:
        """Computes the parts of `edge.generate.decode`, with the same evaluations.

        Of all parts but the last only the cache is evaluated, as in mlx-lm; the head runs on
        the last position only, as in llama.cpp.
        """
        *parts, last = prefill_parts(len(ids), PREFILL_TOKENS, len(self._cache))
        for part in parts:
            self._model.model(mx.array([ids[part.start : part.stop]]), self._cache)
            mx.eval([layer.state for layer in self._cache])
            mx.clear_cache()
        hidden = self._model.model(mx.array([ids[last.start :]]), self._cache)
        self._logits = self._head(hidden[:, -1:])[:, -1]
        mx.eval(self._logits)

    def decode(self, ids: Sequence[int], stamp: Callable[[], None]) -> None:
        """Builds the next graph while one runs, as mlx-lm does."""
        ahead: mx.array | None = None
        for token in ids:
            logits = self._head(self._model.model(mx.array([[token]]), self._cache))[:, -1]
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            if ahead is not None:
                mx.eval(ahead)
                stamp()
            ahead = logits
        if ahead is not None:
            mx.eval(ahead)
            stamp()
            self._logits = ahead

    def trim(self, length: int) -> None:
        """Removes every position from `length` on."""
        for layer in self._cache:
            if length > layer.offset:
                raise ValueError(f"the cache holds {layer.offset} positions, not {length}")
            layer.trim(layer.offset - length)

    def last_logits(self) -> Logits:
        """Logits of the last step or prefill."""
        return np.array(self._logits.astype(mx.float32)).ravel()

    def facts(self) -> EngineFacts:
        """From the loaded arrays and the cache."""
        # One layer's keys and values; of a quantised cache codes, scales and biases.
        first = self._cache[0]
        stored = [array for _, array in tree_flatten((first.keys, first.values))]
        per_position = sum(a.shape[1] * a.shape[3] * a.itemsize for a in stored)
        kv_dtype, remarks = _name(stored[0].dtype), _cpu_remarks()
        if (bits := getattr(first, "bits", None)) is not None:
            kv_dtype = f"{bits} bits in groups of {first.group_size}"
            remarks.insert(0, f"keys and values are stored in {bits} bits (--kv-bits {bits})")
        return EngineFacts(
            device=str(mx.device_info().get("device_name", mx.default_device())),
            compute_dtype=_name(self._logits.dtype),
            kv_dtype=kv_dtype,
            threads=None,
            weight_bytes_per_token=self._weight_bytes_per_token(),
            kv_bytes_per_position=per_position * len(self._cache),
            remarks=remarks,
        )

    def _weight_bytes_per_token(self) -> int:
        """All weights; one row of an embedding table that is not the head too."""
        arrays = dict(tree_flatten(self._model.parameters()))
        total = int(sum(a.nbytes for a in arrays.values()))
        if any(name.startswith("lm_head.") for name in arrays):
            table = (a for name, a in arrays.items() if ".embed_tokens." in name)
            total -= int(sum(a.nbytes - a.nbytes // a.shape[0] for a in table))
        return total

    def peak_device_bytes(self) -> int:
        """MLX's peak."""
        return int(mx.get_peak_memory())


def open_ours(path: Path, kv_bits: int | None = None) -> MlxEngine:
    """Our network; the cache grows as needed and MLX chooses its threads."""
    model = load_model(path)
    return MlxEngine(model, model.head, make_cache(model, kv_bits))


def open_mlx_lm(path: Path) -> MlxEngine:
    """mlx-lm's network on the same files, in our compute dtype.

    An EdgeError where only our network can run the artefact.
    """
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model as load_peer

    if has_input_orders(path):
        raise EdgeError(
            f"{path} keeps the act-order of its GPTQ source, which mlx-lm does not support; "
            f"leave out --peers, or convert with --requantise."
        )
    model, _ = load_peer(path)
    model.set_dtype(compute_dtype())
    mx.eval(model.parameters())
    return MlxEngine(model, model.lm_head, make_prompt_cache(model))


def _cpu_remarks() -> list[str]:
    if mx.default_device().type == mx.DeviceType.gpu:
        return []
    return [FLOAT32_REMARK.format(blas=blas()), *problems()]


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
