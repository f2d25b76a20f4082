"""What was computed already: a JSON-lines file that grows with every hole.

    {"key": {"artefact": "mlx-int4", ...}}      the first line: what must be the same
    {"hole": "3f9c...", "text": "items", ...}   then one line per hole

A run that was stopped goes on where it was; more samples, another seed or another corpus find
what they share. A line that was cut off by a kill is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.atomic import one_sentence
from edge.errors import EdgeError
from edge.quality.fim.hole import Hole, digest

KEY, HOLE = "key", "hole"


class Journal:
    """One artefact's results under one set of circumstances.

    Args:
        folder: of the journals; made when there is something to write.
        key: everything that a result depends on, beside its hole; JSON. Its "artefact" names
            the file.

    Raises:
        EdgeError: the file cannot be read, or is none of ours.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]):
        self._key = dict(key)
        name = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / f"{key['artefact']}-{name}.jsonl"
        self._whole_bytes = 0
        self._found = self._read()

    def get(self, hole: Hole) -> dict[str, Any] | None:
        """What is known of a hole."""
        return self._found.get(digest([hole]))

    def add(self, hole: Hole, result: Mapping[str, Any]) -> None:
        """Keep a result; it is in the file on return.

        Raises:
            EdgeError: the disk is full, or the folder cannot be written.
        """
        name = digest([hole])
        lines = [json.dumps({HOLE: name, **result})]
        if not self._whole_bytes:
            lines.insert(0, json.dumps({KEY: self._key}))
        self._append("".join(line + "\n" for line in lines).encode())
        self._found[name] = dict(result)

    def _append(self, data: bytes) -> None:
        with one_sentence(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                if file.tell() != self._whole_bytes:  # a line that was cut off
                    os.truncate(self.path, self._whole_bytes)
                file.write(data)
        self._whole_bytes += len(data)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise EdgeError(f"{self.path} cannot be read ({error.strerror}); delete it.") from None
        whole = data[: data.rfind(b"\n") + 1]
        self._whole_bytes = len(whole)
        try:
            first, *rest = map(json.loads, whole.splitlines())
            if first[KEY] != self._key:
                raise KeyError(KEY)
            return {line.pop(HOLE): line for line in rest}
        except (ValueError, KeyError, TypeError, AttributeError):
            if not whole:
                return {}
            raise EdgeError(f"{self.path} is no journal of edge eval; delete it.") from None
