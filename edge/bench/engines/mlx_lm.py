"""mlx-lm's networks: the peer on edge's artefacts, and any network that it knows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import (
    KVCache,
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.utils import load_model

from edge.bench.engines.mlx import MlxEngine
from edge.errors import EdgeError
from edge.formats.folder import weight_files
from edge.generate.decode import PREFILL_TOKENS
from edge.model.load import compute_dtype, has_input_orders
from edge.model.stablelm import current_backend

EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
READ_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_k")


def open_peer(path: Path) -> MlxEngine:
    """mlx-lm's network on an artefact of edge, in our compute dtype and called as ours is."""
    model, _ = _load(path)
    model.set_dtype(compute_dtype())
    mx.eval(model.parameters())
    head = getattr(model, "lm_head", None) or model.model.embed_tokens.as_linear
    return MlxEngine(model, head, make_prompt_cache(model))


def open_any(path: Path) -> "AnyNetwork":
    """A network of any architecture, called as mlx-lm calls it.

    On a GPU in the dtype of its files: some networks overflow float16.
    """
    model, config = _load(path)
    if current_backend() == "cpu":
        model.set_dtype(compute_dtype())
    mx.eval(model.parameters())
    inner = config.get("text_config") or config
    experts, read = (
        next((inner[key] for key in keys if isinstance(inner.get(key), int)), 0)
        for keys in (EXPERT_KEYS, READ_KEYS)
    )
    return AnyNetwork(model, experts, read / experts if experts else 1.0)


class AnyNetwork(MlxEngine):
    """A network of which only its call is known; one token reads `read_share` of its experts."""

    def __init__(self, model: Any, experts: int, read_share: float):
        super().__init__(model, model, make_prompt_cache(model))
        self._experts, self._read_share = experts, read_share
        self._ids: list[int] = []

    def prefill(self, ids: Sequence[int]) -> None:
        """Evaluates only the cache for all but the last id, as mlx-lm's `generate` does."""
        *before, last = ids
        for start in range(0, len(before), PREFILL_TOKENS):
            self._extend(before[start : start + PREFILL_TOKENS])
            mx.eval([layer.state for layer in self._cache])
            mx.clear_cache()
        self._logits = self._next(last)
        mx.eval(self._logits)

    def _next(self, token: int) -> mx.array:
        return self._extend([token])[:, -1]

    def _extend(self, ids: list[int]) -> mx.array:
        self._ids += ids
        logits: mx.array = self._model(mx.array([ids]), cache=self._cache)
        return logits

    def trim(self, length: int) -> None:
        """Removes every position from `length` on; a cache that cannot is filled again."""
        kept, removed = self._ids[:length], len(self._ids) - length
        if removed and can_trim_prompt_cache(self._cache):
            trim_prompt_cache(self._cache, removed)
            self._ids = kept
        elif removed:
            self._cache, self._ids = make_prompt_cache(self._model), []
            if kept:
                self.prefill(kept)

    def growing(self) -> list[Any]:
        return [layer for layer in self._cache if isinstance(layer, KVCache)]

    def weight_bytes_per_token(self) -> int:
        """All weights but the experts that a token does not read."""
        arrays = (array for _, array in tree_flatten(self._model.parameters()))
        of_experts = (a.nbytes for a in arrays if a.ndim > 2 and a.shape[0] == self._experts)
        return super().weight_bytes_per_token() - int(sum(of_experts) * (1 - self._read_share))


def _load(path: Path) -> tuple[Any, dict[str, Any]]:
    if has_input_orders(path):
        raise EdgeError(
            f"{path} keeps the act-order of its GPTQ source, which mlx-lm does not support; "
            f"convert with --requantise, or leave out --peers."
        )
    # What mlx-lm reads: the last of several tensors of one name wins.
    if extra := sorted({*path.glob("model*.safetensors")} - {*weight_files(path)}):
        raise EdgeError(f"mlx-lm would also read {extra[0]}; move it to another folder.")
    try:
        model, config = load_model(path)
    except Exception as error:  # of any class, for unknown or damaged networks
        reason = " ".join(str(error).split()).rstrip(".")
        raise EdgeError(
            f"mlx-lm cannot load {path} ({type(error).__name__}: {reason}); update mlx-lm, or "
            f"download the model again."
        ) from None
    return model, config
