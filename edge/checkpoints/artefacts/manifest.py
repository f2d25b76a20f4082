"""What an artefact was made of, kept inside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import edge
from edge.checkpoints.checkpoint import Checkpoint
from edge.errors import EdgeError

MLX_FILE = "edge.json"
GGUF_KEY = "edge.manifest"


@dataclass(frozen=True)
class Manifest:
    """Written as edge.json in an MLX artefact and as one string key in a GGUF file."""

    source: str
    revision: str | None
    fingerprint: str
    edge_version: str

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=2)


def manifest_of(checkpoint: Checkpoint) -> Manifest:
    """What is about to be written into an artefact."""
    return Manifest(
        source=checkpoint.source.origin,
        revision=checkpoint.source.revision,
        fingerprint=checkpoint.fingerprint(),
        edge_version=edge.__version__,
    )


def read_fingerprint(path: Path) -> str | None:
    """The fingerprint in a finished artefact, or None if it has none that can be read."""
    try:
        if path.is_dir():
            text = (path / MLX_FILE).read_text(encoding="utf-8")
        else:
            from edge.gguf_file import read_string

            text = read_string(path, GGUF_KEY) or ""
        fingerprint = json.loads(text)["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, EdgeError):
        return None
    return fingerprint if isinstance(fingerprint, str) else None
