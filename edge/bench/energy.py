"""A trial's energy: prefill and decode apart, or null with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge.bench.trial import Trial
from edge.power.meter import Energy, Sample, integrate

# Less than this and part of the window's energy is unknown.
MIN_COVERAGE = 0.99


@dataclass(frozen=True)
class WindowEnergy:
    """Energy of one window, and the tokens whose work lies in it.

    `missing` says why there is no total; then every figure is None.
    """

    seconds: float
    tokens: int
    energy: Energy
    missing: str | None

    @property
    def power_w(self) -> float | None:
        """Mean over the window; what coverage lacks to 1 is taken as the mean of the rest."""
        if self.missing is not None:
            return None
        return self.energy.total_j / (self.seconds * self.energy.coverage)

    @property
    def joules_per_token(self) -> float | None:
        """Gross: all that the boundary used in the window."""
        power_w = self.power_w
        return None if power_w is None or not self.tokens else power_w * self.seconds / self.tokens

    def net_joules_per_token(self, idle_w: float | None) -> float | None:
        """Gross less what the machine would have used without work, in the same time."""
        gross_j = self.joules_per_token
        if gross_j is None or idle_w is None:
            return None
        return gross_j - idle_w * self.seconds / self.tokens

    @property
    def edge_share(self) -> float:
        """How much of the total the window's edges can have misplaced."""
        total_j = self.energy.total_j
        return self.energy.edge_error_j / total_j if total_j > 0 else 0.0

    def to_record(self) -> dict[str, Any]:
        """What a profile keeps."""
        return {
            "window_s": self.seconds,
            "tokens": self.tokens,
            "joules": dict(self.energy.joules),
            "beside": dict(self.energy.beside),
            "coverage": self.energy.coverage,
            "edge_error_j": self.energy.edge_error_j,
            "records": self.energy.records,
            "thermal_worst": self.energy.thermal_worst,
            "missing": self.missing,
        }


@dataclass(frozen=True)
class TrialEnergy:
    """Both windows of a trial; None where the trial has no such window or nothing measured."""

    prefill: WindowEnergy | None = None
    decode: WindowEnergy | None = None


def trial_energy(trial: Trial, samples: Sequence[Sample], source: str) -> TrialEnergy:
    """Energy of both windows.

    Args:
        trial: whose windows.
        samples: a meter's, over the whole process; without any there is no energy at all.
        source: the meter's name, for the reasons.
    """
    if not samples:
        return TrialEnergy()
    return TrialEnergy(
        prefill=_window(samples, trial.prefill_window_ns, trial.window_prompt_tokens, source),
        decode=_window(samples, trial.decode_window_ns, trial.window_tokens, source),
    )


def _window(
    samples: Sequence[Sample], window_ns: tuple[int, int] | None, tokens: int, source: str
) -> WindowEnergy | None:
    if window_ns is None or window_ns[1] <= window_ns[0]:
        return None
    energy = integrate(samples, *window_ns)
    seconds = (window_ns[1] - window_ns[0]) / 1e9
    return WindowEnergy(seconds, tokens, energy, _missing(energy, source))


def _missing(energy: Energy, source: str) -> str | None:
    if energy.coverage <= 0 or not energy.joules:
        return f"no sample of {source} covers the window"
    if energy.coverage < MIN_COVERAGE:
        return f"the samples of {source} cover {energy.coverage:.0%} of a window: measure again"
    if not energy.is_total:
        return f"the CPU's counter of {source} failed, so that no total is known: measure again"
    return None
