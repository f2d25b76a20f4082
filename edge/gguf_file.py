"""Look into a finished GGUF file: keys and tensor sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import EdgeError


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: how many rows, how many bytes."""

    name: str
    rows: int
    data_bytes: int


def read_gguf(path: Path) -> Any:
    """Open the file with the gguf package.

    Raises:
        EdgeError: it is missing or not GGUF.
    """
    from gguf import GGUFReader

    try:
        return GGUFReader(str(path))
    except FileNotFoundError:
        raise EdgeError(f"{path} is missing; convert the model again.") from None
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise EdgeError(f"{path} is not a whole GGUF file ({error}); convert it again.") from None


def read_tensors(path: Path) -> list[GgufTensor]:
    """Every tensor of the file."""
    return [GgufTensor(t.name, int(t.shape[-1]), int(t.n_bytes)) for t in read_gguf(path).tensors]


def read_string(path: Path, key: str) -> str | None:
    """One string key, or None.

    Raises:
        EdgeError: the file is missing or not GGUF.
    """
    field = read_gguf(path).get_field(key)
    return None if field is None else str(field.contents())
