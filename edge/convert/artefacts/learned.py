"""Quantisation that looks at what the weights do: GPTQ, by mlx-lm's quantiser.

It runs on mlx-lm's own networks, so that what is learned is what plain `mlx_lm.load` will run. What
mlx-lm lacks is here: GPTQ one block at a time (its own keeps the Hessian of every matrix at once,
11 GB for 3 billion parameters, and never shows a block what the quantised ones before it make of
its inputs), and texts that are not downloaded: a file of the user's, or this package's own source
code, which every installation has and no published checkpoint was trained on.
"""

import io
from collections.abc import Callable
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import llama, stablelm
from mlx_lm.quant.gptq import gptq_quantize
from mlx_lm.utils import load_tokenizer
from transformers.utils import logging

import edge
from edge.convert.artefacts.mlx import write_small_files
from edge.convert.artefacts.recipes import Recipe
from edge.convert.checkpoint import Checkpoint
from edge.errors import EdgeError
from edge.formats.files import read_text
from edge.formats.safetensors import Planned, ShardWriter
from edge.model.config import ModelConfig
from edge.model.load import read_directory

Ids = np.ndarray[Any, np.dtype[np.int32]]
Progress = Callable[[float], None]
# Sequences and their length. A Hessian is whole from as many tokens as a row has weights; on a
# CPU it is what models like the demo need.
ON_CPU, ON_GPU = (32, 256), (128, 512)
BATCH = 4
DTYPES = {mx.uint32: "U32", mx.float16: "F16"}
# What quality is measured on; of two files the tests measure on an old copy.
LEFT_OUT = {"data", "runner.py", "stats.py"}


def write_learned(
    checkpoint: Checkpoint,
    recipe: Recipe,
    source: Path,
    calibration: Path | None,
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, str], list[str]]:
    """Learn, and write an MLX artefact; SHA-256 of its files by name, and notes.

    `source` is an mlx-fp16 artefact of the checkpoint.

    Raises:
        EdgeError: the text is too short, or the group size does not divide the matrices' rows.
    """
    # It would warn of a text longer than the model's context, which is about to be cut.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    text = bundled_text() if calibration is None else read_text(calibration)
    count, tokens = ON_CPU if mx.default_device().type == mx.DeviceType.cpu else ON_GPU
    tokens = min(tokens, checkpoint.config.max_position_embeddings)
    ids = sequences(load_tokenizer(source), text, tokens, count)
    tensors = learn(source, recipe, ids, progress)
    folder.mkdir()
    plan = [Planned(name, DTYPES[array.dtype], array.shape) for name, array in tensors.items()]
    writer = ShardWriter(folder, plan)
    with closing(writer):
        for array in tensors.values():
            writer.write(np.asarray(array))
        writer.finish()
    quantization = {"group_size": recipe.group_size, "bits": recipe.bits, "mode": "affine"}
    small = write_small_files(checkpoint, recipe.dtype, quantization, folder)
    text_name = "edge's own source code" if calibration is None else calibration.name
    return writer.sha256 | small, [f"learned with GPTQ from {text_name}."]


def learn(path: Path, recipe: Recipe, ids: Ids, progress: Progress) -> dict[str, mx.array]:
    """Quantise an mlx-fp16 artefact with the help of a text's ids (sequences, tokens).

    The result is the artefact's tensors by name, codes uint32 and all else float16.
    """
    assert recipe.bits and recipe.group_size
    weights: dict[str, mx.array] = {}
    for file in sorted(path.glob("*.safetensors")):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)  # safetensors without metadata always is
        weights |= loaded
    for name, array in weights.items():
        if array.ndim == 2 and array.shape[1] % recipe.group_size:
            raise EdgeError(
                f"rows of {name} have {array.shape[1]} weights, which do not divide into groups "
                f"of {recipe.group_size}; choose another --group-size."
            )
    model = network(read_directory(path)[1].matching(weights))
    model.load_weights(list(weights.items()))
    _quantise(model, mx.array(ids), recipe, progress)
    progress(1.0)
    return _exported(model)


def network(config: ModelConfig) -> Any:
    """mlx-lm's model without weights, its parameters named as in the checkpoint."""
    raw = config.to_dict()
    module = {"stablelm": stablelm, "llama": llama}[raw["model_type"]]
    model = module.Model(module.ModelArgs.from_dict(raw))
    if module is stablelm and config.tie_word_embeddings:
        del model.lm_head  # which mlx-lm's StableLM always has
    return model


def _quantise(model: Any, ids: mx.array, recipe: Recipe, progress: Progress) -> None:
    """Block after block, each seeing what the quantised ones before it put out.

    In float32, since sums of squares leave float16's range.
    """
    body = model.model
    body.embed_tokens = body.embed_tokens.to_quantized(
        group_size=recipe.group_size, bits=recipe.bits
    )
    hidden = body.embed_tokens(ids).astype(mx.float32)
    for done, layer in enumerate(body.layers):
        progress(done / (len(body.layers) + 1))
        layer.set_dtype(mx.float32)
        block = _Part(layer, "causal", None)
        _quantise_block(block, hidden, recipe)
        hidden = block.all(hidden)
    body.norm.set_dtype(mx.float32)
    if "lm_head" in model:
        progress(len(body.layers) / (len(body.layers) + 1))
        model.lm_head.set_dtype(mx.float32)
        head = _Part(model.lm_head)
        _quantise_block(head, body.norm(hidden), recipe)
        model.lm_head = head.inner


def _quantise_block(block: nn.Module, inputs: mx.array, recipe: Recipe) -> None:
    bits, group_size = recipe.bits, recipe.group_size
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # bars for each block
        gptq_quantize(block, inputs, bits, group_size, bits, group_size, batch_size=BATCH)
    mx.eval(block.parameters())
    mx.clear_cache()


class _Part(nn.Module):  # type: ignore[misc]
    """A block or the head as a network of its own, which mlx-lm's GPTQ wants."""

    def __init__(self, inner: Any, *arguments: Any):
        super().__init__()
        self.inner = inner
        self._arguments = arguments

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, L, hidden) -> (B, L, hidden or vocab)."""
        y: mx.array = self.inner(x, *self._arguments)
        return y

    def all(self, x: mx.array) -> mx.array:
        """The same in batches, computed."""
        parts = []
        for start in range(0, x.shape[0], BATCH):
            parts.append(self(x[start : start + BATCH]))
            mx.eval(parts[-1])
        return mx.concatenate(parts)


def _exported(model: Any) -> dict[str, mx.array]:
    tensors: dict[str, mx.array] = {}
    for name, array in tree_flatten(model.parameters()):
        codes = array.dtype == mx.uint32
        tensors[name] = array if codes else array.astype(mx.float16)
        if not codes and not mx.isfinite(tensors[name]).all().item():
            raise EdgeError(
                f"learning made values of {name} that float16 cannot hold; "
                f"choose more bits, or leave out --calibrate."
            )
    return tensors


def bundled_text() -> str:
    """The package's own Python files, one after the other in the order of their paths."""
    root = Path(edge.__file__).parent
    paths = [path.relative_to(root) for path in sorted(root.rglob("*.py"))]
    used = [path for path in paths if not LEFT_OUT & set(path.parts)]
    return "\n\n".join((root / path).read_text(encoding="utf-8") for path in used)


def sequences(tokenizer: Any, text: str, tokens: int, count: int) -> Ids:
    """Ids (sequences, tokens) of at most `count` pieces of a text, drawn from all of it."""
    ids = np.asarray(tokenizer.encode(text), np.int32)
    if ids.size < tokens:
        raise EdgeError(
            f"the text to calibrate on has {ids.size} tokens, one sequence needs {tokens}; "
            f"choose a longer text."
        )
    pieces = ids[: ids.size // tokens * tokens].reshape(-1, tokens)
    order = np.random.RandomState(0).permutation(len(pieces))
    return pieces[order[:count]]
