"""Record of what an artefact was made of and by what, kept inside it.

An MLX artefact has it as edge.json. A GGUF file has it under the key edge.manifest,
as JSON padded with spaces: the room is reserved in the header and filled when the
digests are known. The file's own digest is that of the file with the room blank.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edge.convert.checkpoint import Corrections
from edge.errors import EdgeError
from edge.formats.files import read_small_file, strict_json
from edge.formats.gguf import read_gguf

MLX_FILE = "edge.json"
GGUF_KEY = "edge.manifest"
TOOLS = ("gguf", "huggingface-hub", "llama-cpp-python", "mlx", "mlx-lm", "numpy")
GGUF_ROOM_BYTES = 16384
BLANK = " " * GGUF_ROOM_BYTES  # until the manifest is known
READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Manifest:
    """The whole record."""

    artefact: str  # its name, as in `--to`
    source: str  # what the user asked to convert, without this machine's directories
    revision: str | None  # the hub's commit, if it came from there
    synthetic: bool  # random weights at a published shape; no quality figure means anything
    fingerprint: str  # of the checkpoint it was made from
    corrections: Corrections  # what the user set in place of the source's values
    recipe: dict[str, Any]  # how it was made: bits, group size, what else was chosen
    exact: bool  # the source's own quantised values, not rounded again
    bits_per_weight: float  # everything stored divided by the number of weights
    source_sha256: dict[str, str]  # by file name; empty for generated weights
    output_sha256: dict[str, str]  # by file name, this one left out
    tools: dict[str, str] = field(default_factory=dict)  # versions of what made it
    notes: tuple[str, ...] = ()  # what was lost or changed on the way, in sentences

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_manifest(artefact: Path) -> Manifest | None:
    """The manifest of a finished artefact, or None if it has none that can be read."""
    try:
        if artefact.is_dir():
            data = read_small_file(artefact / MLX_FILE)
        else:
            data = str(read_gguf(artefact).keys.get(GGUF_KEY, "")).encode()
        return msgspec.convert(strict_json(data), Manifest)
    except (ValueError, EdgeError):  # msgspec's error is a ValueError
        return None


def write_manifest(artefact: Path, manifest: Manifest) -> None:
    """Put it into an artefact that is complete but for it; an EdgeError if a GGUF has no room."""
    text = manifest.to_json().encode()
    if artefact.is_dir():
        (artefact / MLX_FILE).write_bytes(text)
        return
    begin, end = _room(artefact)
    if len(text) > end - begin:  # a source of more than a hundred files
        raise EdgeError(
            f"{artefact.name}: the manifest takes {len(text)} bytes, a GGUF file has room for "
            f"{end - begin}; convert from a checkpoint with fewer files."
        )
    with artefact.open("r+b") as file:
        file.seek(begin)
        file.write(text.ljust(end - begin))


def file_sha256(
    path: Path, stopped: Callable[[], bool] = lambda: False, blank: tuple[int, int] = (0, 0)
) -> str:
    """Digest of a file, with the bytes between two offsets as spaces.

    A CancelledError if `stopped` becomes true before the end.
    """
    begin, end = blank
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(begin) + b" " * (end - begin))
        file.seek(end)
        while piece := file.read(READ_BYTES):
            if stopped():
                raise CancelledError
            digest.update(piece)
    return digest.hexdigest()


def gguf_sha256(path: Path) -> str:
    """Digest of a GGUF file with the room of its manifest blank."""
    return file_sha256(path, blank=_room(path))


def _room(path: Path) -> tuple[int, int]:
    """Where the manifest's text lies in a GGUF file: begin and end offset.

    A key is stored as its length and text, then its type, then the value's length and text.
    """
    key = len(GGUF_KEY).to_bytes(8, "little") + GGUF_KEY.encode()
    with path.open("rb") as file:
        head = file.read(READ_BYTES)
    at = head.find(key)
    if at < 0:
        raise EdgeError(f"{path} has no edge manifest; convert the model again.")
    length_at = at + len(key) + 4
    begin = length_at + 8
    end = begin + int.from_bytes(head[length_at:begin], "little")
    return begin, min(end, path.stat().st_size)
