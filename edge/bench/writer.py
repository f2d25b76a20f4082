"""The profile of a run while it grows: on disk and valid after every process."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from edge.bench.cooldown import baseline_drift
from edge.bench.row import Context, Subject, build_row
from edge.bench.runner import Run
from edge.bench.trial import MAX_PASSES
from edge.device.describe import measured_again
from edge.device.peak import peak_metric
from edge.device.software import tf32_allowed
from edge.profile.profile import Method, Profile, Row, write


def method_of(run: Run, repetitions: int, power: str) -> Method:
    """How a run measures; `repetitions` and `power` as they were asked for."""
    job = run.jobs[0]
    return Method(
        decode_rate="sum of (N - 1) / sum of (t_N - t_1) over a trial's passes",
        excluded=["load", "tokenisation", "sampling", "detokenisation", "trimming the cache"],
        warmups=job.warmups,
        repetitions=repetitions,
        processes_per_row=run.rounds,
        trials_per_process=job.repetitions,
        min_window_s=job.min_window_s,
        max_passes=MAX_PASSES,
        cooldown_limit_s=run.cooldown_s,
        power=power,
        seed=run.seed,
        clock="monotonic_ns",
        peak_memory=peak_metric(),
        float32_products="TF32 where the chip has it" if tf32_allowed() else "float32",
    )


@dataclass
class ProfileWriter:
    """Builds the rows of `run` as they come, one per subject, and saves the profile in `folder`."""

    profile: Profile
    run: Run
    subjects: Sequence[Subject]
    folder: Path
    context: Context
    _built: dict[int, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = [[self.label(row) for row in order] for order in self.run.order]
        method = structs.replace(self.profile.method, order=order)
        self.profile = structs.replace(self.profile, method=method)

    @property
    def path(self) -> Path:
        """Where it is saved."""
        stamp = self.profile.created_utc.replace("+00:00", "Z").replace(":", "").replace("-", "")
        return self.folder / f"{stamp}-{self.profile.model.name}.json"

    def label(self, row: int) -> str:
        """Name of a row, by its number."""
        job = self.run.jobs[row]
        return f"{self.subjects[row].artefact} on {job.engine}, {job.workload}"

    def update(self, row: int) -> None:
        """Build a row again, one of whose processes ended, and write."""
        self._write([row])

    def finish(self) -> None:
        """The last time, with the idle power after the run and the better bandwidth of two."""
        self.profile = structs.replace(self.profile, device=measured_again(self.profile.device))
        self._write(range(len(self.subjects)))

    def add_quality(self, found: dict[str, Any] | None, why_not: str | None) -> None:
        """Add what artefacts lose, or the sentence why that is not known."""
        self.context = replace(self.context, quality=found, no_quality=why_not)
        self._write(range(len(self.subjects)))

    def _write(self, changed: Iterable[int]) -> None:
        run, before, after = self.run, self.run.idle_before, self.run.idle_after
        drift = baseline_drift(before, after)
        device, idle_w = self.profile.device, run.idle_w
        context = replace(self.context, device=device, idle_w=idle_w, idle_drift=drift)
        for row in changed:
            self._built[row] = build_row(self.subjects[row], run.jobs[row], run.runs[row], context)
        idle = {
            "before": before and asdict(before),
            "after": after and asdict(after),
            "net_of_w": idle_w,
            "drift": drift,
        }
        method = structs.replace(self.profile.method, idle=idle, finished=run.finished)
        rows = [self._built[row] for row in sorted(self._built)]
        self.profile = structs.replace(self.profile, method=method, rows=rows)
        write(self.profile, self.path)
