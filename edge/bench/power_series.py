"""A process's power samples as a profile keeps them: whole numbers, one list a rail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edge.power.meter import Sample, worst_thermal

# Some 25 bytes each in the file; more than a plot has pixels.
KEPT_SAMPLES = 1000


def power_series(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """Begins, ends, milliwatts per rail, and the thermal level wherever it changes.

    Of more than `KEPT_SAMPLES` neighbours are merged: joules are kept, not peaks. None without
    samples.
    """
    groups = list(_groups([s for s in samples if s.end_ns > s.begin_ns]))
    if not groups:
        return None
    rails = sorted({rail for group in groups for s in group for rail in s.joules})
    return {
        "begin_ns": [group[0].begin_ns for group in groups],
        "end_ns": [group[-1].end_ns for group in groups],
        "milliwatts": {rail: [_milliwatts(group, rail) for group in groups] for rail in rails},
        "thermal": _changes(groups),
    }


def _groups(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    size = max(1, -(-len(samples) // KEPT_SAMPLES))
    for first in range(0, len(samples), size):
        yield samples[first : first + size]


def _milliwatts(group: Sequence[Sample], rail: str) -> int:
    seconds = sum(s.end_ns - s.begin_ns for s in group) / 1e9
    return round(1000 * sum(s.joules.get(rail, 0.0) for s in group) / seconds)


def _changes(groups: Sequence[Sequence[Sample]]) -> list[dict[str, Any]]:
    changes: list[dict[str, Any]] = []
    for group in groups:
        level = worst_thermal([s.thermal for s in group])
        if level is not None and (not changes or changes[-1]["level"] != level):
            changes.append({"begin_ns": group[0].begin_ns, "level": level})
    return changes
