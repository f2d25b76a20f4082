"""What the runner and a worker say to each other: JSON, one message a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from edge.bench.workload import Workload

MAX_PASSES = 1000


@dataclass(frozen=True)
class Job:
    """One row's work in one process.

    `repetitions` are the counted trials of this process, whose windows shall last at least
    `min_window_s` where `max_passes` allow it. `kv_bits` are the cache's, for our network alone.
    """

    engine: str
    path: str
    workload: Workload
    vocab_size: int
    seed: int
    repetitions: int
    warmups: int
    threads: int
    kv_bits: int | None = None
    min_window_s: float = 0.0
    max_passes: int = MAX_PASSES
    round: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        """The inverse of `to_dict`."""
        return msgspec.convert(data, cls)
