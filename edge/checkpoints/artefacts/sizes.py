"""How large an artefact is."""

from __future__ import annotations

from pathlib import Path

from edge.gguf_file import read_tensors
from edge.model.config import read_json_object


def file_bytes(path: Path) -> int:
    """Bytes on disk of a file, or of every file in a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())


def tensor_bytes(path: Path) -> int:
    """Bytes of the weights alone, without headers, tokenizer and config.

    Raises:
        EdgeError: the artefact is damaged.
    """
    if path.is_dir():
        index = read_json_object(path / "model.safetensors.index.json")
        return int(index["metadata"]["total_size"])
    return sum(tensor.data_bytes for tensor in read_tensors(path))


def bits_per_weight(path: Path, parameters: int) -> float:
    """Bits that one weight takes on average, scales and biases included."""
    return 8 * tensor_bytes(path) / parameters
