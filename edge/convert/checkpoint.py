"""Checkpoints: found, read and validated."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edge.convert.artefacts.manifest import Corrections
from edge.convert.sources.directory import open_directory
from edge.convert.sources.find import Source, find_source
from edge.convert.sources.gguf import open_gguf
from edge.convert.sources.names import SYNTHETIC
from edge.convert.sources.published import config_warnings
from edge.convert.sources.synthetic import open_synthetic
from edge.convert.sources.weights import Opened, Weights
from edge.errors import printable
from edge.formats.files import open_file, read_small_file
from edge.model.config import ModelConfig
from edge.model.tensors import check_shapes, parameter_count
from edge.tokenizer.tokenizer import Tokenizer

# Parts of each file that the fingerprint covers: all of it would be gigabytes.
HEAD_BYTES = 1 << 20
SAMPLES_PER_FILE = 16
SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Checkpoint:
    """Config and tensors of one source; every tensor exists in the right shape."""

    source: Source
    config: ModelConfig  # with the user's corrections
    weights: Weights
    tokenizer_files: Mapping[str, bytes]  # tokenizer and generation files by name
    warnings: tuple[str, ...] = ()  # sentences to read before trusting the result
    title: str | None = None  # the model's name in the source
    corrections: Corrections = field(default_factory=Corrections)

    @property
    def parameters(self) -> int:
        return parameter_count(self.config)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, which all of its artefacts have; an EdgeError if it cannot be read."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.tokenizer_files.items():
                (Path(folder) / name).write_bytes(content)
            return Tokenizer.load(Path(folder))

    def question(self) -> dict[str, Any]:
        """JSON from which `reopened` opens it in a child process."""
        source = self.source
        model = source.origin if source.path is None else str(source.path)
        return {"model": model, "corrections": asdict(self.corrections)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 by which an artefact identifies its source.

        Of the user's corrections, config and tokenizer, the beginning of every file, and samples
        of the rest; of nothing that depends on edge's version.
        """
        chosen = {key: value for key, value in asdict(self.corrections).items() if value}
        digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode())
        if self.source.path is None:
            digest.update(self.source.origin.encode())
        elif self.source.path.is_dir():
            for name in ("config.json", "tokenizer.json"):
                digest.update(read_small_file(self.source.path / name))
        for path in self.weights.files:
            _sample(path, digest)
        return digest.hexdigest()


def open_checkpoint(
    model: str, revision: str | None = None, corrections: Corrections | None = None
) -> Checkpoint:
    """Open `demo`, a directory, a GGUF file, `synthetic:NAME` or a model of the hub.

    An EdgeError if it cannot be found, or a file or tensor is missing, damaged or of another
    architecture.
    """
    corrections = corrections or Corrections()
    source = find_source(model, revision, corrections.layers)
    if source.path is None:
        opened = open_synthetic(source.origin.removeprefix(SYNTHETIC), corrections.layers)
    else:
        opened = open_path(source.path)
    config = corrections.applied(opened.config.matching(opened.weights.shapes))
    check_shapes(config, opened.weights.shapes, source.origin)
    gives_base = opened.gives_rope_base or corrections.rope_theta is not None
    doubts = config_warnings(config, source.origin, opened.title, gives_base=gives_base)
    return Checkpoint(
        source=source,
        config=config,
        weights=opened.weights,
        tokenizer_files=opened.tokenizer_files,
        # They quote the untrusted source.
        warnings=tuple(map(printable, (*opened.warnings, *doubts))),
        title=opened.title,
        corrections=corrections,
    )


def reopened(question: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint of `Checkpoint.question`."""
    corrections = Corrections(**question["corrections"])
    return open_checkpoint(question["model"], corrections=corrections)


def open_path(path: Path) -> Opened:
    """Open a directory or a GGUF file; an EdgeError if it is damaged."""
    return open_directory(path) if path.is_dir() else open_gguf(path)


def _sample(path: Path, digest: hashlib._Hash) -> None:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        digest.update(file.read(HEAD_BYTES))
        for i in range(SAMPLES_PER_FILE):
            file.seek(max(0, size - SAMPLE_BYTES) * i // (SAMPLES_PER_FILE - 1))
            digest.update(file.read(SAMPLE_BYTES))
