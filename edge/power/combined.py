"""Two meters at once: one counts, the other shows what that one leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edge.power.meter import Meter, Sample, integrate


class CombinedMeter:
    """The first meter's rails count; the second's stand beside them, named by their source.

    Never added to one another: both may hold the same watts. A second meter that fails costs a
    flag, no measurement.
    """

    def __init__(self, primary: Meter, secondary: Meter) -> None:
        self._primary, self._secondary = primary, secondary

    @property
    def source(self) -> str:
        """Both names; the first one counts."""
        return f"{self._primary.source}+{self._secondary.source}"

    @property
    def boundary(self) -> str:
        """That of the meter that counts."""
        return self._primary.boundary

    @property
    def unavailable(self) -> str | None:
        """Why the meter that counts does not."""
        return self._primary.unavailable

    @property
    def flags(self) -> Sequence[str]:
        """Doubts about either, those about the second with its name."""
        second = [*self._secondary.flags, self._secondary.unavailable]
        named = [f"{self._secondary.source}: {words}" for words in second if words]
        return (*self._primary.flags, *named)

    def start(self) -> None:
        """Start both, the second first, so that it covers all of the first."""
        self._secondary.start()
        self._primary.start()

    def stop(self) -> Sequence[Sample]:
        """The first meter's samples, each with what the second saw at that time."""
        samples = self._primary.stop()
        others = self._secondary.stop()
        return [self._with_beside(sample, others) for sample in samples]

    def _with_beside(self, sample: Sample, others: Sequence[Sample]) -> Sample:
        seen = integrate(others, sample.begin_ns, sample.end_ns)
        rails = {**seen.beside, **seen.joules}
        named = {f"{self._secondary.source} {rail}": j for rail, j in rails.items()}
        return replace(sample, beside={**sample.beside, **named})
