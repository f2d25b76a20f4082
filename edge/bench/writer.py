"""The profile of a run while it grows: on disk and valid after every process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from edge.bench.cooldown import baseline_drift
from edge.bench.row import Context, Subject, build_row
from edge.bench.runner import Results
from edge.bench.worker import Job
from edge.device.describe import measured_again
from edge.profile.profile import Profile, Row, write


@dataclass
class ProfileWriter:
    """Builds the rows of `results` as they come and saves the profile in `folder`."""

    profile: Profile
    rows: list[tuple[Job, Subject]]
    results: Results
    folder: Path
    context: Context
    _built: dict[int, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = [[self.label(row) for row in order] for order in self.results.order]
        method = structs.replace(self.profile.method, order=order)
        self.profile = structs.replace(self.profile, method=method)

    @property
    def path(self) -> Path:
        """Where it is saved."""
        stamp = self.profile.created_utc.replace("+00:00", "Z").replace(":", "").replace("-", "")
        return self.folder / f"{stamp}-{self.profile.model.name}.json"

    def label(self, row: int) -> str:
        """Name of a row, by its number."""
        job, subject = self.rows[row]
        return f"{subject.artefact} on {job.engine}, {job.workload}"

    def update(self, row: int) -> None:
        """Build a row again, one of whose processes ended, and write."""
        self._write([row])

    def finish(self) -> None:
        """The last time, with the idle power after the run and the better bandwidth of two."""
        self.profile = structs.replace(self.profile, device=measured_again(self.profile.device))
        self._write(range(len(self.rows)))

    def add_quality(self, found: dict[str, Any] | None, why_not: str | None) -> None:
        """What artefacts lose, or the sentence why that is not known."""
        self.context = replace(self.context, quality=found, no_quality=why_not)
        self._write(range(len(self.rows)))

    def _write(self, changed: Iterable[int]) -> None:
        """Build some rows with what is known now, and write the profile with all of them."""
        results = self.results
        before, after = results.idle_before, results.idle_after
        drift = baseline_drift(before, after)
        device, idle_w = self.profile.device, results.idle_w
        context = replace(self.context, device=device, idle_w=idle_w, idle_drift=drift)
        for number in changed:
            job, subject = self.rows[number]
            self._built[number] = build_row(subject, job, results.runs[number], context)
        idle = {
            "before": asdict(before) if before else None,
            "after": asdict(after) if after else None,
            "net_of_w": results.idle_w,
            "drift": drift,
        }
        method = structs.replace(self.profile.method, idle=idle, finished=results.finished)
        rows = [self._built[number] for number in sorted(self._built)]
        self.profile = structs.replace(self.profile, method=method, rows=rows)
        write(self.profile, self.path)
