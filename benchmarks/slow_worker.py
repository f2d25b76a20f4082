"""A worker of edge bench whose engine is slower by a known share; error_rates.py starts it.

    python benchmarks/slow_worker.py 0.03 [what Python would get]

The time is added within the timed windows, as busy waiting: a share of a decode pass before its
last stamp (MLX computes ahead, which would hide a wait between tokens), and a share of each prefill
after it. With 0 it differs from edge's own worker in nothing else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edge.bench import worker


def wait_s(seconds: float) -> None:
    """Waits without giving the processor away."""
    end_ns = time.monotonic_ns() + seconds * 1e9
    while time.monotonic_ns() < end_ns:
        pass


class SlowEngine:
    """An engine whose passes take longer by a share."""

    def __init__(self, engine: Any, share: float):
        self._engine, self._share = engine, share

    def prefill(self, ids: Sequence[int]) -> None:
        begin_ns = time.monotonic_ns()
        self._engine.prefill(ids)
        wait_s(self._share * (time.monotonic_ns() - begin_ns) / 1e9)

    def decode(self, ids: Sequence[int], stamp: Callable[[], None]) -> None:
        stamps_ns: list[int] = []

        def late_stamp() -> None:
            stamps_ns.append(time.monotonic_ns())
            if len(stamps_ns) == len(ids):
                wait_s(self._share * (stamps_ns[-1] - stamps_ns[0]) / 1e9)
            stamp()

        self._engine.decode(ids, late_stamp)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def main() -> int:
    """Runs edge's worker with its engines slowed."""
    share, opened = float(sys.argv[1]), worker.open_engine
    worker.open_engine = lambda job, tokens: SlowEngine(opened(job, tokens), share)
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
