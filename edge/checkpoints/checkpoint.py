"""A Hugging Face checkpoint that has been read and found whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.checkpoints.sources.find import Source, find_source
from edge.checkpoints.sources.safetensors_file import SafetensorsFile, TensorEntry
from edge.errors import EdgeError
from edge.model.config import ModelConfig, read_config, read_json_object
from edge.model.tensors import check_shapes

INDEX = "model.safetensors.index.json"
# Enough of each file to tell two checkpoints of one shape apart without reading gigabytes.
SAMPLES_PER_FILE = 16
SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Checkpoint:
    """Config and tensors of one source; every tensor is present in the right shape."""

    source: Source
    config: ModelConfig
    files: tuple[SafetensorsFile, ...]

    @property
    def path(self) -> Path:
        """Its directory."""
        return self.source.path

    @property
    def entries(self) -> dict[str, TensorEntry]:
        """Every tensor by name."""
        return {name: entry for file in self.files for name, entry in file.entries.items()}

    def read(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        """One tensor; bfloat16 comes as float32."""
        return next(file for file in self.files if name in file.entries).read(name)

    def fingerprint(self) -> str:
        """A hash that tells whether an artefact was made from these weights.

        Covers config.json, tokenizer.json, every header, and samples spread over the data.
        """
        digest = hashlib.sha256()
        for name in ("config.json", "tokenizer.json"):
            digest.update((self.path / name).read_bytes())
        for file in self.files:
            digest.update(file.header)
            with file.path.open("rb") as data:
                for i in range(SAMPLES_PER_FILE):
                    data.seek(max(0, file.file_bytes - SAMPLE_BYTES) * i // (SAMPLES_PER_FILE - 1))
                    digest.update(data.read(SAMPLE_BYTES))
        return digest.hexdigest()


def open_checkpoint(model: str) -> Checkpoint:
    """Find and check a checkpoint.

    Args:
        model: `demo`, a directory, or a hub id.

    Raises:
        EdgeError: it cannot be found, or a file or tensor of it is missing, broken or of
            another architecture.
    """
    source = find_source(model)
    config = read_config(source.path / "config.json")
    files = tuple(SafetensorsFile(path) for path in _weight_files(source.path))
    shapes = {name: entry.shape for file in files for name, entry in file.entries.items()}
    config = config.matching(shapes)
    check_shapes(config, shapes, str(source.path))
    read_json_object(source.path / "tokenizer.json")  # every artefact needs it
    return Checkpoint(source, config, files)


def _weight_files(path: Path) -> list[Path]:
    index = path / INDEX
    if index.exists():
        names = read_json_object(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise EdgeError(f"{index} has no weight_map; download it again.")
        return [path / _plain_name(name, index) for name in sorted(set(names.values()))]
    found = sorted(path.glob("*.safetensors"))
    if not found:
        raise EdgeError(
            f"{path} holds no *.safetensors (pickled weights are never opened); "
            f"choose a checkpoint in safetensors form."
        )
    return found


def _plain_name(name: str, index: Path) -> str:
    if Path(name).name != name:
        raise EdgeError(f"{index} points outside its directory ({name!r}); do not use it.")
    return name
