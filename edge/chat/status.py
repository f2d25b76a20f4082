"""What a turn took, in one line."""

from __future__ import annotations

import time
from dataclasses import dataclass

from edge.generate.stream import TextEvent
from edge.power.meter import Sample, integrate

# Joules per token of a turn that the meter saw less of would be a guess.
COVERED = 0.95


@dataclass(frozen=True)
class Turn:
    """One answer's figures; the time that printing took counts.

    Attributes:
        tokens: generated, a stop token included.
        finish: "stop token", "stop string", "length" or "interrupted".
        prompt_tokens: computed for it, what the cache held left out; None if interrupted.
        ttft_s: from the call to the first token; None if there was none.
        decode_tok_s: (N - 1) / (t_N - t_1); None for fewer than two tokens.
        power_w: mean over what the meter covered; None without a meter.
        joules_per_token: None without a meter that covered the turn.
        empty: whether there was nothing to show.
    """

    tokens: int
    finish: str
    prompt_tokens: int | None
    ttft_s: float | None
    decode_tok_s: float | None
    power_w: float | None = None
    joules_per_token: float | None = None
    empty: bool = False


class TurnClock:
    """Counts and times the events of one answer, also of one that is cut off."""

    def __init__(self) -> None:
        self.begin_ns = self._first_ns = self._last_ns = time.monotonic_ns()
        self._tokens = 0
        self._empty = True
        self._last: TextEvent | None = None

    def take(self, event: TextEvent) -> None:
        """An event is there."""
        self._last = event
        self._empty = self._empty and not event.text.strip()
        if event.ids:
            self._last_ns = time.monotonic_ns()
            if self._tokens == 0:
                self._first_ns = self._last_ns
            self._tokens += len(event.ids)

    def turn(self, samples: tuple[Sample, ...] = ()) -> Turn:
        """The figures, with the energy of the meter's samples."""
        stats = None if self._last is None else self._last.stats
        decode_ns = self._last_ns - self._first_ns
        power_w, joules = self._energy(samples)
        return Turn(
            tokens=self._tokens if stats is None else stats.generated_tokens,
            finish=(self._last and self._last.finish) or "interrupted",
            prompt_tokens=None if stats is None else stats.prompt_tokens,
            ttft_s=(self._first_ns - self.begin_ns) / 1e9 if self._tokens else None,
            decode_tok_s=(self._tokens - 1) / decode_ns * 1e9 if decode_ns else None,
            power_w=power_w,
            joules_per_token=joules,
            empty=self._empty,
        )

    def _energy(self, samples: tuple[Sample, ...]) -> tuple[float | None, float | None]:
        """Watts, and joules per token."""
        if not samples or self._last_ns <= self.begin_ns:
            return None, None
        energy = integrate(samples, self.begin_ns, self._last_ns)
        covered_s = energy.coverage * (self._last_ns - self.begin_ns) / 1e9
        if not covered_s:
            return None, None
        whole = energy.coverage >= COVERED and self._tokens > 0
        return energy.total_j / covered_s, energy.total_j / self._tokens if whole else None


def status_line(
    turn: Turn,
    memory_bytes: int,
    context_tokens: int,
    context_limit: int,
    dropped_turns: int = 0,
    max_tokens: int | None = None,
) -> str:
    """The line under an answer."""
    parts = [counted(turn.tokens, "token")]
    if turn.decode_tok_s is not None:
        parts.append(f"{turn.decode_tok_s:.1f} tok/s")
    if turn.ttft_s is not None:
        parts.append(f"first after {turn.ttft_s:.2f} s")
    parts.append(size(memory_bytes))
    parts.append(f"context {context_tokens}/{context_limit}")
    if dropped_turns:
        parts.append(f"{counted(dropped_turns, 'early turn')} left out")
    if turn.power_w is not None:
        parts.append(f"{turn.power_w:.1f} W")
    if turn.joules_per_token is not None:
        parts.append(f"{turn.joules_per_token:.2f} J/token")
    if turn.empty:
        parts.append("the answer is empty")
    parts += _why_cut(turn, max_tokens)
    return " · ".join(parts)


def _why_cut(turn: Turn, max_tokens: int | None) -> list[str]:
    if turn.finish == "interrupted":
        return ["stopped by you"]
    if turn.finish != "length":
        return []
    if max_tokens is not None and turn.tokens >= max_tokens:
        return ["cut at max_tokens"]
    return ["cut at the end of the context"]


def counted(number: int, thing: str) -> str:
    """A number of things."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def size(count_bytes: int) -> str:
    """A number of bytes in MB or GB, powers of ten."""
    if count_bytes < 1e9:
        return f"{count_bytes / 1e6:.0f} MB"
    return f"{count_bytes / 1e9:.2f} GB"
