"""mlx-lm's networks, made fit for its own learned quantisation."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models import llama, stablelm

from edge.model.config import ModelConfig

BOTH_HALVES = "both_halves"
AFTER_NORM = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
)


def network(config: ModelConfig) -> Any:
    """mlx-lm's model without weights, its parameters named as in the checkpoint."""
    raw = config.to_dict()
    module: ModuleType = {"stablelm": stablelm, "llama": llama}[raw["model_type"]]
    arguments = module.ModelArgs.from_dict(raw)
    if module is llama:
        return llama.Model(arguments)
    model = _TiedModel(arguments) if config.tie_word_embeddings else stablelm.Model(arguments)
    model.model.layers = [_Layer(arguments) for _ in model.model.layers]
    return model


def awq_settings(model: Any) -> Any:
    """What AWQ may scale: a norm's output with the matrices that read it, and up with down."""
    from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS, ScaleConfig, update

    # Llama's names and order are StableLM's, and AWQ scales a LayerNorm's bias as well.
    settings = AWQ_MODEL_CONFIGS["llama"]
    if not getattr(model.layers[0], "use_parallel_residual", False):
        return settings
    # One norm feeds both halves, so all five matrices share its scales.
    shared = ScaleConfig(
        prev="input_layernorm", block=BOTH_HALVES, layers=list(AFTER_NORM), kwargs=["mask"]
    )
    down = ScaleConfig(prev="mlp.up_proj", layers=["mlp.down_proj"])
    return update(settings, scale_configs=[shared, down])


class _Layer(stablelm.DecoderLayer):  # type: ignore[misc]
    """Callable without a cache, as AWQ calls it, and able to show both its halves as one."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """x (B, L, hidden) -> same shape."""
        y: mx.array = super().__call__(x, mask, cache)
        return y

    def __getitem__(self, key: str) -> Any:
        return _BothHalves(self) if key == BOTH_HALVES else super().__getitem__(key)


class _BothHalves(nn.Module):  # type: ignore[misc]
    """What a parallel residual adds; a view, so that the layer's tree stays as it is."""

    def __init__(self, layer: _Layer):
        super().__init__()
        self.self_attn, self.mlp = layer.self_attn, layer.mlp

    def __call__(self, x: mx.array, mask: Any = None) -> mx.array:
        """Normalised x (B, L, hidden) -> same shape."""
        y: mx.array = self.self_attn(x, mask) + self.mlp(x)
        return y


class _TiedModel(stablelm.Model):  # type: ignore[misc]
    """mlx-lm's StableLM always has a head of its own."""

    def __init__(self, arguments: Any):
        super().__init__(arguments)
        del self.lm_head

    def __call__(self, x: mx.array, cache: Any = None) -> mx.array:
        """Ids (B, L) -> logits (B, L, vocab)."""
        logits: mx.array = self.model.embed_tokens.as_linear(self.model(x, cache))
        return logits
