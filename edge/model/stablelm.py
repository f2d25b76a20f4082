"""The network for MLX: StableLM (Stable Code 3B, 3B 4E1T, StableLM 2) and Llama (Code Llama).

What sets StableLM apart from Llama: only the first quarter of every head is
rotated, norms are LayerNorms with bias, and the larger siblings add q/k/v bias,
a LayerNorm per query and key head, and a parallel residual. Follows Hugging Face
transformers' `StableLmForCausalLM` and `LlamaForCausalLM`, parameter names included,
but for the matrices that `Model.fuse` joins: qkv_proj and gate_up_proj.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import mlx.core as mx
from mlx import nn

from edge.model.attention import Cache, attend, padded, stored_width
from edge.model.config import ModelConfig
from edge.model.fusing import joined
from edge.model.variant import Variant, current_backend

# On a CPU MLX computes a norm or a rotation as a dozen operations. Of one position both are
# compiled; a longer prompt gains nothing by it, and each length would be compiled anew.
_layer_norm = mx.compile(mx.fast.layer_norm)
_rms_norm = mx.compile(mx.fast.rms_norm)


def _compiles(positions: int) -> bool:
    return positions == 1 and current_backend() == "cpu"


class LayerNorm(nn.LayerNorm):
    """LayerNorm with bias."""

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, L, hidden) -> same shape."""
        norm = _layer_norm if _compiles(x.shape[1]) else mx.fast.layer_norm
        return norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """RMSNorm."""

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, L, hidden) -> same shape."""
        norm = _rms_norm if _compiles(x.shape[1]) else mx.fast.rms_norm
        return norm(x, self.weight, self.eps)


class RotaryEmbedding(nn.RoPE):
    """Rotation of the first dims of each head by its position, halves paired as in GPT-NeoX.

    One for all layers: on a CPU they share the cosines and sines of a position.
    """

    def __init__(self, dims: int, base: float):
        super().__init__(dims, base=base)
        self._position: tuple[int, mx.array, mx.array] | None = None

    def __call__(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """x (B, heads, L, width) at positions offset to offset + L - 1 -> same shape."""
        if not _compiles(x.shape[2]) or not isinstance(offset, int):  # of a batch: an array
            return super().__call__(x, offset=offset)
        known = self._position
        if known is None or known[0] != offset:
            known = (offset, *_cosines_and_sines(mx.array(offset), self.dims, self.base))
            self._position = known
        return _rotated(x, *known[1:])


@mx.compile
def _cosines_and_sines(position: mx.array, dims: int, base: float) -> tuple[mx.array, mx.array]:
    """Those of the angles of one position, (dims / 2,) each; as `mx.fast.rope` has them."""
    half = dims // 2
    angles = position * mx.exp(mx.arange(0, -half, -1) * (math.log(base) / half))
    return mx.cos(angles), mx.sin(angles)


@mx.compile
def _rotated(x: mx.array, cosines: mx.array, sines: mx.array) -> mx.array:
    """X (B, heads, 1, width) -> the same shape."""
    half = cosines.size
    cosines, sines = cosines.astype(x.dtype), sines.astype(x.dtype)
    a, b, rest = mx.split(x, [half, 2 * half], axis=-1)
    both = [a * cosines - b * sines, b * cosines + a * sines]
    return mx.concatenate([*both, rest] if rest.size else both, axis=-1)


class PerHeadLayerNorm(nn.Module):
    """LayerNorm over each head with its own weight and no bias; weight (heads, head_dim)."""

    def __init__(self, heads: int, head_dim: int, eps: float):
        super().__init__()
        self.weight = mx.ones((heads, head_dim))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, L, heads, head_dim) -> same shape."""
        norm = _layer_norm if _compiles(x.shape[1]) else mx.fast.layer_norm
        return norm(x, None, None, self.eps) * self.weight


class Attention(nn.Module):
    """Causal self-attention with partial rotary position embedding.

    `_qkv_order` and `_o_order` permute the inputs of matrices stored so (see
    `tensors.input_order_shapes`); the underscore keeps them out of `parameters()`.
    """

    def __init__(self, config: ModelConfig, variant: Variant, rope: RotaryEmbedding):
        super().__init__()
        hidden, head = config.hidden_size, config.head_dim
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = head
        self.width = variant.head_width(head)
        self.scale = head**-0.5

        bias = config.use_qkv_bias
        self.q_proj = nn.Linear(hidden, self.heads * head, bias=bias)
        self.k_proj = nn.Linear(hidden, self.kv_heads * head, bias=bias)
        self.v_proj = nn.Linear(hidden, self.kv_heads * head, bias=bias)
        self.o_proj = nn.Linear(self.heads * head, hidden, bias=config.use_o_bias)
        self._qkv_order: mx.array | None = None
        self._o_order: mx.array | None = None
        self.rope = rope
        if config.qk_layernorm:
            eps = config.layer_norm_eps
            self.q_layernorm = PerHeadLayerNorm(self.heads, head, eps)
            self.k_layernorm = PerHeadLayerNorm(self.kv_heads, head, eps)

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Cache | None) -> mx.array:
        """x (B, L, hidden) -> (B, L, hidden)."""
        B, L, _ = x.shape
        x = _reordered(x, self._qkv_order)
        project = self._project_at_once if "qkv_proj" in self else self._project_apart
        width = stored_width(self.width, cache)
        q, k, v = project(x, width, 0 if cache is None else cache.offset)
        out = attend(q, k, v, cache, self.scale, mask)
        if width > self.head_dim:
            out = out[..., : self.head_dim]
        out = out.transpose(0, 2, 1, 3).reshape(B, L, -1)
        return self.o_proj(_reordered(out, self._o_order))

    def fuse(self) -> None:
        """Join q, k and v, unless they are stored in different ways."""
        qkv = joined([self.q_proj, self.k_proj, self.v_proj])
        if qkv is not None:
            self.qkv_proj = qkv
            del self["q_proj"], self["k_proj"], self["v_proj"]

    def _project_apart(
        self, x: mx.array, width: int, offset: int
    ) -> tuple[mx.array, mx.array, mx.array]:
        """x (B, L, hidden) -> q, k, v (B, heads, L, width), q and k rotated.

        Padding comes before the rotation, which leaves all but the first dims of a head alone.
        """
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (proj(x).reshape(shape) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if "q_layernorm" in self:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        q, k, v = (padded(t, width).transpose(0, 2, 1, 3) for t in (q, k, v))
        return self.rope(q, offset), self.rope(k, offset), v

    def _project_at_once(
        self, x: mx.array, width: int, offset: int
    ) -> tuple[mx.array, mx.array, mx.array]:
        """As `_project_apart`, with one padding for all heads and one rotation for q and k."""
        qkv = self.qkv_proj(x).reshape(*x.shape[:2], -1, self.head_dim)
        ends = [self.heads, self.heads + self.kv_heads]
        if "q_layernorm" in self:
            q, k, v = mx.split(qkv, ends, axis=2)
            qkv = mx.concatenate([self.q_layernorm(q), self.k_layernorm(k), v], axis=2)
        qkv = padded(qkv, width).transpose(0, 2, 1, 3)
        qk = self.rope(qkv[:, : ends[1]], offset)
        return qk[:, : ends[0]], qk[:, ends[0] :], qkv[:, ends[1] :]


class MLP(nn.Module):
    """Gated feed-forward (SwiGLU)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.use_mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self._gate_up_order: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, L, hidden) -> (B, L, hidden)."""
        x = _reordered(x, self._gate_up_order)
        if "gate_up_proj" in self:
            gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(_swiglu(gate, up))

    def fuse(self) -> None:
        """Join gate and up, unless they are stored in different ways."""
        gate_up = joined([self.gate_proj, self.up_proj])
        if gate_up is not None:
            self.gate_up_proj = gate_up
            del self["gate_proj"], self["up_proj"]


class DecoderLayer(nn.Module):
    """One block; with a parallel residual both halves read the same normalised input."""

    def __init__(self, config: ModelConfig, variant: Variant, rope: RotaryEmbedding):
        super().__init__()
        self.self_attn = Attention(config, variant, rope)
        self.mlp = MLP(config)
        self.input_layernorm = _norm(config)
        self.parallel = config.use_parallel_residual
        if not self.parallel:
            self.post_attention_layernorm = _norm(config)

    def __call__(self, x: mx.array, mask: mx.array | str | None, cache: Cache | None) -> mx.array:
        """x (B, L, hidden) -> (B, L, hidden)."""
        h = self.input_layernorm(x)
        attention = self.self_attn(h, mask, cache)
        if self.parallel:
            return x + attention + self.mlp(h)
        x = x + attention
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, config: ModelConfig, variant: Variant):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        rope = RotaryEmbedding(config.rotary_dims, config.rope_theta)
        self.layers = [DecoderLayer(config, variant, rope) for _ in range(config.num_hidden_layers)]
        self.norm = _norm(config)

    def __call__(self, ids: mx.array, cache: Sequence[Cache] | None) -> mx.array:
        """Ids (B, L) -> hidden states (B, L, hidden)."""
        x = self.embed_tokens(ids)
        caches = cache if cache is not None else [None] * len(self.layers)
        mask = _causal_mask(ids.shape[1], caches[0])
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            x = layer(x, mask, layer_cache)
        return self.norm(x)


class Model(nn.Module):
    """The network with its language-model head, called as mlx-lm's models are.

    Its parameters have the checkpoint's names until `fuse` joins some.
    """

    def __init__(self, config: ModelConfig, variant: Variant | None = None):
        super().__init__()
        self.config = config
        self.variant = variant or Variant()
        self.model_type = config.model_type
        self.model = Backbone(config, self.variant)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, ids: mx.array, cache: Sequence[Cache] | None = None) -> mx.array:
        """Ids (B, L) -> logits (B, L, vocab); the cache, if given, is extended by L."""
        return self.head(self.model(ids, cache))

    def head(self, h: mx.array) -> mx.array:
        """Hidden states (B, L, hidden) -> logits (B, L, vocab)."""
        if "lm_head" in self:
            return self.lm_head(h)
        return self.model.embed_tokens.as_linear(h)

    @property
    def layers(self) -> list[DecoderLayer]:
        """The blocks; mlx-lm makes one cache for each."""
        return self.model.layers

    def fuse(self) -> None:
        """Join matrices that read the same input, and evaluate, layer by layer.

        So only one layer's matrices are ever in memory twice. To be called once, when the
        weights are there.

        The last layer's q stays apart: of all positions of a prompt but the last only that
        layer's keys and values are needed, and what is not evaluated is not computed. With 2
        layers of Stable Code 3B's shape that is 7 % of a prefill, with 32 of them 0.3 %.
        """
        for layer in self.layers:
            if layer is not self.layers[-1]:
                layer.self_attn.fuse()
            layer.mlp.fuse()
            mx.eval(layer.parameters())

    def set_input_orders(self, orders: Mapping[str, mx.array]) -> None:
        """Gather inputs before matrices whose columns are stored in another order.

        Args:
            orders: permutations by their names in `tensors.input_order_shapes`.
        """
        for name, order in orders.items():
            _, _, layer, part, key = name.split(".")
            setattr(self.layers[int(layer)][part], f"_{key}", order)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Checkpoint names -> this network's: q/k norms stacked, unused tensors dropped."""
        config, kept = self.config, dict(weights)
        for name in list(kept):
            if name.endswith("rotary_emb.inv_freq"):
                del kept[name]
        if config.tie_word_embeddings:
            for name in [n for n in kept if n.startswith("lm_head.")]:
                del kept[name]
        if config.qk_layernorm:
            for layer in range(config.num_hidden_layers):
                for letter, heads in (
                    ("q", config.num_attention_heads),
                    ("k", config.num_key_value_heads),
                ):
                    stem = f"model.layers.{layer}.self_attn.{letter}_layernorm"
                    rows = [kept.pop(f"{stem}.norms.{i}.weight") for i in range(heads)]
                    kept[f"{stem}.weight"] = mx.stack(rows)
        return kept


@partial(mx.compile, shapeless=True)  # one kernel; mlx-lm's, whose package takes long to import
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """Two arrays (..., intermediate) -> one of the same shape."""
    return nn.silu(gate) * up


def _norm(config: ModelConfig) -> nn.Module:
    """RMSNorm in Llama, LayerNorm with bias in StableLM, over the hidden width."""
    kind = RMSNorm if config.model_type == "llama" else LayerNorm
    return kind(config.hidden_size, eps=config.layer_norm_eps)


def _reordered(x: mx.array, order: mx.array | None) -> mx.array:
    """X (..., width), its last axis in the order that the next matrix is stored in."""
    return x if order is None else mx.take(x, order, axis=-1)


def _causal_mask(length: int, cache: Cache | None) -> mx.array | str | None:
    """The mask for `length` new positions; the cache decides when it rotates."""
    if cache is not None and hasattr(cache, "make_mask"):
        mask: mx.array | str | None = cache.make_mask(length, return_array=False, window_size=None)
        return mask
    return "causal" if length > 1 else None
