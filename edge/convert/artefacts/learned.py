"""GPTQ by mlx-lm's quantiser, on mlx-lm's own networks.

mlx-lm quantises all blocks at once, keeps the Hessian of every matrix (11 GB for 3 billion
parameters), and takes a block's inputs from the float network. Here it quantises one block at a
time, on the outputs of the quantised blocks before. The calibration text is the user's, or this
package's source code, which no published checkpoint was trained on.
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
from edge.formats.folder import weight_files
from edge.formats.safetensors import Planned, ShardWriter
from edge.model.config import ModelConfig
from edge.model.load import read_directory

Ids = np.ndarray[Any, np.dtype[np.int32]]
Progress = Callable[[float], None]
# Number and length of sequences. A Hessian has full rank from as many tokens as a row has weights;
# on a CPU that is enough for models like the demo.
ON_CPU, ON_GPU = (32, 256), (128, 512)
BATCH = 4
DTYPES = {mx.uint32: "U32", mx.float16: "F16"}
# Text that quality is measured on; the tests measure on an old copy of the two files.
LEFT_OUT = {"data", "runner.py", "stats.py"}


def write_learned(
    checkpoint: Checkpoint,
    recipe: Recipe,
    source: Path,
    calibration: Path | None,
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, str], list[str]]:
    """Write an MLX artefact by GPTQ; SHA-256 of its files by name, and notes.

    `source` is an mlx-fp16 artefact of the checkpoint. An EdgeError if the text is too short, or
    the group size does not divide the matrices' rows.
    """
    # It would warn of a text longer than the model's context.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    text = bundled_text() if calibration is None else read_text(calibration)
    count, tokens = ON_CPU if mx.default_device().type == mx.DeviceType.cpu else ON_GPU
    tokens = min(tokens, checkpoint.config.max_position_embeddings)
    ids = sequences(load_tokenizer(source), text, tokens, count)
    tensors = _learn(source, recipe, ids, progress)
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


def _learn(path: Path, recipe: Recipe, ids: Ids, progress: Progress) -> dict[str, mx.array]:
    """Tensors by name of an mlx-fp16 artefact quantised with ids (sequences, tokens).

    Codes are uint32, all else float16.
    """
    assert recipe.bits and recipe.group_size
    weights: Any = {}
    for file in weight_files(path):
        weights |= mx.load(str(file))
    for name, array in weights.items():
        if array.ndim == 2 and array.shape[1] % recipe.group_size:
            raise EdgeError(
                f"rows of {name} have {array.shape[1]} weights, which do not divide into groups "
                f"of {recipe.group_size}; choose another --group-size."
            )
    model = _network(read_directory(path)[1].matching(weights))
    model.load_weights(list(weights.items()))
    _quantise(model, mx.array(ids), recipe, progress)
    progress(1.0)
    return _exported(model)


def _network(config: ModelConfig) -> Any:
    """mlx-lm's model without weights, its parameters named as in the checkpoint."""
    raw = config.to_dict()
    module = {"stablelm": stablelm, "llama": llama}[raw["model_type"]]
    model = module.Model(module.ModelArgs.from_dict(raw))
    if module is stablelm and config.tie_word_embeddings:
        del model.lm_head  # mlx-lm's StableLM always has one
    return model


def _quantise(model: Any, ids: mx.array, recipe: Recipe, progress: Progress) -> None:
    """Quantise in place, block by block; in float32, as sums of squares exceed float16."""
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
        hidden = block.in_batches(hidden)
    body.norm.set_dtype(mx.float32)
    if "lm_head" in model:
        progress(len(body.layers) / (len(body.layers) + 1))
        model.lm_head.set_dtype(mx.float32)
        head = _Part(model.lm_head)
        _quantise_block(head, body.norm(hidden), recipe)
        model.lm_head = head.inner


def _quantise_block(block: nn.Module, inputs: mx.array, recipe: Recipe) -> None:
    bits, group_size = recipe.bits, recipe.group_size
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # its progress bars
        gptq_quantize(block, inputs, bits, group_size, bits, group_size, batch_size=BATCH)
    mx.eval(block.parameters())
    mx.clear_cache()


class _Part(nn.Module):  # type: ignore[misc]
    """A block or the head as a network of its own, for mlx-lm's GPTQ."""

    def __init__(self, inner: Any, *arguments: Any):
        super().__init__()
        self.inner = inner
        self._arguments = arguments

    def __call__(self, x: mx.array) -> mx.array:
        """x (B, L, hidden) -> (B, L, hidden or vocab)."""
        y: mx.array = self.inner(x, *self._arguments)
        return y

    def in_batches(self, x: mx.array) -> mx.array:
        """The same, evaluated batch by batch."""
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
                f"GPTQ made values of {name} that float16 cannot hold; "
                f"choose more bits, or omit --calibrate."
            )
    return tensors


def bundled_text() -> str:
    """The package's own Python files, joined in the order of their paths."""
    root = Path(edge.__file__).parent
    paths = [path.relative_to(root) for path in sorted(root.rglob("*.py"))]
    used = [path for path in paths if not LEFT_OUT & set(path.parts)]
    return "\n\n".join((root / path).read_text(encoding="utf-8") for path in used)


def sequences(tokenizer: Any, text: str, tokens: int, count: int) -> Ids:
    """Ids (sequences, tokens) of at most `count` random pieces of a text."""
    ids = np.asarray(tokenizer.encode(text), np.int32)
    if ids.size < tokens:
        raise EdgeError(
            f"the calibration text has {ids.size} tokens, one sequence needs {tokens}; "
            f"choose a longer text."
        )
    pieces = ids[: ids.size // tokens * tokens].reshape(-1, tokens)
    order = np.random.RandomState(0).permutation(len(pieces))
    return pieces[order[:count]]
