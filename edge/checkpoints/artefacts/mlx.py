"""Write an MLX artefact: float16, or affine quantisation of every matrix that divides.

Tensor by tensor instead of through mlx-lm's quantize_model, so that memory holds one
shard rather than the whole model. Names and config are mlx-lm's, so plain
`mlx_lm.load` opens the result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx

from edge.checkpoints.artefacts.float16 import to_float16
from edge.checkpoints.artefacts.manifest import MLX_FILE, manifest_of
from edge.checkpoints.artefacts.recipes import Recipe
from edge.checkpoints.checkpoint import Checkpoint
from edge.checkpoints.sources.find import TOKENIZER_FILES
from edge.model.tensors import expected_shapes

SHARD_BYTES = 1 << 30
Progress = Callable[[float], None]


def write_mlx(checkpoint: Checkpoint, recipe: Recipe, out: Path, progress: Progress) -> None:
    """Write the artefact's directory.

    Args:
        checkpoint: where the weights come from.
        recipe: an MLX recipe.
        out: the directory to make.
        progress: told the finished fraction, 0 to 1.

    Raises:
        EdgeError: a weight does not fit float16.
    """
    out.mkdir()
    _write_shards(_tensors(checkpoint, recipe, progress), out)
    config = checkpoint.config.to_dict()
    config["torch_dtype"] = "float16"
    if recipe.bits is not None:
        quantization = {"group_size": recipe.group_size, "bits": recipe.bits, "mode": "affine"}
        config["quantization"] = config["quantization_config"] = quantization
    _write_json(out / "config.json", config)
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (checkpoint.path / name).is_file():
            shutil.copyfile(checkpoint.path / name, out / name)
    (out / MLX_FILE).write_text(manifest_of(checkpoint).to_json(), encoding="utf-8")


def _tensors(
    checkpoint: Checkpoint, recipe: Recipe, progress: Progress
) -> Iterator[tuple[str, mx.array]]:
    names = list(expected_shapes(checkpoint.config))
    for done, name in enumerate(names):
        progress(done / len(names))
        weight = mx.array(to_float16(checkpoint.read(name), name))
        if _is_quantised(weight, recipe):
            stem = name.removesuffix(".weight")
            packed, scales, biases = mx.quantize(
                weight, group_size=recipe.group_size, bits=recipe.bits
            )
            yield name, packed
            yield f"{stem}.scales", scales
            yield f"{stem}.biases", biases
        else:
            yield name, weight
    progress(1.0)


def _is_quantised(weight: mx.array, recipe: Recipe) -> bool:
    """What mlx-lm quantises: every linear and the embedding whose rows divide into groups."""
    if recipe.group_size is None:
        return False
    return weight.ndim == 2 and weight.shape[1] % recipe.group_size == 0


def _write_shards(tensors: Iterator[tuple[str, mx.array]], out: Path) -> None:
    shards: list[list[str]] = []
    pending: dict[str, mx.array] = {}
    total = 0

    def flush() -> None:
        try:
            mx.save_safetensors(str(out / f"shard-{len(shards)}"), pending, {"format": "mlx"})
        except RuntimeError as error:  # what MLX makes of a full disk
            raise OSError(str(error)) from None
        shards.append(list(pending))
        pending.clear()
        mx.clear_cache()

    for name, array in tensors:
        mx.eval(array)
        if pending and sum(a.nbytes for a in pending.values()) + array.nbytes > SHARD_BYTES:
            flush()
        pending[name] = array
        total += array.nbytes
    flush()
    _name_shards(shards, total, out)


def _name_shards(shards: list[list[str]], total_bytes: int, out: Path) -> None:
    """Give the shards Hugging Face's names, which hold the count, and write the index."""
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        final = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        final = "model.safetensors" if len(shards) == 1 else final
        (out / f"shard-{i}.safetensors").rename(out / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    _write_json(out / "model.safetensors.index.json", index)


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
