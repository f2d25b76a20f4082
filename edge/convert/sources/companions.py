"""The small files beside the weights: which travel along, and that each may be read."""

from __future__ import annotations

import json
from pathlib import Path

from edge.errors import EdgeError
from edge.formats.files import parse_json_object, read_small_file

INDEX = "model.safetensors.index.json"  # which file holds which tensor
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
# Those that can name classes for a loader to run; in the others the name would be a token.
WITH_CODE = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
HUB_FOLDER = "models--"


def read_companions(path: Path) -> dict[str, bytes]:
    """Contents of what travels along, by name.

    Raises:
        EdgeError: tokenizer.json is missing, or a file is unreadable, huge or no JSON.
    """
    companions = {}
    for name in COMPANIONS:
        file = inside(path, name)
        if name == "tokenizer.json" or file.exists():  # every artefact needs that one
            content = read_small_file(file)
            companions[name] = _checked(name, content, str(file))
    return companions


def inside(path: Path, name: str) -> Path:
    """A file of the directory.

    Raises:
        EdgeError: it is a link that leads out of the directory. The hub's cache links
            models--OWNER--NAME/snapshots/REVISION/FILE to models--OWNER--NAME/blobs/HASH,
            which is allowed.
    """
    file = path / name
    try:
        home, target, is_link = path.resolve(), file.resolve(), file.is_symlink()
    except OSError as error:
        raise EdgeError(f"{file} cannot be read ({error.strerror}); check its name.") from None
    except RuntimeError:  # a link to itself
        raise EdgeError(f"{file} is a link in a circle; download it again.") from None
    repository = home.parent.parent
    if home.parent.name == "snapshots" and repository.name.startswith(HUB_FOLDER):
        home = repository
    if is_link and not target.is_relative_to(home):
        raise EdgeError(
            f"{file} is a link that leads out of its directory; replace it with the file itself."
        )
    return file


def _checked(name: str, content: bytes, where: str) -> bytes:
    """The file, which is JSON if it is called so, without the key that names code."""
    if not name.endswith(".json"):
        return content
    settings = parse_json_object(content, where)
    if name not in WITH_CODE or "auto_map" not in settings:
        return content
    return json.dumps({k: v for k, v in settings.items() if k != "auto_map"}, indent=2).encode()
