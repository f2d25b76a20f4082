"""What was computed already: a JSON-lines file that grows with every hole.

    {"key": {"artefact": "mlx-int4", ...}}      the first line: what must be the same
    {"hole": "3f9c...", "text": "items", ...}   then one line per hole

A run that was stopped goes on where it was; more samples, another seed or another corpus find
what they share. A line that was cut off by a kill is dropped. Two runs may write at once: each only
adds lines, and where both have the same hole, either will do.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.formats.files import os_errors_as_edge_error
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
        # A file that ends within a line: its size, and where that line begins.
        self._cut: tuple[int, int] | None = None
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
        self._append(json.dumps({HOLE: name, **result}))
        self._found[name] = dict(result)

    def _append(self, line: str) -> None:
        with os_errors_as_edge_error(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                if self._cut and file.tell() == self._cut[0]:  # and nobody has mended it since
                    file.truncate(self._cut[1])
                self._cut = None
                head = [] if file.seek(0, os.SEEK_END) else [json.dumps({KEY: self._key})]
                file.write("".join(f"{text}\n" for text in (*head, line)).encode())

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise EdgeError(f"{self.path} cannot be read ({error.strerror}); delete it.") from None
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._cut = len(data), len(whole)
        try:
            first, *rest = map(json.loads, whole.splitlines())
            if first[KEY] != self._key:
                raise KeyError(KEY)
            # Two runs that began together may both have written the first line.
            return {line.pop(HOLE): line for line in rest if line != first}
        except (ValueError, KeyError, TypeError, AttributeError):
            if not whole:
                return {}
            raise EdgeError(f"{self.path} is no journal of edge eval; delete it.") from None
