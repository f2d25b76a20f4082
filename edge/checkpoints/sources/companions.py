"""The small files beside the weights: which travel along, and that each may be read."""

from __future__ import annotations

import json
from pathlib import Path

from edge.errors import EdgeError
from edge.json_file import MAX_BYTES, parse_json_object, read_json_object

# As far as they are there; no file of code is among them.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
JSON_COMPANIONS = tuple(name for name in COMPANIONS if name.endswith("_config.json"))


def read_companions(path: Path) -> dict[str, bytes]:
    """Contents of what travels along, by name.

    Raises:
        EdgeError: tokenizer.json is missing, or a file is unreadable, huge or no JSON.
    """
    read_json_object(inside(path, "tokenizer.json"))  # every artefact needs it
    companions = {}
    for name in COMPANIONS:
        file = inside(path, name)
        if not file.is_file():
            continue
        if file.stat().st_size > MAX_BYTES:
            raise EdgeError(f"{file} is larger than {MAX_BYTES // 10**6} MB; download it again.")
        companions[name] = file.read_bytes()
    for name in JSON_COMPANIONS:
        if name in companions:
            companions[name] = _without_code(companions[name], f"{path / name}")
    return companions


def inside(path: Path, name: str) -> Path:
    """A file of the directory.

    Raises:
        EdgeError: it is a link that leads out of the directory. The hub's cache links
            models--OWNER--NAME/snapshots/REVISION/FILE to blobs of its own, which is allowed.
    """
    file = path / name
    home = path.resolve()
    if home.parent.name == "snapshots":
        home = home.parent.parent.parent
    try:
        target = file.resolve()
    except (OSError, RuntimeError):  # a link to itself
        raise EdgeError(f"{file} is a link in a circle; download it again.") from None
    if file.is_symlink() and not target.is_relative_to(home):
        raise EdgeError(
            f"{file} is a link that leads out of its directory; replace it with the file itself."
        )
    return file


def _without_code(content: bytes, where: str) -> bytes:
    """The file without the key that names Python classes for a loader to run."""
    settings = parse_json_object(content, where)
    if "auto_map" not in settings:
        return content
    return json.dumps({k: v for k, v in settings.items() if k != "auto_map"}, indent=2).encode()
