"""The manifest of an artefact: its source, recipe, digests and tools, kept inside it.

An MLX artefact has it in edge.json, a GGUF file under the key edge.manifest as JSON padded with
spaces: the space is reserved in the header and filled when the digests are known. A GGUF file's
digest is that of the file with this space blank.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edge.errors import EdgeError
from edge.formats.files import open_file, read_small_file, strict_json
from edge.model.config import ModelConfig

MLX_FILE = "edge.json"
GGUF_KEY = "edge.manifest"
TOOLS = ("gguf", "huggingface-hub", "llama-cpp-python", "mlx", "mlx-lm", "numpy")
GGUF_ROOM_BYTES = 16384
BLANK = " " * GGUF_ROOM_BYTES  # until the manifest is known
# What an artefact depends on; its own bytes may differ between GPUs in the last digit.
ORIGIN = ("artefact", "fingerprint", "corrections", "recipe", "exact")
READ_BYTES = 1 << 22
MAX_MANIFEST_BYTES = 10_000_000

FileName = Annotated[str, msgspec.Meta(pattern=r"^(?!\.\.?\Z)[^/\\\x00-\x1f]+\Z", max_length=255)]
Digests = Annotated[dict[FileName, str], msgspec.Meta(max_length=10_000)]


@dataclass(frozen=True)
class Corrections:
    """The user's values that replace the source's."""

    layers: int | None = None  # of a synthetic model
    rope_theta: float | None = None  # rotary base
    context: int | None = None  # number of positions

    def applied(self, config: ModelConfig) -> ModelConfig:
        """The config with them."""
        if self.rope_theta is not None:
            config = replace(config, rope_theta=self.rope_theta)
        if self.context is not None:
            config = replace(config, max_position_embeddings=self.context)
        return config


@dataclass(frozen=True)
class Manifest:
    """Contents of edge.json."""

    artefact: str  # name, as in `--to`
    source: str  # the user's name for it, without this machine's directories
    revision: str | None  # the hub's commit
    synthetic: bool  # random weights at a published shape, whose quality means nothing
    fingerprint: str  # of the checkpoint it was made from
    corrections: Corrections
    recipe: dict[str, Any]  # bits, group size and other options
    exact: bool  # the source's own quantised values, not rounded again
    bits_per_weight: float  # of all that is stored
    source_sha256: Digests  # by file name; empty for generated weights
    output_sha256: Digests  # by file name, without edge.json
    tools: dict[str, str] = field(default_factory=dict)  # versions by name
    notes: tuple[str, ...] = ()  # sentences on what was lost or changed

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def read_manifest(artefact: Path) -> Manifest | None:
    """The manifest of a finished artefact; None if it has no valid one."""
    try:
        if artefact.is_dir():
            data = read_small_file(artefact / MLX_FILE, MAX_MANIFEST_BYTES)
        else:
            from edge.formats.gguf import read_gguf  # here: numpy, which MLX artefacts do not need

            data = str(read_gguf(artefact).keys.get(GGUF_KEY, "")).encode()
        return msgspec.convert(strict_json(data), Manifest)
    except (ValueError, EdgeError):  # msgspec's error is a ValueError
        return None


def origin_digest(path: Path) -> str:
    """Digest of what edge made an artefact of; of the content of other files."""
    manifest = read_manifest(path)
    if manifest is not None:
        known = {k: v for k, v in asdict(manifest).items() if k in ORIGIN}
        text = json.dumps(known, sort_keys=True)
    else:
        files = sorted(path.rglob("[!.]*")) if path.is_dir() else [path]
        text = "".join(f"{file.name} {file_sha256(file)}\n" for file in files if file.is_file())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_manifest(artefact: Path, manifest: Manifest) -> None:
    """Add it to an otherwise complete artefact; an EdgeError if it exceeds a GGUF file's space."""
    text = manifest.to_json().encode()
    if artefact.is_dir():
        (artefact / MLX_FILE).write_bytes(text)
        return
    begin, end = _manifest_place(artefact)
    if len(text) > end - begin:  # a source of more than a hundred files
        raise EdgeError(
            f"{artefact.name}: the manifest takes {len(text)} bytes, a GGUF file has space for "
            f"{end - begin}; convert from a checkpoint with fewer files."
        )
    with artefact.open("r+b") as file:
        file.seek(begin)
        file.write(text.ljust(end - begin))


def file_sha256(
    path: Path, stopped: Callable[[], bool] = lambda: False, blank: tuple[int, int] = (0, 0)
) -> str:
    """SHA-256 of a file with the bytes between two offsets as spaces.

    A CancelledError if `stopped` becomes true before the end.
    """
    begin, end = blank
    with open_file(path) as file:
        digest = hashlib.sha256(file.read(begin) + b" " * (end - begin))
        file.seek(end)
        while piece := file.read(READ_BYTES):
            if stopped():
                raise CancelledError
            digest.update(piece)
    return digest.hexdigest()


def gguf_sha256(path: Path) -> str:
    """SHA-256 of a GGUF file with its manifest blank."""
    return file_sha256(path, blank=_manifest_place(path))


def _manifest_place(path: Path) -> tuple[int, int]:
    """Begin and end offset of the manifest's text in a GGUF file.

    A key is stored as its length and text, then its type, then the value's length and text.
    """
    key = len(GGUF_KEY).to_bytes(8, "little") + GGUF_KEY.encode()
    with open_file(path) as file:
        head = file.read(READ_BYTES)
        file_bytes = file.seek(0, 2)
    at = head.find(key)
    if at < 0:
        raise EdgeError(f"{path} has no edge manifest; convert the model again.")
    length_at = at + len(key) + 4
    begin = length_at + 8
    length = min(int.from_bytes(head[length_at:begin], "little"), READ_BYTES)
    return begin, min(begin + length, file_bytes)
