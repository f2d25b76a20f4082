"""Scores on disk, so that a run that was stopped goes on and none is computed twice.

One file per artefact, reference and way of computing, named by a digest of them. It begins with
what they were, then has a record per window, all of one size, each with a digest of the window's
ids: its scores depend on nothing else, so a run with more tokens or another corpus finds those it
shares with an earlier one. A record is whole or ignored: it ends with a checksum.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge.formats.files import atomic_write, os_errors_as_edge_error
from edge.quality.divergence import Scores
from edge.quality.windows import DIGEST_BYTES

MAGIC = b"edge scores 1\n"
CHECKSUM_BYTES = 4
SUFFIX = ".scores"


class Records:
    """The scores of one artefact against one reference, by window.

    Args:
        folder: where the file is, or None to keep nothing on disk.
        identity: all that the scores depend on beside a window's ids; plain JSON data, with
            the artefact's name under "artefact".
        positions: scored in a window, or left out of the means.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], positions: int):
        head = json.dumps({**identity, "positions": positions}, sort_keys=True).encode()
        self._head = MAGIC + len(head).to_bytes(4, "little") + head
        self._positions = positions
        self._size = DIGEST_BYTES + 16 * positions + CHECKSUM_BYTES
        name = f"{identity['artefact']}-{hashlib.sha256(head).hexdigest()[:16]}{SUFFIX}"
        self._path = None if folder is None else folder / name
        self._found: dict[bytes, Scores] = {}
        if self._path is not None:
            self._found = self._read(self._path)

    def __contains__(self, window: bytes) -> bool:
        return window in self._found

    def __getitem__(self, window: bytes) -> Scores:
        return self._found[window]

    def add(self, window: bytes, scores: Scores) -> None:
        """Keep a window's scores, on disk when this returns.

        Raises:
            EdgeError: the disk does not take them.
        """
        if window in self._found:
            return
        self._found[window] = scores
        if self._path is None:
            return
        data = window + b"".join(np.ascontiguousarray(c).tobytes() for c in scores.columns)
        with os_errors_as_edge_error(self._path), self._path.open("ab") as file:
            file.write(data + zlib.crc32(data).to_bytes(CHECKSUM_BYTES, "little"))

    def forget(self) -> None:
        """Compute everything again."""
        self._found = {}
        if self._path is not None:
            _write(self._path, self._head)

    def _read(self, path: Path) -> dict[bytes, Scores]:
        """What is whole; a file that ends within a record is cut, any other begun again."""
        with os_errors_as_edge_error(path):
            data = path.read_bytes() if path.exists() else b""
        if not data.startswith(self._head):
            _write(path, self._head)
            return {}
        whole = (len(data) - len(self._head)) // self._size
        end = len(self._head) + whole * self._size
        if end < len(data):
            _write(path, data[:end])
        starts = range(len(self._head), end, self._size)
        return dict(r for r in (self._record(data[s : s + self._size]) for s in starts) if r)

    def _record(self, data: bytes) -> tuple[bytes, Scores] | None:
        body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
        if zlib.crc32(body) != int.from_bytes(checksum, "little"):
            return None
        columns = np.frombuffer(body[DIGEST_BYTES:], np.float32).reshape(4, self._positions)
        nll, kl, top, probability = columns
        return body[:DIGEST_BYTES], Scores(nll, kl, top.view(np.int32), probability)


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as partial:
        partial.write_bytes(data)
