"""The profile of a run, which is on disk and valid after every process."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import structs

from edge.bench.cooldown import baseline_drift
from edge.bench.engines.engine import SERVER
from edge.bench.plan import Target
from edge.bench.row import Context, build_row
from edge.bench.runner import Run
from edge.bench.trial import MAX_PASSES
from edge.device.describe import Device, measured_again
from edge.device.memory import peak_metric
from edge.device.software import software_versions, tf32_allowed
from edge.formats.files import new_file, remove, safe_name
from edge.profile.baseline import with_ratios
from edge.profile.imported import OWN_STEP_RATE
from edge.profile.profile import SCHEMA, Method, ModelInfo, Profile, Row, write

# Fields of the method where a server is measured.
OF_SERVER = {
    "decode_rate": "through HTTP: sum of (N - 1) / sum of (t_N - t_1) over a trial's requests",
    "excluded": ["load", "connecting"],
    **dict.fromkeys(("seed", "peak_memory", "float32_products")),
}


def new_profile(model: ModelInfo, argv: Sequence[str], method: Method, device: Device) -> Profile:
    """A profile without rows, of now; of paths on the command line it has the names only."""
    words = ["URL" if "://" in word else Path(word).name if "/" in word else word for word in argv]
    if "/" in model.source:  # of the hub
        words = [model.source if word == model.name else word for word in words]
    return Profile(
        schema=SCHEMA,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=words,
        device=device,
        software=software_versions(),
        model=model,
        method=method,
        rows=[],
    )


def method_of(run: Run, repetitions: int, power: str, **compared: Any) -> Method:
    """How a run measures; `repetitions` and `power` are those of the command line.

    `compared` are the fields of the method about a comparison within the run.
    """
    job = run.jobs[0]
    method = Method(
        decode_rate=OWN_STEP_RATE,
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
        **compared,
    )
    return structs.replace(method, **OF_SERVER) if job.engine == SERVER else method


@dataclass
class ProfileWriter:
    """Builds the rows of `run`, one per target, and saves the profile in `folder`."""

    profile: Profile
    run: Run
    targets: Sequence[Target]
    folder: Path
    context: Context
    path: Path = field(init=False)
    is_saved: bool = False
    _built: dict[int, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stamp = self.profile.created_utc.replace("+00:00", "Z").replace(":", "").replace("-", "")
        name = safe_name(self.profile.model.name.replace(" ", "-"))
        self.path = self.folder / f"{stamp}-{name}.json"

    def label(self, row: int) -> str:
        job = self.run.jobs[row]
        arm = f" ({job.arm})" if job.arm else ""
        return f"{self.targets[row].recipe.name} on {job.engine}{arm}, {job.workload}"

    def update(self, row: int) -> None:
        self._write([row])

    def finish(self) -> None:
        """Builds all rows with the idle power after the run and the better of two bandwidths."""
        self.profile = structs.replace(self.profile, device=measured_again(self.profile.device))
        self._write(range(len(self.targets)))

    def add_quality(self, found: Mapping[str, dict[str, Any]] | None, reason: str = "") -> None:
        self.context = replace(self.context, quality=found, no_quality=reason)
        self._write(range(len(self.targets)))

    def _write(self, changed: Iterable[int]) -> None:
        run, before, after = self.run, self.run.idle_before, self.run.idle_after
        drift, device, idle_w = baseline_drift(before, after), self.profile.device, run.idle_w
        context = replace(
            self.context, rounds=run.rounds, device=device, idle_w=idle_w, idle_drift=drift
        )
        for row in changed:
            self._built[row] = build_row(self.targets[row], run.jobs[row], run.runs[row], context)
        idle = {
            "before": before and asdict(before),
            "after": after and asdict(after),
            "net_of_w": idle_w,
            "drift": drift,
        }
        method = structs.replace(
            self.profile.method,
            processes_per_row=run.rounds,
            in_turns=run.in_turns,
            order=[[self.label(row) for row in order] for order in run.order],
            idle=idle,
            finished=run.finished,
        )
        rows = [self._built[row] for row in sorted(self._built)]
        self.profile = with_ratios(structs.replace(self.profile, method=method, rows=rows))
        self._save()

    def _save(self) -> None:
        """Writes the profile, the first time under a name that no other run has."""
        if not self.is_saved:
            self.path = new_file(self.path)
        try:
            write(self.profile, self.path)
            self.is_saved = True
        finally:
            if not self.is_saved:
                remove(self.path)
