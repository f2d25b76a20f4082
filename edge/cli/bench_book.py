"""The profile of `edge bench` while it grows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edge.bench.cooldown import baseline_drift
from edge.bench.job import Job
from edge.bench.rounds import Results
from edge.bench.row import Context, Subject, build_row
from edge.device.describe import measured_again
from edge.profile.profile import Profile, Row, write


@dataclass
class Book:
    """The profile while it grows: on disk and valid after every process."""

    profile: Profile
    rows: list[tuple[Job, Subject]]
    results: Results
    folder: Path
    references: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    no_quality: str | None = None
    seen: dict[int, int] = field(default_factory=dict)
    built: dict[int, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = [[_label(*self.rows[row]) for row in order] for order in self.results.order]
        self.profile = replace(self.profile, method=replace(self.profile.method, order=order))

    @property
    def path(self) -> Path:
        """Where it is saved."""
        stamp = self.profile.created_utc.replace("+00:00", "Z").replace(":", "").replace("-", "")
        return self.folder / f"{stamp}-{self.profile.model.name}.json"

    def enter(self, row: int) -> None:
        """Build the row again, one of whose processes ended, and write."""
        self._build([row])

    def close(self) -> None:
        """The last time, with the idle power after the run and the better bandwidth of two."""
        self.profile = replace(self.profile, device=measured_again(self.profile.device))
        self._build(range(len(self.rows)))

    def add_quality(self, found: dict[str, Any] | None, why_not: str | None) -> None:
        """What artefacts lose, or the sentence why that is not known."""
        self.quality, self.no_quality = found, why_not
        self._build(range(len(self.rows)))

    def progress(self, row: int, total: int) -> tuple[str, float]:
        """A row's name and how much of its trials is done, one more than at the last call."""
        self.seen[row] = self.seen.get(row, 0) + 1
        return _label(*self.rows[row]), self.seen[row] / total

    def _build(self, changed: Iterable[int]) -> None:
        """Build some rows with what is known now, and write the profile with all of them."""
        context, results = self._context(), self.results
        for number in changed:
            job, subject = self.rows[number]
            self.built[number] = build_row(subject, job, results.runs[number], context)
        idle, finished = _idle_record(results), results.finished
        self.profile = replace(
            self.profile,
            method=replace(self.profile.method, idle=idle, finished=finished),
            rows=[self.built[number] for number in sorted(self.built)],
        )
        write(self.profile, self.path)

    def _context(self) -> Any:
        results = self.results
        return Context(
            rounds=len(results.order),
            device=self.profile.device,
            idle_w=results.idle_w,
            idle_doubt=baseline_drift(results.idle_before, results.idle_after),
            references=self.references,
            quality=self.quality,
            no_quality=self.no_quality,
        )


def _label(job: Job, subject: Subject) -> str:
    return f"{subject.artefact} on {job.engine}, {job.workload}"


def _idle_record(results: Results) -> dict[str, Any]:
    before, after = results.idle_before, results.idle_after
    return {
        "before": asdict(before) if before else None,
        "after": asdict(after) if after else None,
        "net_of_w": results.idle_w,
        "drift": baseline_drift(before, after),
    }
