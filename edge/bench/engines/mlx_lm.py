"""mlx-lm's networks: the peer on edge's artefacts, and any network that it knows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch
from mlx_lm.models.cache import (
    BatchKVCache,
    KVCache,
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.utils import load_model

from edge.bench.engines.engine import Ids, Logits, Rows
from edge.bench.engines.mlx import MlxEngine
from edge.errors import EdgeError
from edge.formats.folder import weight_files
from edge.generate.decode import PREFILL_TOKENS
from edge.model.backend import current_backend
from edge.model.load import compute_dtype, has_input_orders
from edge.profile.profile import EngineFacts

EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
BATCH_REMARK = (
    "mlx-lm's batches are computed by its BatchGenerator, in whose times is also that it turns "
    "logits into logarithms of probabilities"
)
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

    def prefill(self, ids: Ids) -> None:
        """Evaluates only the cache for all but the last id, as mlx-lm's `generate` does."""
        *before, last = ids
        for start in range(0, len(before), PREFILL_TOKENS):
            self._logits_of(before[start : start + PREFILL_TOKENS])
            mx.eval([layer.state for layer in self._cache])
            mx.clear_cache()
        self._logits = self._next([last])
        mx.eval(self._logits)

    def _next(self, tokens: Sequence[int]) -> mx.array:
        return self._logits_of(tokens)[:, -1]

    def _logits_of(self, ids: Sequence[int]) -> mx.array:
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


class PeerBatch(MlxEngine):
    """Several sequences of a network in mlx-lm's BatchGenerator, with one cache for all.

    It is given the ids that follow as if they were sampled.
    """

    def __init__(self, one: MlxEngine, sequences: int):
        super().__init__(one._model, one._head, ())
        self._one, self._sequences = one, sequences
        self._given: list[mx.array] = []
        sizes = {"completion_batch_size": sequences, "prefill_batch_size": sequences}
        self._generator = BatchGenerator(self._model, **sizes)
        self._empty()

    def _empty(self) -> None:
        layers = make_prompt_cache(self._model)
        if missing := [type(layer).__name__ for layer in layers if not hasattr(layer, "merge")]:
            raise EdgeError(f"mlx-lm computes no batches with its {missing[0]}; leave out -npl.")
        self._cache = [layer.merge([layer] * self._sequences) for layer in layers]
        self._rows: list[list[int]] = [[] for _ in range(self._sequences)]

    def _begin(self, ids: Rows) -> GenerationBatch:
        """Submits the prompts' passes, and makes the batch that continues them."""
        self._rows = [[*held, *row] for held, row in zip(self._rows, ids, strict=True)]
        numbers = list(range(self._sequences))
        limits = {"prefill_step_size": PREFILL_TOKENS, "max_tokens": [2**31] * self._sequences}
        prompts = PromptProcessingBatch(
            self._model, numbers, [], fallback_sampler=self._sample, **limits
        )
        prompts.prompt_cache = self._cache
        with mx.stream(self._generator.stream):
            batch = prompts.generate([list(row) for row in ids])
        self._generator._generation_batch = batch
        return batch

    def _sample(self, logprobs: mx.array) -> mx.array:
        return self._given.pop() if self._given else mx.zeros((self._sequences,), mx.int32)

    def prefill(self, ids: Rows) -> None:
        self._finish(self._begin(ids))

    def _finish(self, batch: GenerationBatch) -> None:
        mx.eval(batch._next_logprobs)
        self._logits = mx.stack(batch._next_logprobs)

    def decode(self, ids: Rows, stamp: Callable[[], None]) -> None:
        """Every step but the last is one of the generator's, which submits the next one."""
        first, *others = zip(*ids, strict=True)
        self._given = [mx.array(tokens) for tokens in reversed(others)]
        batch = self._begin([[token] for token in first])
        for _ in others:
            self._generator.next()
            stamp()
        self._finish(batch)
        stamp()
        self._rows = [[*held, *row[1:]] for held, row in zip(self._rows, ids, strict=True)]

    def trim(self, length: int) -> None:
        """Removes every position from `length` on; a cache that cannot is filled again."""
        kept, removed = [row[:length] for row in self._rows], len(self._rows[0]) - length
        is_equal = len({len(row) for row in self._rows}) == 1  # otherwise padded
        if removed and is_equal and can_trim_prompt_cache(self._cache):
            trim_prompt_cache(self._cache, removed)
            self._rows = kept
        elif removed:
            self._empty()
            if length:
                self.prefill(kept)

    def last_logits(self) -> Logits:
        return np.array(self._logits.astype(mx.float32))

    def growing(self) -> list[Any]:
        return [layer for layer in self._cache if isinstance(layer, BatchKVCache)]

    def facts(self) -> EngineFacts:
        facts = super().facts()
        facts.remarks.append(BATCH_REMARK)
        return facts

    def weight_bytes_per_token(self) -> int:
        return self._one.weight_bytes_per_token()

    def alone(self) -> MlxEngine:
        self._empty()
        return self._one

    def close(self) -> None:
        self._generator.close()


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
