"""MLX engines: our network, and mlx-lm's on the same files as a peer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from edge.bench.engines.engine import EngineFacts
from edge.errors import EdgeError
from edge.model.load import compute_dtype, has_input_orders, load_model
from edge.model.variant import Variant

# mlx-lm's default: bounds the memory of a long prefill.
PREFILL_CHUNK_TOKENS = 2048
FLOAT32_REMARK = (
    "MLX computes in float32 on this CPU, whose half-precision kernels are far slower, and its "
    "Linux build has the reference BLAS: not a figure to expect on a Mac"
)
Network = Callable[..., mx.array]


class MlxEngine:
    """Our network, or a model of mlx-lm's with the same parts.

    Args:
        backbone: ids (B, L) and the caches -> hidden states (B, L, hidden).
        head: hidden states -> logits.
        model: owns both; its parameters are counted, its layers get a cache each.
        remarks: what the facts shall say of how the network runs.
    """

    def __init__(self, backbone: Network, head: Network, model: Any, remarks: tuple[str, ...] = ()):
        from mlx_lm.models.cache import make_prompt_cache

        self._backbone = backbone
        self._head = head
        self._model = model
        self._remarks = remarks
        self._cache = make_prompt_cache(model)
        self._logits = mx.zeros((1,))

    def prefill(self, ids: Sequence[int]) -> None:
        """In chunks; the head runs on the last position only, as llama.cpp's does."""
        hidden = mx.zeros((1,))
        for start in range(0, len(ids), PREFILL_CHUNK_TOKENS):
            chunk = mx.array([ids[start : start + PREFILL_CHUNK_TOKENS]])
            hidden = self._backbone(chunk, self._cache)
            mx.eval(hidden)
        self._logits = self._head(hidden[:, -1:])[:, -1]
        mx.eval(self._logits)

    def decode(self, ids: Sequence[int], stamp: Callable[[], None]) -> None:
        """One step ahead, as mlx-lm decodes: the next graph is built while this one runs."""
        ahead: mx.array | None = None
        for token in ids:
            logits = self._step(token)
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
        """Forget every position from `length` on."""
        for layer in self._cache:
            if length > layer.offset:
                raise ValueError(f"the cache holds {layer.offset} positions, not {length}")
            layer.trim(layer.offset - length)

    def logits_are_finite(self) -> bool:
        """Whether the last logits are numbers."""
        return bool(mx.all(mx.isfinite(self._logits)).item())

    def facts(self) -> EngineFacts:
        """Read off the loaded arrays and the cache."""
        arrays = dict(tree_flatten(self._model.parameters()))
        table = {name: a for name, a in arrays.items() if ".embed_tokens." in name}
        total = sum(a.nbytes for a in arrays.values())
        if any(name.startswith("lm_head.") for name in arrays):
            total -= sum(a.nbytes - a.nbytes // a.shape[0] for a in table.values())
        keys, values = self._cache[0].keys, self._cache[0].values
        on_cpu = (FLOAT32_REMARK,) if compute_dtype() == mx.float32 else ()
        per_position = sum(a.nbytes // a.shape[2] for a in (keys, values))
        return EngineFacts(
            device=str(mx.device_info().get("device_name", mx.default_device())),
            compute_dtype=_name(self._logits.dtype),
            kv_dtype=_name(keys.dtype),
            threads=None,
            weight_bytes_per_token=total,
            kv_bytes_per_position=per_position * len(self._cache),
            remarks=(*self._remarks, *on_cpu),
        )

    def peak_device_bytes(self) -> int:
        """MLX's own count."""
        return int(mx.get_peak_memory())

    def _step(self, token: int) -> mx.array:
        return self._head(self._backbone(mx.array([[token]]), self._cache))[:, -1]


def open_ours(
    path: Path, context_tokens: int, threads: int, variant: Variant | None = None
) -> MlxEngine:
    """Our network; the cache grows as needed and MLX chooses its threads."""
    model = load_model(path, variant=variant)
    return MlxEngine(model.model, model.head, model, model.variant.remarks())


def open_mlx_lm(path: Path, context_tokens: int, threads: int) -> MlxEngine:
    """mlx-lm's network on the same files, in the compute dtype that ours has here.

    Raises:
        EdgeError: only our network can run the artefact.
    """
    from mlx_lm.utils import load_model as load_peer

    if has_input_orders(path):
        raise EdgeError(
            f"{path} keeps the act-order of its GPTQ source, which mlx-lm cannot follow; leave "
            f"out --peers, or convert with --requantise."
        )
    model, _ = load_peer(path)
    model.set_dtype(compute_dtype())
    mx.eval(model.parameters())
    return MlxEngine(model.model, model.lm_head, model)


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
