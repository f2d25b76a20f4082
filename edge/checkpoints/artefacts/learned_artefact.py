"""Write what a learning quantiser made, as an MLX artefact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

from edge.checkpoints.artefacts.calibration import bundled_text, read_text
from edge.checkpoints.artefacts.learned import Learning, learn
from edge.checkpoints.artefacts.mlx import write_small_files
from edge.checkpoints.artefacts.recipes import Recipe
from edge.checkpoints.artefacts.safetensors_writer import Planned, SafetensorsWriter
from edge.checkpoints.checkpoint import Checkpoint

DTYPES = {mx.uint32: "U32", mx.float16: "F16"}


def write_learned(
    checkpoint: Checkpoint,
    recipe: Recipe,
    method: str,
    source: Path,
    calibration: Path | None,
    folder: Path,
    progress: Callable[[float], None],
) -> tuple[dict[str, str], list[str]]:
    """Learn and write.

    Args:
        checkpoint: what is converted.
        recipe: its bits and group size.
        method: gptq, awq or dwq.
        source: an mlx-fp16 artefact of the checkpoint.
        calibration: the text to learn from; the package's own source code if None.
        folder: the directory to make.
        progress: told the finished fraction, 0 to 1.

    Returns:
        Digests of the files by name, and sentences for the manifest.

    Raises:
        EdgeError: see `learn` and `read_text`.
    """
    from mlx_lm.utils import load_tokenizer
    from transformers.utils import logging

    # It would warn of a text longer than the model's context, which is about to be cut.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    assert recipe.bits is not None and recipe.group_size is not None
    text = bundled_text() if calibration is None else read_text(calibration)
    learning = Learning(method, bits=recipe.bits, group_size=recipe.group_size)
    learned = learn(source, learning, text, load_tokenizer(source), progress)
    folder.mkdir()
    plan = [
        Planned(name, DTYPES[array.dtype], tuple(array.shape))
        for name, array in learned.tensors.items()
    ]
    writer = SafetensorsWriter(folder, plan)
    try:
        for array in learned.tensors.values():
            writer.write(np.asarray(array))
        writer.finish()
    finally:
        writer.close()
    small = write_small_files(checkpoint, recipe.dtype, learned.quantization, folder)
    text_name = "edge's own source code" if calibration is None else calibration.name
    return writer.sha256 | small, [f"learned with {method.upper()} from {text_name}."]
