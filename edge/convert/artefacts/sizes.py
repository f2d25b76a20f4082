"""How large an artefact is, and how large it will be."""

from math import prod
from pathlib import Path

from edge.convert.artefacts.gguf import gguf_plan
from edge.convert.artefacts.mlx import layout
from edge.convert.artefacts.recipes import Recipe
from edge.convert.checkpoint import Checkpoint
from edge.formats.files import read_json_object
from edge.formats.gguf import read_gguf
from edge.formats.safetensors import INDEX

# Bits of a weight outside the head, by precision. ggml's blocks of 32 or 256 weights hold scales
# beside the codes; where llama.cpp mixes types, it is the mean over a StableLM's matrices.
GGUF_BITS = {
    **{"Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K_S": 5.5, "Q5_1": 6.0, "Q5_0": 5.5, "Q4_1": 5.0},
    **{"Q4_0": 4.5, "Q5_K_M": 5.64, "Q4_K_M": 4.78},  # _M: half of attn_v and ffn_down in Q6_K
    "Q3_K_M": 3.82,  # attn_v, attn_output and ffn_down in Q4_K, the first few in Q5_K
    "Q2_K": 2.90,  # attn_v, attn_output and ffn_down in Q3_K
}
GGUF_HEAD_BITS = 6.5625  # Q6_K, unless the others have more


def file_bytes(path: Path) -> int:
    """Bytes on disk of a file, or of every file in a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())


def tensor_bytes(path: Path) -> int:
    """Bytes of the weights alone, without headers, tokenizer and config."""
    if path.is_dir():
        return int(read_json_object(path / INDEX)["metadata"]["total_size"])
    return sum(tensor.data_bytes for tensor in read_gguf(path).tensors)


def bits_per_weight(path: Path, parameters: int) -> float:
    """Bits that one weight takes on average, scales and biases included."""
    return 8 * tensor_bytes(path) / parameters


def planned_bytes(checkpoint: Checkpoint, recipe: Recipe, exact: bool = False) -> int:
    """Bytes of the weights of an artefact that is yet to be made.

    To the byte, except for quantised GGUF files: llama.cpp decides each tensor's type, and for the
    published StableLMs the result is right to 2 %.
    """
    if recipe.is_mlx:
        tensors = layout(checkpoint, recipe, exact)
        return sum(planned.data_bytes for tensor in tensors for planned in tensor.planned())
    total = 0.0
    for tensor in gguf_plan(checkpoint.config, recipe.dtype):
        if recipe.is_float or tensor.dtype == "F32":  # vectors always are
            total += tensor.data_bytes
            continue
        bits = GGUF_BITS[recipe.precision]
        if tensor.name == "output.weight":
            bits = max(bits, GGUF_HEAD_BITS)
        total += prod(tensor.shape) * bits / 8
    return round(total)
