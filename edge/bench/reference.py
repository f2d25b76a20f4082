"""Reference logits: our network in float32, one layer in memory at a time.

A 3B model in float32 takes 11 GB, one layer of it 0.3 GB. Run as `python -m
edge.bench.reference`, so that its memory is free before anything is measured.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from math import isclose, isfinite
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_unflatten

from edge.bench.engines.engine import Logits
from edge.bench.gate import CHECKPOINT, PREFILLED, Digest, gate_tokens, make_digest
from edge.child import child_main, run_child
from edge.convert.checkpoint import Checkpoint, Corrections, open_checkpoint, open_path
from edge.convert.sources.weights import Weights
from edge.convert.verify import TensorError, tensor_errors
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
# float16's step near zero; tensors with smaller errors are not compared.
F16_STEP = 2.0**-24


def reference_job(checkpoint: Checkpoint, artefacts: Sequence[str]) -> dict[str, Digest]:
    """Digests by the artefact's path, the checkpoint's under CHECKPOINT, from a child process.

    An EdgeError with the reason where that fails.
    """
    source = checkpoint.source
    asked = {
        "model": source.origin if source.path is None else str(source.path),
        "corrections": asdict(checkpoint.corrections),
        "artefacts": list(artefacts),
    }
    exact = {TF32: "0"}  # on M5 float32 products are rounded otherwise
    name = "the reference logits"
    found: dict[str, Digest] = run_child("edge.bench.reference", asked, TIMEOUT_S, name, exact)
    return found


def _compute(asked: dict[str, Any]) -> dict[str, Digest]:
    corrections = Corrections(**asked["corrections"])
    checkpoint = open_checkpoint(asked["model"], corrections=corrections)
    return dict(references(checkpoint, asked["artefacts"]))


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
    logits = reference_logits(config, weights, gate_tokens(config.vocab_size), PREFILLED - 1)
    return make_digest(list(logits), config.vocab_size)


def _other_settings(found: ModelConfig, wanted: ModelConfig) -> list[str]:
    ours, theirs = _settings(found), _settings(wanted)
    pairs = ((name, ours.get(name), theirs.get(name)) for name in ours | theirs)
    return [f"{name} {_short(a)} instead of {_short(b)}" for name, a, b in pairs if not _same(a, b)]


def _settings(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling.to_dict() if config.rope_scaling else {}
    return {name: getattr(config, name) for name in SETTINGS} | scaling


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else f"{value}"


def _same(a: Any, b: Any) -> bool:
    """Equal, numbers within float32's precision, which is GGUF's."""
    is_numbers = isinstance(a, float) and isinstance(b, float)
    return isclose(a, b, rel_tol=1e-6) if is_numbers else a == b


def _worst_tensor(weights: Weights, checkpoint: Checkpoint) -> dict[str, Any]:
    """The tensor with the largest error; its error is None where it is not finite."""
    found = [e for e in tensor_errors(weights, checkpoint) if e.largest > F16_STEP]
    for error in found:
        if not isfinite(error.relative):
            return {"tensor": error.name, "tensor_error": None}
    worst = max(found, key=lambda e: e.relative, default=TensorError("", 0.0, 0.0))
    return {"tensor": worst.name, "tensor_error": worst.relative}


def reference_logits(
    config: ModelConfig, weights: Weights, ids: list[int], first: int = 0
) -> Logits:
    """Float32 logits (len(ids) - first, vocab) after the positions from `first` on."""
    # A network of one layer; its sanitize stacks q/k norms.
    one = Model(replace(config, num_hidden_layers=1))
    table = "model.embed_tokens.weight"
    x = mx.concatenate([_read(weights, table, i, i + 1) for i in ids])[None]
    for layer in range(config.num_hidden_layers):
        x = _layer(weights, one, layer)(x, "causal", None)
        mx.eval(x)
    norm = one.model.norm
    norm.update({name: _read(weights, f"model.norm.{name}") for name in norm.parameters()})
    h = np.array(norm(x)[0, first:])
    head = table if config.tie_word_embeddings else "lm_head.weight"
    vocab = config.vocab_size
    starts = range(0, vocab, HEAD_ROWS)
    parts = (weights.read(head, i, min(vocab, i + HEAD_ROWS)) for i in starts)
    return np.concatenate([h @ part.astype(np.float32).T for part in parts], axis=1)


def _layer(weights: Weights, one: Model, number: int) -> DecoderLayer:
    here, there = "model.layers.0.", f"model.layers.{number}."
    names = (name for name in expected_shapes(one.config) if name.startswith(here))
    read = one.sanitize({n: _read(weights, there + n.removeprefix(here)) for n in names})
    layer = DecoderLayer(one.config, one.layers[0].self_attn.rope)
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
    sys.exit(child_main(_compute))
