"""An artefact whose quality is measured: what it is, and that it can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

import edge
from edge.convert.artefacts.manifest import Manifest, read_manifest
from edge.errors import EdgeError
from edge.model.load import compute_dtype

# To be raised when scores come out otherwise for the same input.
SCORING = 2


@dataclass(frozen=True)
class Subject:
    """An artefact by name: a directory is MLX's, a file GGUF."""

    name: str
    path: Path

    @property
    def is_mlx(self) -> bool:
        """Whether our network runs it."""
        return self.path.is_dir()


def check_comparable(subjects: Iterable[Subject]) -> None:
    """Refuse random weights, and artefacts of different checkpoints.

    Raises:
        EdgeError: there are some. What has no manifest cannot be told.
    """
    first: tuple[str, str] | None = None
    for subject in subjects:
        manifest = read_manifest(subject.path)
        if manifest is None:
            continue
        _check_trained(manifest, subject.path)
        first = first or (subject.name, manifest.fingerprint)
        if manifest.fingerprint != first[1]:
            raise EdgeError(
                f"{subject.name} and {first[0]} were made from different checkpoints; compare "
                f"artefacts of one model."
            )


def _check_trained(manifest: Manifest, path: Path) -> None:
    if manifest.synthetic:
        raise EdgeError(
            f"{path} has random weights: they have no quality to measure; name a trained model."
        )


def fingerprint(path: Path) -> str:
    """Tells quickly whether an artefact is still the same: no file of it is read but its manifest.

    A digest of the manifest, which has one of every file, and of the files' sizes and times: a
    file that was changed since has another time.
    """
    manifest = read_manifest(path)
    digest = hashlib.sha256(b"" if manifest is None else manifest.to_json().encode())
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        status = file.stat()
        digest.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def identity(subject: Subject, reference: Subject | None) -> dict[str, Any]:
    """All that scores depend on beside the ids, as plain data."""
    return {
        "scoring": SCORING,
        "edge": edge.__version__,
        **computed(subject),
        "reference": None if reference is None else computed(reference),
    }


def computed(subject: Subject) -> dict[str, Any]:
    """An artefact, and what computes on it: its engine, where, and in which dtype."""
    engine = _mlx() if subject.is_mlx else _llama_cpp()
    return {"artefact": subject.name, "fingerprint": fingerprint(subject.path), **engine}


def _mlx() -> dict[str, str]:
    return {
        "engine": f"mlx {version('mlx')}",
        "device": mx.default_device().type.name,
        "compute_dtype": str(compute_dtype()).removeprefix("mlx.core."),
    }


def _llama_cpp() -> dict[str, str]:
    from edge.llama_cpp.session import library

    return {
        "engine": f"llama-cpp-python {version('llama-cpp-python')}",
        "device": "GPU" if library().llama_supports_gpu_offload() else "CPU",
    }
