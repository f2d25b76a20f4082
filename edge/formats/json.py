"""JSON objects from files that nobody vouches for."""

from __future__ import annotations

import json
import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from edge.errors import EdgeError

# The largest tokenizer.json of a published model is some 30 MB.
MAX_BYTES = 100_000_000
# No file of a checkpoint nests deeper than ten; what is far deeper is there to break a reader.
MAX_DEPTH = 64
# Half of a character that UTF-16 needs two for: alone, nothing can write it down again.
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        EdgeError: missing, unreadable, absurdly large, or another kind of JSON.
    """
    return parse_json_object(read_small_file(path), str(path))


def read_small_file(path: Path) -> bytes:
    """Read a file that is no larger than JSON of a checkpoint may be.

    Raises:
        EdgeError: missing, unreadable, absurdly large, or no file: a pipe would never end.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise EdgeError(f"{path} is a folder, pipe or device, no file; download it again.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise EdgeError(
            f"{path} is missing: a checkpoint is a directory with config.json, tokenizer.json "
            f"and *.safetensors; check the path or download it again."
        ) from None
    except OSError as error:
        raise EdgeError(
            f"{path} cannot be read ({error.strerror or error}); check its permissions or "
            f"download it again."
        ) from None
    if len(data) > MAX_BYTES:
        raise EdgeError(
            f"{path} is larger than {MAX_BYTES // 10**6} MB, which no such file is; "
            f"download it again."
        )
    return data


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse JSON that must be an object.

    Raises:
        EdgeError: it is not JSON, or not as `strict_json` wants it, or another kind of JSON.
    """
    try:
        parsed = strict_json(data)
    except ValueError as error:
        raise EdgeError(f"{where} cannot be read as JSON ({error}); download it again.") from None
    if not isinstance(parsed, dict):
        raise EdgeError(f"{where} holds no JSON object; download it again.")
    return parsed


def strict_json(data: bytes) -> Any:
    """Parse JSON that every other reader would understand in the same way.

    Python's parser takes more than there is in JSON: other encodings, NaN, a key twice.
    Readers disagree on these, so that one would check what another never uses.

    Raises:
        ValueError: not UTF-8, a key twice, NaN or Infinity, half characters, numbers of
            thousands of digits, nested absurdly deep, or no JSON at all.
    """
    try:
        parsed = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("nested absurdly deep") from None
    if _is_deeper(parsed, MAX_DEPTH):
        raise ValueError("nested absurdly deep")
    if SURROGATE.search(data):
        json.dumps(parsed, ensure_ascii=False).encode()
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether containers nest deeper than that; found without recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        children = (c for node in level for c in (node.values() if type(node) is dict else node))
        level = [child for child in children if isinstance(child, dict | list)]
    return bool(level)
