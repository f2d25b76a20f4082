"""Write profiles/schema.json, the JSON Schema of a profile: python tools/write_profile_schema.py.

A test compares the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from edge.profile.profile import Profile

SCHEMA = Path(__file__).resolve().parents[1] / "profiles" / "schema.json"
ABOUT = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "stable-edge-profile-1",
    "description": "A profile of stable-edge, schema 1. Unknown keys are allowed; what has a "
    "default was added later and may be missing in older files.",
}


def text() -> str:
    """The file's content; descriptions are the docstrings of edge's classes."""
    schema = msgspec.json.schema(Profile)
    for name in ("Device", "Bandwidth"):
        del schema["$defs"][name]["description"]
    return json.dumps({**ABOUT, **schema}, indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(text(), encoding="utf-8")
    sys.exit(0)
