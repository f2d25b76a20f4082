"""What llama.cpp's quantiser would make of a model, to the byte, without quantising it.

llama.cpp decides each tensor's type from names and shapes alone, by rules that differ
between its releases. A dry run on a file with a header and a hole instead of data asks it.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.checkpoints.artefacts.gguf_quantise import child
from edge.errors import EdgeError
from edge.gguf_file import block_size, read_gguf
from edge.model.config import ModelConfig

Shape = tuple[int, ...]
FILE_TYPE_LINE = "edge file type "
# "[   7/  38] blk.0.attn_q.weight - [  256,   256,     1,     1], type =    f16, size = …",
# closed by the new type in brackets if there is one.
TENSOR_LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[([\d, ]+)\], type = +(\w+), size = .*?MiB$")
NEW_TYPE = re.compile(r" -> .*\((\w+)\)$")
FALLBACK_LINE = re.compile(r"warning: (\S+) .* not divisible by")
ALIGNMENT = 32
# llama_ftype of the K-quants; their blocks have 256 weights of a row, all others' 32.
K_QUANTS = range(10, 19)
LARGE_BLOCK, SMALL_BLOCK = 256, 32


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the quantised file.

    `type_name` is ggml's (f32, q6_K); `fell_back` if its rows do not divide into the blocks
    of the type that the mixture gives it, so that it gets another.
    """

    name: str
    type_name: str
    data_bytes: int
    fell_back: bool


def plan(
    config: ModelConfig, shapes: Mapping[str, Shape], file_types: Sequence[int]
) -> dict[int, list[PlannedTensor]]:
    """Plan from a description alone.

    Args:
        config: the network.
        shapes: every tensor's shape, rows first, by GGUF name.
        file_types: llama.cpp's `llama_ftype`s.

    Returns:
        By file type, the tensors in llama.cpp's order.

    Raises:
        EdgeError: llama.cpp refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        hollow = Path(folder) / "hollow.gguf"
        write_hollow(hollow, config, shapes)
        return plan_file(hollow, file_types)


def plan_file(source: Path, file_types: Sequence[int]) -> dict[int, list[PlannedTensor]]:
    """Plan for a float GGUF file, of which only the header is read; see `plan`."""
    plans: dict[int, list[PlannedTensor]] = {}
    tensors: list[PlannedTensor] = []
    fallen: set[str] = set()
    last = ""
    with child(__name__, [str(source), *map(str, file_types)]) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = line.strip() or last
            if line.startswith(FILE_TYPE_LINE):
                tensors = plans[int(line.removeprefix(FILE_TYPE_LINE))] = []
                fallen.clear()
            elif match := FALLBACK_LINE.search(line):
                fallen.add(match[1])
            elif planned := _planned(line.strip(), fallen):
                tensors.append(planned)
    if process.returncode != 0 or not all(plans.get(t) for t in file_types):
        raise EdgeError(f"llama.cpp could not plan the quantisation of {source.name} ({last}).")
    return plans


def data_bytes(tensors: Sequence[PlannedTensor]) -> int:
    """Bytes of the file's data section: every tensor begins at a multiple of 32."""
    return sum(-(-tensor.data_bytes // ALIGNMENT) * ALIGNMENT for tensor in tensors)


def fallbacks(path: Path, file_type: int) -> list[str]:
    """Tensors of a quantised file that have another type than its mixture would give them.

    Returns:
        "NAME: TYPE" of each matrix whose rows do not divide into the blocks of the file type.
    """
    block = LARGE_BLOCK if file_type in K_QUANTS else SMALL_BLOCK
    return [
        f"{tensor.name}: {tensor.kind}"
        for tensor in read_gguf(path).tensors
        if len(tensor.shape) == 2
        and not tensor.name.endswith("_norm.weight")
        and tensor.shape[-1] % block
    ]


def fallback_warning(path: Path, file_type: int) -> str | None:
    """The sentence a user should read, or None if every matrix has its intended type."""
    found = fallbacks(path, file_type)
    if not found:
        return None
    return (
        f"{path.name}: llama.cpp stored {len(found)} tensors in other types, because their rows "
        f"do not divide into the format's blocks ({found[0]}); expect another size and quality "
        f"than the name says."
    )


def _planned(line: str, fallen: set[str]) -> PlannedTensor | None:
    new = NEW_TYPE.search(line)
    match = TENSOR_LINE.search(line[: new.start()] if new else line)
    if match is None:
        return None
    type_name = new[1] if new else match[3]
    block, block_bytes = block_size(type_name.upper())
    weights = int(np.prod([int(n) for n in match[2].split(",")]))
    name = match[1]
    return PlannedTensor(name, type_name, weights // block * block_bytes, name in fallen)


def write_hollow(path: Path, config: ModelConfig, shapes: Mapping[str, Shape]) -> None:
    """A float16 GGUF file whose data is a hole, which takes no space on most file systems."""
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "stablelm")
    writer.add_file_type(1)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.rotary_dims)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    total = 0
    for name, shape in shapes.items():
        narrow = len(shape) > 1 and not name.endswith("_norm.weight")
        dtype = np.dtype(np.float16 if narrow else np.float32)
        size = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(name, shape, dtype, size)
        total += -(-size // ALIGNMENT) * ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        header = file.seek(0, 2)
        file.truncate(-(-header // ALIGNMENT) * ALIGNMENT + total)


def main() -> int:
    """The child: for each file type a line that names it, then llama.cpp's log."""
    from edge.checkpoints.artefacts.gguf_quantise import end_with_parent, say
    from edge.llamacpp_quantise import run_quantiser

    source, *file_types = sys.argv[1:]
    end_with_parent(None)
    try:
        for file_type in file_types:
            say(f"\n{FILE_TYPE_LINE}{file_type}\n")
            run_quantiser(Path(source), Path("unwritten"), int(file_type), say, dry_run=True)
    except EdgeError as error:
        say(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
