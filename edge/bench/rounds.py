"""The run: every row once per round, each time in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from edge.bench.cooldown import Cooled, Idle, Machine, cool_down, measure_idle
from edge.bench.energy import TrialEnergy, trial_energy
from edge.bench.job import Job
from edge.bench.runner import Outcome, run_job
from edge.bench.schedule import order_of
from edge.bench.trial import Trial
from edge.device.state import State
from edge.power.meter import Meter, Sample

OnTrial = Callable[[int, Trial], None]
RunJob = Callable[[Job, float, Callable[[Trial], None]], Outcome]


@dataclass(frozen=True)
class Settings:
    """How a run goes about it: its order's seed, and limits in seconds.

    `has_power` says that a meter worked before: that it no longer does is then worth a notice.
    """

    rounds: int
    seed: int = 0
    timeout_s: float = 3600
    cooldown_s: float = 60
    idle_s: float = 10
    has_power: bool = False


@dataclass(frozen=True)
class ProcessRun:
    """One row in one round: what its process said, and the machine around it.

    `power_lost` says why the meter that had worked before did not start.
    """

    round: int
    outcome: Outcome
    meter: Meter
    samples: Sequence[Sample]
    before: State
    after: State
    cooled: Cooled = field(default_factory=Cooled)
    power_lost: str | None = None

    @cached_property
    def trials(self) -> list[tuple[Trial, TrialEnergy]]:
        """Every trial with its energy, integrated once."""
        source = self.meter.source
        return [(t, trial_energy(t, self.samples, source)) for t in self.outcome.trials]


@dataclass
class Results:
    """What was measured so far; `runs` has a list per row, in the order of the rounds."""

    order: list[list[int]]
    runs: list[list[ProcessRun]]
    idle_before: Idle | None = None
    idle_after: Idle | None = None
    finished: bool = False

    @property
    def idle_w(self) -> float | None:
        """Mean of the idle power before and after, as far as measured."""
        known = [idle.watts for idle in (self.idle_before, self.idle_after) if idle is not None]
        return sum(known) / len(known) if known else None


@dataclass
class Run:
    """A run over all rows.

    A row that failed in one round is invalid and not run again; the others go on.

    Args:
        jobs: a row's work per process each.
        settings: rounds and limits.
        machine: what tells its state, time and power.
        run: runs one process to its end; never raises for what the process does.
        notice: told once, at once, if power was there and is gone.
    """

    jobs: Sequence[Job]
    settings: Settings
    machine: Machine
    run: RunJob = run_job
    notice: Callable[[str], None] = lambda _: None
    results: Results = field(init=False)

    def __post_init__(self) -> None:
        order = order_of(len(self.jobs), self.settings.rounds, self.settings.seed)
        self.results = Results(order, [[] for _ in self.jobs])
        self._lost_power = False

    def go(self, on_process: Callable[[int], None], on_trial: OnTrial) -> Results:
        """Measure everything.

        Args:
            on_process: told the row's number after each of its processes.
            on_trial: told the row's number and every trial as it ends.
        """
        results = self.results
        results.idle_before = measure_idle(self.settings.idle_s, self.machine)
        for round_number, order in enumerate(results.order):
            for row in order:
                if any(done.outcome.failure for done in results.runs[row]):
                    continue
                results.runs[row].append(self._process(row, round_number, on_trial))
                on_process(row)
        if results.idle_before is not None:
            cool_down(self.settings.cooldown_s, self.machine, results.idle_before)
            results.idle_after = measure_idle(self.settings.idle_s, self.machine)
        results.finished = True
        return results

    def _process(self, row: int, round_number: int, on_trial: OnTrial) -> ProcessRun:
        """One process, the meter running around it."""
        cooled = cool_down(self.settings.cooldown_s, self.machine, self.results.idle_before)
        job = replace(self.jobs[row], round=round_number)
        before, (meter, lost) = self.machine.look(), self._started_meter()
        try:
            outcome = self.run(job, self.settings.timeout_s, lambda trial: on_trial(row, trial))
        finally:  # on Ctrl-C too: a meter may be a process of its own
            samples = meter.stop()
        after = self.machine.look()
        return ProcessRun(round_number, outcome, meter, samples, before, after, cooled, lost)

    def _started_meter(self) -> tuple[Meter, str | None]:
        """The meter, running; and why the one that had worked is not it."""
        meter = self.machine.new_meter()
        meter.start()
        if meter.unavailable is None or not self.settings.has_power:
            return meter, None
        lost = meter.unavailable
        meter = self.machine.new_meter()  # the next source, where there is one
        meter.start()
        if not self._lost_power:
            self._lost_power = True
            instead = f"; {meter.source} goes on" if meter.unavailable is None else ""
            self.notice(f"power is no longer measured: {lost}{instead}")
        return meter, lost
