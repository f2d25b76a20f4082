"""What an artefact was made of and by what, kept inside it.

An MLX artefact has it as edge.json. A GGUF file has it under the key edge.manifest,
as JSON padded with spaces: the room is reserved in the header and filled when the
digests are known. The file's own digest is that of the file with the room blank.
The manifest ends with its own digest, so that no byte of an artefact changes unseen.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import edge
from edge.errors import EdgeError
from edge.formats.files import read_small_file, strict_json
from edge.formats.gguf import read_string

MLX_FILE = "edge.json"
GGUF_KEY = "edge.manifest"
TOOLS = ("gguf", "huggingface-hub", "llama-cpp-python", "mlx", "mlx-lm", "numpy")
OWN_DIGEST = "sha256"  # of the other fields
GGUF_ROOM_BYTES = 16384
READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Manifest:
    """The whole record.

    Attributes:
        artefact: its name, as in `--to`.
        source: what the user asked to convert, without this machine's directories.
        revision: the hub's commit, if it came from there.
        synthetic: random weights at a published shape; no quality figure means anything.
        fingerprint: tells quickly whether an artefact belongs to a checkpoint.
        corrections: what the user set in place of the source's values.
        recipe: how it was made: bits, group size, what else was chosen.
        exact: the source's own quantised values, not rounded again.
        bits_per_weight: everything stored divided by the number of weights.
        source_sha256: digest of every source file by name; empty for generated weights.
        output_sha256: digest of every file of the artefact by name, this one left out.
        tools: versions of what made it.
        notes: what was lost or changed on the way, in sentences.
    """

    artefact: str
    source: str
    revision: str | None
    synthetic: bool
    fingerprint: str
    corrections: dict[str, Any]
    recipe: dict[str, Any]
    exact: bool
    bits_per_weight: float
    source_sha256: dict[str, str]
    output_sha256: dict[str, str]
    tools: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """One JSON object, its own digest last."""
        fields = asdict(self)
        return json.dumps({**fields, OWN_DIGEST: _digest_of(fields)}, indent=2) + "\n"


def _digest_of(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def tool_versions() -> dict[str, str]:
    """What converts here, by version."""
    return {"edge": edge.__version__} | {name: version(name) for name in TOOLS}


def read_manifest(artefact: Path) -> Manifest | None:
    """The manifest of a finished artefact, or None if it has none that can be read."""
    try:
        if artefact.is_dir():
            data = read_small_file(artefact / MLX_FILE)
        else:
            data = (read_string(artefact, GGUF_KEY) or "").encode()
        fields = strict_json(data)
        if fields.pop(OWN_DIGEST) != _digest_of(fields):
            return None
        notes = fields.pop("notes", [])
        if not isinstance(notes, list):
            return None
        fields["notes"] = tuple(notes)
        manifest = Manifest(**fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EdgeError):
        return None
    return manifest if _is_well_typed(manifest) else None


def _is_well_typed(manifest: Manifest) -> bool:
    by_name = (manifest.source_sha256, manifest.output_sha256, manifest.tools)
    texts = (manifest.artefact, manifest.source, manifest.fingerprint)
    bits = manifest.bits_per_weight
    return (
        all(isinstance(text, str) for text in (*texts, *manifest.notes))
        and (manifest.revision is None or isinstance(manifest.revision, str))
        and all(isinstance(names, dict) for names in by_name)
        and all(isinstance(part, str) for names in by_name for part in names.values())
        and all(isinstance(part, dict) for part in (manifest.corrections, manifest.recipe))
        and all(isinstance(flag, bool) for flag in (manifest.synthetic, manifest.exact))
        and isinstance(bits, float)
        and math.isfinite(bits)
    )


def write_manifest(artefact: Path, manifest: Manifest) -> None:
    """Put it into an artefact that is complete but for it."""
    if artefact.is_dir():
        (artefact / MLX_FILE).write_text(manifest.to_json(), encoding="utf-8")
    else:
        _fill_room(artefact, manifest)


def blank_manifest() -> str:
    """What fills the room in a GGUF header until the manifest is known."""
    return " " * GGUF_ROOM_BYTES


def _fill_room(path: Path, manifest: Manifest) -> None:
    text = manifest.to_json().encode()
    begin, end = _room(path)
    room_bytes = end - begin
    if len(text) > room_bytes:  # a source of more than a hundred files
        raise EdgeError(
            f"{path.name}: the manifest takes {len(text)} bytes, a GGUF file has room for "
            f"{room_bytes}; convert from a checkpoint with fewer files."
        )
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(text.ljust(room_bytes))


def file_sha256(path: Path, stopped: Callable[[], bool] = lambda: False) -> str:
    """Digest of a file.

    Raises:
        CancelledError: `stopped` became true before the end.
    """
    digest = hashlib.sha256()
    for piece in _pieces(path):
        if stopped():
            raise CancelledError
        digest.update(piece)
    return digest.hexdigest()


def gguf_sha256(path: Path) -> str:
    """Digest of a GGUF file with the room of its manifest blank."""
    begin, end = _room(path)
    digest = hashlib.sha256()
    position = 0
    for piece in map(bytearray, _pieces(path)):
        inside = slice(max(0, begin - position), max(0, end - position))
        blanks = len(piece[inside])
        piece[inside] = b" " * blanks
        digest.update(piece)
        position += len(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            yield piece


def _room(path: Path) -> tuple[int, int]:
    """Where the manifest's text lies in a GGUF file: begin and end offset.

    A key is stored as its length and text, then its type, then the value's length and text.

    Raises:
        EdgeError: the file has no such key near its start.
    """
    key = len(GGUF_KEY).to_bytes(8, "little") + GGUF_KEY.encode()
    with path.open("rb") as file:
        head = file.read(READ_BYTES)
    at = head.find(key)
    if at < 0:
        raise EdgeError(f"{path} has no edge manifest; convert the model again.")
    length_at = at + len(key) + 4
    begin = length_at + 8
    return begin, begin + int.from_bytes(head[length_at:begin], "little")
