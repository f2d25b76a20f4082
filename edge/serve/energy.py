"""The energy of answers, from one meter that runs as long as the server."""

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from edge.power.choose import why_not
from edge.power.meter import Meter, Sample, integrate
from edge.serve.request import EnergyUse, Usage

# Least share of an answer that the samples must cover.
LEAST_COVERAGE = 0.95
# How long an answer's end waits for the meter; editors wait for it.
MOST_WAIT_S, POLL_S = 0.25, 0.01
# Longer than an answer takes.
KEPT_S = 1800.0


class EnergyMeter:
    """Integrates the meter's samples over the time in which an answer was computed.

    Answers that are computed at once share the power of each moment equally, whatever each of them
    computes, so that their joules add up to what the meter measured.
    """

    def __init__(self, meter: Meter, source: str):
        self._meter = meter
        # Stamps, and how many answers were computed from then on; the first holds for all before.
        self._counts: tuple[tuple[int, int], ...] = ((0, 1),)
        self.reason = "power is not measured: --power none"
        if source != "none":
            self.reason = why_not(meter, source) or ""

    @property
    def boundary(self) -> str | None:
        """What the joules cover; None where nothing is measured."""
        return None if self.reason else self._meter.boundary

    def start(self) -> None:
        if not self.reason:
            self._meter.start()

    def stop(self) -> None:
        if not self.reason:
            self._meter.stop()

    def count_answers(self, answers: int) -> None:
        """From now on so many answers are computed at once; always called by the same thread."""
        if answers != self._counts[-1][1]:
            now_ns = time.monotonic_ns()
            first = bisect_right(self._counts, now_ns - int(KEPT_S * 1e9), key=_stamp_ns) - 1
            (_, before), *later = self._counts[max(0, first) :]
            self._counts = ((0, before), *later, (now_ns, answers))

    def read(self) -> Sequence[Sample]:
        """The samples of the last KEPT_S; older ones are forgotten."""
        since_ns = time.monotonic_ns() - int(KEPT_S * 1e9)
        return () if self.reason else self._meter.read(since_ns)

    async def measured(self, usage: Usage) -> Usage:
        """The usage with its energy, once the meter has covered it."""
        if self.reason:
            return usage
        until_s = time.monotonic() + MOST_WAIT_S
        while True:
            # In a thread: reading a counter can take milliseconds.
            energy = self._of(await asyncio.to_thread(self.read), usage)
            if energy is not None or time.monotonic() > until_s:
                return replace(usage, energy=energy)
            await asyncio.sleep(POLL_S)

    def _of(self, samples: Sequence[Sample], usage: Usage) -> EnergyUse | None:
        begin_ns, prefilled_ns, end_ns = usage.begin_ns, usage.prefilled_ns, usage.end_ns
        whole = integrate(samples, begin_ns, end_ns)
        if whole.coverage < LEAST_COVERAGE or not whole.is_total:
            return None
        prefill_j = 0.0
        if prefilled_ns > begin_ns:
            prefill_j = self._share_j(samples, begin_ns, prefilled_ns)
        whole_j = self._share_j(samples, begin_ns, end_ns)
        return EnergyUse(prefill_j, whole_j - prefill_j, self._meter.boundary)

    def _share_j(self, samples: Sequence[Sample], begin_ns: int, end_ns: int) -> float:
        """Joules of one of the answers that were computed between two stamps."""
        counts = self._counts
        first = bisect_right(counts, begin_ns, key=_stamp_ns) - 1
        last = bisect_left(counts, end_ns, key=_stamp_ns)
        total_j, begins = 0.0, [begin_ns, *(at for at, _ in counts[first + 1 : last]), end_ns]
        for (_, answers), window in zip(counts[first:last], pairwise(begins), strict=True):
            if window[0] < window[1]:
                total_j += integrate(samples, *window).total_j / max(1, answers)
        return total_j


def _stamp_ns(count: tuple[int, int]) -> int:
    return count[0]
