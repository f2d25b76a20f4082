"""What the runner and a worker say to each other: JSON, one message a line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edge.bench.workload import Workload


@dataclass(frozen=True)
class Job:
    """One row's work in one process.

    `fuse` and `pad` are `edge.model.variant.Variant`'s, for our network alone.
    """

    engine: str
    path: str
    workload: Workload
    vocab_size: int
    seed: int
    repetitions: int
    warmups: int
    threads: int
    fuse: bool = True
    pad: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        """The inverse of `to_dict`."""
        return cls(**{**data, "workload": Workload(**data["workload"])})
