"""The meter of a machine without one: it measures nothing and says why."""

from __future__ import annotations

from collections.abc import Sequence

from edge.power.meter import Sample


class NoMeter:
    """Gives no samples, so that energy is null with a reason, never 0."""

    source = "none"
    boundary = "nothing"
    flags: Sequence[str] = ()

    def __init__(self, reason: str):
        self.unavailable: str | None = reason

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> Sequence[Sample]:
        """No samples."""
        return ()
