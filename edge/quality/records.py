"""Results on disk, so that a run that was stopped goes on and nothing is computed twice.

    {"key": {"artefact": "mlx-int4", ...}}      the first line: what all results depend on
    {"3f9c...": ...}                            then one line per window or hole

One JSON-lines file per artefact and way of computing, named by a digest of it. It only grows: a
line that a kill cut off is skipped, and two runs may write at once. More tokens or samples and
another corpus find what they share with an earlier run.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import msgspec

import edge
from edge.convert.artefacts.manifest import read_manifest
from edge.formats.files import os_errors_as_edge_error
from edge.llama_cpp.session import library
from edge.model.load import compute_dtype

Value = TypeVar("Value")


@dataclass(frozen=True)
class Subject:
    """An artefact by name: a directory is MLX's, a file GGUF."""

    name: str
    path: Path

    @property
    def is_mlx(self) -> bool:
        """MLX or llama.cpp."""
        return self.path.is_dir()


def identity(subject: Subject) -> dict[str, str]:
    """Everything that decides what is computed on the same input: artefact, engine, dtype."""
    if subject.is_mlx:
        engine, device = "mlx", mx.default_device().type.name
        dtype = str(compute_dtype()).removeprefix("mlx.core.")
    else:
        engine, dtype = "llama-cpp-python", "its own"
        device = "GPU" if library().llama_supports_gpu_offload() else "CPU"
    return {
        "artefact": subject.name,
        "fingerprint": fingerprint(subject.path),
        "edge": edge.__version__,
        "engine": f"{engine} {version(engine)}",
        "device": device,
        "compute_dtype": dtype,
    }


def fingerprint(path: Path) -> str:
    """Tells quickly if an artefact has changed: its manifest, and the files' sizes and times."""
    digest = hashlib.sha256(repr(read_manifest(path)).encode())
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        status = file.stat()
        digest.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class Records(dict[str, Value]):
    """Results of one artefact by name, in a file that `add` makes and the next run reads.

    `key` is all that a result depends on beside its name, `kind` the values' type for msgspec.
    Without a folder nothing is kept on disk; `again` forgets what is in the file.

    Raises:
        EdgeError: the file cannot be read.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, Any], kind: Any, again: bool = False):
        text = json.dumps(key, sort_keys=True)
        name = f"{key['artefact']}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
        self._head = f'{{"key": {text}}}'.encode()
        self.path = None if folder is None else folder / name
        if self.path is None or not self.path.exists():
            return
        decoder = msgspec.json.Decoder(dict[str, kind])
        with os_errors_as_edge_error(self.path):
            if again:
                self.path.unlink()
                return
            for line in self.path.read_bytes().splitlines():
                with suppress(msgspec.DecodeError, UnicodeDecodeError):
                    self.update(decoder.decode(line))

    def add(self, name: str, value: Value) -> None:
        """Keep a result, which is in the file on return; an EdgeError if it cannot be written."""
        if name in self:
            return
        self[name] = value
        if self.path is None:
            return
        with os_errors_as_edge_error(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                head = b"" if file.tell() else self._head
                # The break comes first: it also ends a line that was cut off.
                file.write(head + b"\n" + msgspec.json.encode({name: value}))
