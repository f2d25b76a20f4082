"""Quantisation that looks at what the weights do: mlx-lm's GPTQ, AWQ and DWQ.

They run on mlx-lm's own networks, so that what is learned is what plain `mlx_lm.load`
will run. What mlx-lm lacks is here: GPTQ one block at a time (its own keeps the Hessian of
every matrix at once, 11 GB for 3 billion parameters, and never shows a block what the
quantised ones before it make of its inputs), AWQ's settings for StableLM, and texts that
are not downloaded.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from edge.checkpoints.artefacts.calibration import Ids, sequences
from edge.checkpoints.artefacts.learned_network import awq_settings, network
from edge.errors import EdgeError
from edge.model.config import ModelConfig, read_config
from edge.model.tensors import check_shapes, is_ignored

Progress = Callable[[float], None]
# The bits of mlx-lm's GPTQ are those that divide 32; DWQ trains nothing at 8.
BITS = {"gptq": (2, 4, 8), "awq": (2, 3, 4, 5, 6, 8), "dwq": (2, 3, 4, 5, 6)}
# Sequences and their length. A Hessian is whole from as many tokens as a row has weights.
ON_CPU, ON_GPU = (32, 256), (128, 512)
BATCH = 4
VALIDATION_SHARE = 8
BAR = re.compile(r"(\d+)/(\d+) \[")


@dataclass(frozen=True)
class Learning:
    """How to learn.

    Attributes:
        method: gptq, awq or dwq.
        bits: width of a code.
        group_size: how many weights share a scale and a bias.
        sequences: how many pieces of the text to look at; by default what the device does in
            minutes (on a CPU for models like the demo).
        sequence_tokens: how long each is, at most the model's context; by default likewise.
        seed: decides which pieces, and in which order.
        learning_rate: by what share of the mean scale DWQ moves scales and biases in a step.
    """

    method: str
    bits: int = 4
    group_size: int = 64
    sequences: int | None = None
    sequence_tokens: int | None = None
    seed: int = 0
    learning_rate: float = 0.002


@dataclass(frozen=True)
class Learned:
    """What an MLX artefact holds.

    `tensors` by name, codes uint32 and all else float16; `quantization` as in config.json.
    """

    tensors: dict[str, mx.array]
    quantization: dict[str, Any]


def learn(path: Path, learning: Learning, text: str, tokenizer: Any, progress: Progress) -> Learned:
    """Quantise a float model with the help of a text.

    Args:
        path: a directory with config.json and float *.safetensors.
        learning: how.
        text: what the model is for, see `calibration`.
        tokenizer: has `encode(text) -> ids`.
        progress: told the finished fraction, 0 to 1.

    Raises:
        EdgeError: the method has no such bits or group size, the model is quantised already or
            damaged, the text is too short, or DWQ diverged.
    """
    config, weights = _read(path)
    _check(learning, config, weights, path)
    count, tokens = ON_CPU if _on_cpu() else ON_GPU
    tokens = min(learning.sequence_tokens or tokens, config.max_position_embeddings)
    ids = sequences(tokenizer, text, tokens, learning.sequences or count, learning.seed)
    mx.random.seed(learning.seed)
    model = network(config)
    model.load_weights(list(weights.items()))
    run = {"gptq": _gptq, "awq": _awq, "dwq": _dwq}[learning.method]
    run(model, ids, learning, progress)
    progress(1.0)
    quantization = {"group_size": learning.group_size, "bits": learning.bits, "mode": "affine"}
    return Learned(_exported(model), quantization)


def _read(path: Path) -> tuple[ModelConfig, dict[str, mx.array]]:
    """The config and its tensors, which MLX reads from disk when they are used."""
    weights: dict[str, mx.array] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            loaded = mx.load(str(file))
        except (RuntimeError, ValueError, OSError) as error:
            raise EdgeError(
                f"{file} cannot be read ({error}); convert or download the model again."
            ) from None
        assert isinstance(loaded, dict)  # safetensors without metadata always is
        weights |= {name: array for name, array in loaded.items() if not is_ignored(name)}
    config = read_config(path / "config.json").matching(weights)
    return config, weights


def _check(
    learning: Learning, config: ModelConfig, weights: dict[str, mx.array], path: Path
) -> None:
    if learning.bits not in BITS[learning.method]:
        raise EdgeError(
            f"{learning.method} cannot make {learning.bits} bits; choose from "
            f"{', '.join(map(str, BITS[learning.method]))}."
        )
    if any(array.dtype == mx.uint32 for array in weights.values()):
        raise EdgeError(f"{path} is quantised already; learn from the checkpoint or mlx-fp16.")
    check_shapes(config, {name: array.shape for name, array in weights.items()}, str(path))
    for name, array in weights.items():
        if array.ndim == 2 and array.shape[1] % learning.group_size:
            raise EdgeError(
                f"{path}: rows of {name} have {array.shape[1]} weights, which do not divide into "
                f"groups of {learning.group_size}; choose another group size."
            )


def _gptq(model: Any, ids: Ids, learning: Learning, progress: Progress) -> None:
    """Block after block, each seeing what the quantised ones before it put out.

    In float32, since sums of squares leave float16's range.
    """
    body = model.model
    body.embed_tokens = _rounded(body.embed_tokens, learning)
    hidden = body.embed_tokens(mx.array(ids)).astype(mx.float32)
    for done, layer in enumerate(body.layers):
        progress(done / (len(body.layers) + 1))
        layer.set_dtype(mx.float32)
        block = _Block(layer)
        _gptq_quantise(block, hidden, learning)
        hidden = block.all(hidden)
    body.norm.set_dtype(mx.float32)
    if "lm_head" in model:
        progress(len(body.layers) / (len(body.layers) + 1))
        model.lm_head.set_dtype(mx.float32)
        head = _Head(model.lm_head)
        _gptq_quantise(head, body.norm(hidden), learning)
        model.lm_head = head.inner


def _gptq_quantise(block: nn.Module, inputs: mx.array, learning: Learning) -> None:
    from mlx_lm.quant.gptq import gptq_quantize

    bits, group_size = learning.bits, learning.group_size
    with _quiet(lambda done: None):
        gptq_quantize(block, inputs, bits, group_size, bits, group_size, batch_size=BATCH)
    mx.eval(block.parameters())
    mx.clear_cache()


class _Block(nn.Module):  # type: ignore[misc]
    """One block as a network of its own."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner = inner

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, L, hidden) -> same shape."""
        y: mx.array = self.inner(x, "causal")
        return y

    def all(self, x: mx.array) -> mx.array:
        """The same in batches, computed."""
        parts = []
        for start in range(0, x.shape[0], BATCH):
            parts.append(self(x[start : start + BATCH]))
            mx.eval(parts[-1])
        return mx.concatenate(parts)


class _Head(_Block):
    """The language-model head as a network of its own."""

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, L, hidden) -> (B, L, vocab)."""
        logits: mx.array = self.inner(x)
        return logits


def _awq(model: Any, ids: Ids, learning: Learning, progress: Progress) -> None:
    from mlx_lm.quant.awq import awq_quantize

    model.set_dtype(mx.float32 if _on_cpu() else mx.float16)
    with _quiet(progress):
        awq_quantize(
            model,
            mx.array(ids),
            awq_settings(model),
            group_size=learning.group_size,
            bits=learning.bits,
            embed_group_size=learning.group_size,
            embed_bits=learning.bits,
        )


def _dwq(model: Any, ids: Ids, learning: Learning, progress: Progress) -> None:
    """Train scales and biases to give the float model's distribution.

    On a GPU in bfloat16 as mlx-lm does: gradients leave float16's range.
    """
    from mlx.optimizers import Adam
    from mlx_lm.quant.dwq import dwq_quantize

    if len(ids) < 2:
        raise EdgeError(
            "dwq needs two sequences, to learn from and to check; choose a longer text."
        )
    dtype = mx.float32 if _on_cpu() else mx.bfloat16
    model.set_dtype(dtype)
    teacher = copy.deepcopy(model)
    nn.quantize(model, group_size=learning.group_size, bits=learning.bits)
    pieces = [(piece.tolist(), 0) for piece in ids]
    split = max(1, len(pieces) // VALIDATION_SHARE)
    with _quiet(progress) as said:
        dwq_quantize(
            model,
            lambda batch, step, split: teacher(batch),
            Adam(learning_rate=learning.learning_rate * _mean_scale(model), bias_correction=True),
            train_data=pieces[split:],
            valid_data=pieces[:split],
            batch_size=min(BATCH, split),
            max_seq_length=ids.shape[1],
            seed=learning.seed,
            dtype=dtype,
        )
    model.eval()
    if "WARNING" in said.getvalue():
        raise EdgeError(
            f"dwq ended farther from the float model than plain rounding; lower the learning "
            f"rate from {learning.learning_rate:g}, or calibrate on a longer text."
        )


def _mean_scale(model: Any) -> float:
    """What one step of a code is worth on average, over all matrices."""
    tensors = tree_flatten(model.parameters())
    means = [mx.abs(array).mean() for name, array in tensors if name.endswith(".scales")]
    mean = mx.stack(means).mean().item()
    assert isinstance(mean, float)  # of a float array
    return mean


def _rounded(module: Any, learning: Learning) -> Any:
    return module.to_quantized(group_size=learning.group_size, bits=learning.bits)


def _exported(model: Any) -> dict[str, mx.array]:
    tensors: dict[str, mx.array] = {}
    for name, array in tree_flatten(model.parameters()):
        codes = array.dtype == mx.uint32
        tensors[name] = array if codes else array.astype(mx.float16)
        if not codes and not mx.isfinite(tensors[name]).all().item():
            raise EdgeError(
                f"learning made values of {name} that float16 cannot hold; "
                f"choose another method or more bits."
            )
    return tensors


def _on_cpu() -> bool:
    return bool(mx.default_device().type == mx.DeviceType.cpu)


@contextmanager
def _quiet(progress: Progress) -> Iterator[io.StringIO]:
    """Meanwhile, turn mlx-lm's bars into progress and keep what it prints."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(_Bars(progress)):
        yield said


class _Bars(io.StringIO):
    """Reads "3/32 [" in bars, except those of the validations in between."""

    def __init__(self, progress: Progress):
        super().__init__()
        self._progress = progress

    def write(self, text: str) -> int:
        """One redrawn bar."""
        match = BAR.search(text)
        if match and "validation" not in text:
            self._progress(int(match[1]) / max(1, int(match[2])))
        return len(text)
