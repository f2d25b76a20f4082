"""Results stored on disk, so that an interrupted run continues and nothing is computed twice.

    {"key": {"artefact": "mlx-int4", ...}}      the first line: everything the results depend on
    {"3f9c...": ...}                            then one line per window or hole

There is one JSON-lines file per artefact and way of computing, named by a digest of the key. It
only grows: a line that was cut off is skipped, and two runs may append at once. A run with more
tokens or samples, or on another corpus, reuses the results that it shares with an earlier one.
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
from edge.formats.files import os_errors_as_edge_error, read_small_file
from edge.llama_cpp.session import library
from edge.model.load import compute_dtype

Value = TypeVar("Value")


@dataclass(frozen=True)
class Subject:
    """An artefact: a directory for MLX or a GGUF file."""

    name: str
    path: Path

    @property
    def is_mlx(self) -> bool:
        return self.path.is_dir()


def identity(subject: Subject) -> dict[str, str]:
    """Everything that results on the same input depend on: artefact, engine, device, dtype."""
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
    """Digest of an artefact's manifest and of its files' sizes and times, without reading them."""
    digest = hashlib.sha256(repr(read_manifest(path)).encode())
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        status = file.stat()
        digest.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class Records(dict[str, Value]):
    """Stored results of one artefact by the name of a window or hole.

    `key` is everything that a result depends on except its name, `kind` the type of the values
    for msgspec. `again` deletes the stored results. Without a folder nothing is read or stored.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, Any], kind: Any, again: bool = False):
        text = json.dumps(key, sort_keys=True)
        self._head = f'{{"key": {text}}}'.encode()
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.path = folder and folder / f"{key['artefact']}-{digest}.jsonl"
        if self.path is None or not self.path.exists():
            return
        decoder = msgspec.json.Decoder(dict[str, kind])
        with os_errors_as_edge_error(self.path):
            if again:
                self.path.unlink()
                return
            for line in read_small_file(self.path).splitlines():
                with suppress(msgspec.DecodeError, UnicodeDecodeError):
                    self.update(decoder.decode(line))

    def add(self, name: str, value: Value) -> None:
        """Store a result before returning; an EdgeError if it cannot be written."""
        if name in self:
            return
        self[name] = value
        if self.path is None:
            return
        with os_errors_as_edge_error(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                head = b"" if file.tell() else self._head
                # The line break comes first, to end a line that was cut off.
                file.write(head + b"\n" + msgspec.json.encode({name: value}))
