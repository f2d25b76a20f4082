"""Reference logits: our network in float32, one layer in memory at a time.

A 3B model in float32 takes 11 GB, one layer of it 0.3 GB. Run as `python -m
edge.bench.reference`, so that its memory is free before anything is measured.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_unflatten

from edge.bench.engines.engine import Logits
from edge.bench.gate import CHECKPOINT, PREFILLED, Digest, gate_tokens, make_digest, rounded
from edge.child import child_main, run_child
from edge.convert.checkpoint import Checkpoint, open_path, reopened
from edge.convert.sources.weights import Weights
from edge.convert.verify import F16_STEP, TensorError, tensor_errors
from edge.device.software import TF32
from edge.model.config import ModelConfig
from edge.model.stablelm import DecoderLayer, Model
from edge.model.tensors import expected_shapes

TIMEOUT_S = 1800
HEAD_ROWS = 8192
SETTINGS = (
    *("vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("rotary_dims", "rope_theta", "layer_norm_eps", "use_parallel_residual", "qk_layernorm"),
)


def reference_job(checkpoint: Checkpoint, artefacts: Sequence[str]) -> dict[str, Digest]:
    """Digests by the artefact's path, the checkpoint's under CHECKPOINT, from a child process.

    An EdgeError with the reason where that fails.
    """
    asked = {**checkpoint.question(), "artefacts": list(artefacts)}
    exact = {TF32: "0"}  # on M5 float32 products are rounded otherwise
    name = "the reference logits"
    found: dict[str, Digest] = run_child("edge.bench.reference", asked, TIMEOUT_S, name, exact)
    return found


def references(checkpoint: Checkpoint, artefacts: list[str]) -> Iterator[tuple[str, Digest]]:
    """The checkpoint's digest, then each artefact's with its settings and worst tensor.

    All with the checkpoint's config; differences of the artefact's config are its `settings`.
    """
    config = checkpoint.config
    yield CHECKPOINT, _digest(config, checkpoint.weights)
    for path in artefacts:
        opened = open_path(Path(path))
        digest = _digest(config, opened.weights)
        digest["settings"] = _other_settings(opened.config, config)
        yield path, {**digest, **_worst_tensor(opened.weights, checkpoint)}


def _digest(config: ModelConfig, weights: Weights) -> Digest:
    return make_digest(list(reference_logits(config, weights)), config.vocab_size)


def _other_settings(found: ModelConfig, wanted: ModelConfig) -> list[str]:
    ours, theirs = _settings(found), _settings(wanted)
    pairs = ((name, ours.get(name), theirs.get(name)) for name in ours | theirs)
    return [f"{name} {a} instead of {b}" for name, a, b in pairs if a != b]


def _settings(config: ModelConfig) -> dict[str, str]:
    """Numbers with the six digits that GGUF's float32 keeps."""
    scaling = config.rope_scaling.to_dict() if config.rope_scaling else {}
    values = {name: getattr(config, name) for name in SETTINGS} | scaling
    return {n: f"{v:g}" if isinstance(v, (int, float)) else str(v) for n, v in values.items()}


def _worst_tensor(weights: Weights, checkpoint: Checkpoint) -> dict[str, Any]:
    """The tensor with the largest error; its error is None where it is not finite."""
    found = (e for e in tensor_errors(weights, checkpoint) if e.largest > F16_STEP)
    none = TensorError("", 0.0, 0.0)
    worst = max(found, key=lambda e: (not isfinite(e.relative), e.relative), default=none)
    return {"tensor": worst.name, "tensor_error": rounded(worst.relative)}


def reference_logits(config: ModelConfig, weights: Weights) -> Logits:
    """Float32 logits (positions, vocab) of the gate's prompt, from PREFILLED - 1 on."""
    # A network of one layer; its sanitize stacks q/k norms.
    one = Model(replace(config, num_hidden_layers=1))
    table = "model.embed_tokens.weight"
    ids = gate_tokens(config.vocab_size)
    x = mx.concatenate([_read(weights, table, i, i + 1) for i in ids])[None]
    for layer in range(config.num_hidden_layers):
        x = _layer(weights, one, layer)(x, "causal", None)
        mx.eval(x)
    norm = one.model.norm
    norm.update({name: _read(weights, f"model.norm.{name}") for name in norm.parameters()})
    h = np.array(norm(x)[0, PREFILLED - 1 :])
    head = table if config.tie_word_embeddings else "lm_head.weight"
    vocab = config.vocab_size
    starts = range(0, vocab, HEAD_ROWS)
    parts = (weights.read(head, i, min(vocab, i + HEAD_ROWS)) for i in starts)
    return np.concatenate([h @ part.astype(np.float32).T for part in parts], axis=1)


def _layer(weights: Weights, one: Model, number: int) -> DecoderLayer:
    here, there = "model.layers.0.", f"model.layers.{number}."
    names = (name for name in expected_shapes(one.config) if name.startswith(here))
    read = one.sanitize({n: _read(weights, there + n.removeprefix(here)) for n in names})
    layer = DecoderLayer(one.config, one.layers[0].self_attn.rope, one.part)
    layer.update(tree_unflatten([(k.removeprefix(here), v) for k, v in read.items()]))
    for part in (layer.self_attn, layer.mlp):
        matrices = {n: m for n, m in part.children().items() if isinstance(m, nn.Linear)}
        part.update_modules({name: _NumpyLinear(m) for name, m in matrices.items()})
    return layer


class _NumpyLinear(nn.Module):  # type: ignore[misc]
    """A linear layer in numpy, independent of the products that are checked."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self._weight = np.array(linear.weight)
        self._bias = np.array(linear.bias) if "bias" in linear else np.float32(0)

    def __call__(self, x: mx.array) -> mx.array:
        """x (..., in) -> (..., out)."""
        return mx.array(np.array(x) @ self._weight.T + self._bias)


def _read(weights: Weights, name: str, start: int = 0, stop: int | None = None) -> mx.array:
    return mx.array(weights.read(name, start, stop)).astype(mx.float32)


if __name__ == "__main__":
    sys.exit(child_main(lambda asked: dict(references(reopened(asked), asked["artefacts"]))))
