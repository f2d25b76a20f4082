"""StableLM (Stable Code 3B, 3B 4E1T, StableLM 2) and Llama (Code Llama) for MLX.

StableLM rotates only the first quarter of every head and has LayerNorms with bias; larger ones
add q/k/v bias, a LayerNorm per query and key head, and a parallel residual. Parameter names are
those of transformers' `StableLmForCausalLM` and `LlamaForCausalLM`, except for the matrices that
`Model.fuse` joins: qkv_proj and gate_up_proj.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
from mlx import nn

from edge.model.backend import Backend, compiles, current_backend
from edge.model.config import ModelConfig
from edge.model.rotary import RotaryEmbedding
from edge.model.shard import WHOLE, Part

# The KV cache of one layer: `edge.model.kv_cache.KVCache` or any of mlx-lm's. It has `offset`,
# `state`, `update_and_fetch`, `is_trimmable` and `trim`, and may have `make_mask`.
Cache = Any
Mask = mx.array | str | None
Heads = tuple[mx.array, mx.array, mx.array]  # queries, keys and values

# MLX has a fused attention for decoding at these head widths only (MLX 0.32.4's
# ScaledDotProductAttention::use_fallback; on CUDA its sdpa_vector kernels); at others all scores
# are written to memory. So q, k and v are padded with zeros to the next width: 80 (Stable Code 3B)
# to 96, which makes the cache a fifth larger. Padded weights would be 6.6 % more bytes a token.
FUSED_DECODE_WIDTHS: dict[Backend, tuple[int, ...]] = {
    "metal": (64, 96, 128, 192, 256, 512),
    "cuda": (64, 96, 128),
    "cpu": (),
}
# A core's L2 cache. Joining matrices saves kernel launches, which a CPU does not have: on two
# Zen 5 cores the demo decodes 1.1 times as fast; at Stable Code 3B's width nothing is gained.
MAX_JOINED_ON_CPU_BYTES = 2 << 20
# With more queries than this (the limit of MLX's decode kernel) a quantised cache is dequantised
# first: the scores of 2048 queries on 8192 positions would take gigabytes.
FEW_QUERIES = 8


def head_width(head_dim: int, backend: Backend | None = None) -> int:
    """Width of a head in the attention and its cache, after padding."""
    widths = FUSED_DECODE_WIDTHS[backend or current_backend()]
    return min((width for width in widths if width >= head_dim), default=head_dim)


COMPILED = {norm: mx.compile(norm) for norm in (mx.fast.layer_norm, mx.fast.rms_norm)}


def _normalised(norm: Callable[..., mx.array], x: mx.array, *weight_bias_eps: Any) -> mx.array:
    """x (B, L, ...) -> same shape."""
    return (COMPILED[norm] if compiles(x.shape[1]) else norm)(x, *weight_bias_eps)


class Norm(nn.Module):
    """LayerNorm with bias (StableLM) or RMSNorm (Llama)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.weight, self.eps = mx.ones((config.hidden_size,)), config.layer_norm_eps
        if config.model_type == "stablelm":
            self.bias = mx.zeros((config.hidden_size,))

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, L, hidden) -> same shape."""
        if "bias" in self:
            return _normalised(mx.fast.layer_norm, x, self.weight, self.bias, self.eps)
        return _normalised(mx.fast.rms_norm, x, self.weight, self.eps)


class PerHeadLayerNorm(nn.Module):
    """LayerNorm over each head with its own weight and no bias; weight (heads, head_dim)."""

    def __init__(self, heads: int, head_dim: int, eps: float):
        super().__init__()
        self.weight = mx.ones((heads, head_dim))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, L, heads, head_dim) -> same shape."""
        return _normalised(mx.fast.layer_norm, x, None, None, self.eps) * self.weight


def stored_width(width: int, cache: Cache | None) -> int:
    """Width of heads in a cache: a quantised one stores whole groups."""
    group_size = getattr(cache, "group_size", None)
    return width if group_size is None else -(-width // group_size) * group_size


def padded(x: mx.array, width: int) -> mx.array:
    """x (..., head_dim) -> (..., width), filled with zeros."""
    missing = width - x.shape[-1]
    return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def attend(
    q: mx.array, k: mx.array, v: mx.array, cache: Cache | None, scale: float, mask: Mask
) -> mx.array:
    """q (B, heads, L, width), new k and v (B, kv_heads, L, width) -> same shape as q.

    No cast to float32: the fused attention accumulates in float32 anyway, and a cast would rewrite
    the whole key cache at every token.
    """
    if cache is not None:
        k, v = cache.update_and_fetch(k, v)
    if cache is not None and hasattr(cache, "bits"):  # k and v are codes, scales and biases
        how = {"group_size": cache.group_size, "bits": cache.bits}
        if q.shape[2] <= FEW_QUERIES:
            # Imported here: the plain cache does not need mlx-lm, which takes long to import.
            from mlx_lm.models.base import quantized_scaled_dot_product_attention

            return quantized_scaled_dot_product_attention(q, k, v, scale, mask, **how)
        k, v = mx.dequantize(*k, **how), mx.dequantize(*v, **how)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def _causal_mask(length: int, cache: Cache | None) -> Mask:
    if cache is not None and hasattr(cache, "make_mask"):  # a rotating cache has its own
        return cache.make_mask(length, return_array=False, window_size=None)
    return "causal" if length > 1 else None


class Attention(nn.Module):
    """Causal self-attention with partial rotary position embedding."""

    def __init__(self, config: ModelConfig, rope: RotaryEmbedding, part: Part):
        super().__init__()
        hidden, head, bias = config.hidden_size, config.head_dim, config.use_qkv_bias
        self.heads = config.num_attention_heads // part.size
        self.kv_heads = config.num_key_value_heads // part.size
        self.head_dim, self.width = head, head_width(head)
        self.scale = head**-0.5
        self.q_proj = nn.Linear(hidden, self.heads * head, bias=bias)
        self.k_proj = nn.Linear(hidden, self.kv_heads * head, bias=bias)
        self.v_proj = nn.Linear(hidden, self.kv_heads * head, bias=bias)
        self.o_proj = nn.Linear(self.heads * head, hidden, bias=config.use_o_bias)
        if config.qk_layernorm:
            self.q_layernorm = PerHeadLayerNorm(self.heads, head, config.layer_norm_eps)
            self.k_layernorm = PerHeadLayerNorm(self.kv_heads, head, config.layer_norm_eps)
        # For `Model.set_input_orders`; the underscore keeps them out of `parameters()`.
        self._qkv_order: mx.array | None = None
        self._o_order: mx.array | None = None
        self.rope, self._part = rope, part

    def __call__(self, x: mx.array, mask: Mask, cache: Cache | None) -> mx.array:
        """x (B, L, hidden) -> (B, L, hidden), of several devices to be summed."""
        batch, length, _ = x.shape
        project = self._project_at_once if "qkv_proj" in self else self._project_apart
        width, offset = stored_width(self.width, cache), 0 if cache is None else cache.offset
        q, k, v = project(_reordered(x, self._qkv_order), width, offset)
        out = attend(q, k, v, cache, self.scale, mask)
        if width > self.head_dim:
            out = out[..., : self.head_dim]
        out = out.transpose(0, 2, 1, 3).reshape(batch, length, -1)
        if self._o_order is not None:  # its inputs are of all heads
            out = _reordered(self._part.join(out), self._o_order)
        return self.o_proj(out)

    def _project_apart(self, x: mx.array, width: int, offset: int) -> Heads:
        """x (B, L, hidden) -> q, k, v (B, heads, L, width), q and k rotated.

        Padding comes first: the rotation changes only the first dims of a head.
        """
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (proj(x).reshape(shape) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if "q_layernorm" in self:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        q, k, v = (padded(t, width).transpose(0, 2, 1, 3) for t in (q, k, v))
        return self.rope(q, offset), self.rope(k, offset), v

    def _project_at_once(self, x: mx.array, width: int, offset: int) -> Heads:
        """As `_project_apart`, with one padding for all heads and one rotation for q and k."""
        qkv = self.qkv_proj(x).reshape(*x.shape[:2], -1, self.head_dim)
        ends = [self.heads, self.heads + self.kv_heads]
        if "q_layernorm" in self:
            q, k, v = mx.split(qkv, ends, axis=2)
            qkv = mx.concatenate([self.q_layernorm(q), self.k_layernorm(k), v], axis=2)
        qkv = padded(qkv, width).transpose(0, 2, 1, 3)
        qk = self.rope(qkv[:, : ends[1]], offset)
        return qk[:, : ends[0]], qk[:, ends[0] :], qkv[:, ends[1] :]


def _reordered(x: mx.array, order: mx.array | None) -> mx.array:
    """x (..., width) with its last axis permuted for the next matrix."""
    return x if order is None else mx.take(x, order, axis=-1)


class MLP(nn.Module):
    """Gated feed-forward (SwiGLU)."""

    def __init__(self, config: ModelConfig, part: Part):
        super().__init__()
        hidden, bias = config.hidden_size, config.use_mlp_bias
        inner = config.intermediate_size // part.size
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self._gate_up_order: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, L, hidden) -> (B, L, hidden), of several devices to be summed."""
        x = _reordered(x, self._gate_up_order)
        if "gate_up_proj" in self:
            gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(_swiglu(gate, up))


@partial(mx.compile, shapeless=True)  # one kernel, as in mlx-lm, which takes long to import
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return nn.silu(gate) * up


class DecoderLayer(nn.Module):
    """One block; with a parallel residual both halves read the same normalised input."""

    def __init__(self, config: ModelConfig, rope: RotaryEmbedding, part: Part):
        super().__init__()
        self.self_attn = Attention(config, rope, part)
        self.mlp = MLP(config, part)
        self.input_layernorm = Norm(config)
        self.parallel = config.use_parallel_residual
        if not self.parallel:
            self.post_attention_layernorm = Norm(config)
        self._part = part

    def __call__(self, x: mx.array, mask: Mask, cache: Cache | None) -> mx.array:
        """x (B, L, hidden) -> (B, L, hidden)."""
        h = self.input_layernorm(x)
        attention = self.self_attn(h, mask, cache)
        if self.parallel:
            return x + self._part.sum(attention + self.mlp(h))
        x = x + self._part.sum(attention)
        return x + self._part.sum(self.mlp(self.post_attention_layernorm(x)))


class Backbone(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, config: ModelConfig, part: Part):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size // part.size, config.hidden_size)
        rope = RotaryEmbedding(config.rotary_dims, config.rope_theta, config.rope_scaling)
        self.layers = [DecoderLayer(config, rope, part) for _ in range(config.num_hidden_layers)]
        self.norm = Norm(config)
        self._part = part

    def __call__(self, ids: mx.array, cache: Sequence[Cache] | None) -> mx.array:
        """Ids (B, L) -> hidden states (B, L, hidden)."""
        x = self._embedded(ids)
        caches = cache if cache is not None else [None] * len(self.layers)
        mask = _causal_mask(ids.shape[1], caches[0])
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            x = layer(x, mask, layer_cache)
        return self.norm(x)

    def _embedded(self, ids: mx.array) -> mx.array:
        """Ids (B, L) -> their rows (B, L, hidden), each on one of the devices."""
        if self._part.size == 1:
            return self.embed_tokens(ids)
        rows = len(self.embed_tokens.weight)
        here = ids.astype(mx.int32) - self._part.rank * rows
        is_here = (here >= 0) & (here < rows)
        x = self.embed_tokens(mx.where(is_here, here, 0))
        return self._part.sum(mx.where(is_here[..., None], x, mx.zeros_like(x)))


class Model(nn.Module):
    """The network with its head; parameters have the checkpoint's names until `fuse`.

    With a `part` it has one device's slices of them, and all devices compute the same results.
    """

    def __init__(self, config: ModelConfig, part: Part = WHOLE):
        super().__init__()
        self.config, self.part = config, part
        self.model_type = config.model_type
        self.model = Backbone(config, part)
        if not config.tie_word_embeddings:
            vocabulary = config.vocab_size // part.size
            self.lm_head = nn.Linear(config.hidden_size, vocabulary, bias=False)

    def __call__(self, ids: mx.array, cache: Sequence[Cache] | None = None) -> mx.array:
        """Ids (B, L) -> logits (B, L, vocab); a cache is extended by L positions."""
        return self.head(self.model(ids, cache))

    def head(self, h: mx.array) -> mx.array:
        """Hidden states (B, L, hidden) -> logits (B, L, vocab)."""
        head = self.lm_head if "lm_head" in self else self.model.embed_tokens.as_linear
        return self.part.join(head(h))

    @property
    def layers(self) -> list[DecoderLayer]:
        """The blocks; mlx-lm makes one cache per layer."""
        return self.model.layers

    def fuse(self) -> None:
        """Joins matrices that read the same input, one layer after another to save memory.

        The last layer's q_proj stays separate: lazy evaluation skips it for most of a prompt, which
        saves 7 % of a prefill with 2 layers of Stable Code 3B's shape, 0.3 % with 32.
        """
        for layer in self.layers:
            if layer is not self.layers[-1]:
                _join(layer.self_attn, ("q_proj", "k_proj", "v_proj"), "qkv_proj")
            _join(layer.mlp, ("gate_proj", "up_proj"), "gate_up_proj")
            mx.eval(layer.parameters())

    def set_input_orders(self, orders: Mapping[str, mx.array]) -> None:
        """Sets the permutations of the matrices' inputs; see `tensors.input_order_shapes`."""
        for name, order in orders.items():
            _, _, layer, block, key = name.split(".")
            own = self.part.own(order.size) if key == "o_order" else slice(None)
            setattr(self.layers[int(layer)][block], f"_{key}", order[own])

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Weights by this network's names: q/k norms stacked, unused tensors dropped."""
        kept = {name: a for name, a in weights.items() if not self.config.drops(name)}
        if self.config.qk_layernorm:
            for number, layer in enumerate(self.layers):
                for norm in ("q_layernorm", "k_layernorm"):
                    stem = f"model.layers.{number}.self_attn.{norm}."
                    heads = range(len(layer.self_attn[norm].weight))
                    rows = [kept.pop(f"{stem}norms.{head}.weight") for head in heads]
                    kept[f"{stem}weight"] = mx.stack(rows)
        return kept


def _join(block: nn.Module, parts: Sequence[str], name: str) -> None:
    """Replaces linear layers with the same storage by one that has the rows of all."""
    first, *others = layers = [block[part] for part in parts]
    total_bytes = sum(array.nbytes for layer in layers for array in layer.parameters().values())
    if current_backend() == "cpu" and total_bytes > MAX_JOINED_ON_CPU_BYTES:
        return
    if any(_storage(layer) != _storage(first) for layer in others):
        return
    for key in first.parameters():
        first[key] = mx.concatenate([layer[key] for layer in layers])
    for part in parts:
        del block[part]
    block[name] = first


def _storage(layer: nn.Module) -> object:
    """Type, quantisation and arrays, which joined layers must share."""
    how = [getattr(layer, name, None) for name in ("bits", "group_size", "mode")]
    return type(layer), how, {n: (a.dtype, a.shape[1:]) for n, a in layer.parameters().items()}
