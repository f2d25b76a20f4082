"""JSON objects from files that nobody vouches for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge.errors import EdgeError

# The largest tokenizer.json of a published model is some 30 MB.
MAX_BYTES = 100_000_000


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        EdgeError: missing, unreadable, absurdly large, or another kind of JSON.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise EdgeError(
                f"{path} is larger than {MAX_BYTES // 10**6} MB, which no such file is; "
                f"download it again."
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise EdgeError(
            f"{path} is missing: a checkpoint is a directory with config.json, tokenizer.json "
            f"and *.safetensors; check the path or download it again."
        ) from None
    except OSError as error:
        raise EdgeError(f"{path} cannot be read ({error}); download it again.") from None
    return parse_json_object(data, str(path))


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse JSON that must be an object.

    Raises:
        EdgeError: it is not JSON, nested absurdly deep, or another kind of JSON.
    """
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EdgeError(f"{where} cannot be read as JSON ({error}); download it again.") from None
    if not isinstance(parsed, dict):
        raise EdgeError(f"{where} holds no JSON object; download it again.")
    return parsed
