"""One timed repetition: stamps in, rates out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edge.bench.engines.engine import Engine
from edge.bench.workload import TokenPlan

Clock = Callable[[], int]
NS_PER_S = 1e9
# Tokens of one trial whose single times a profile keeps; further passes keep first and last.
KEPT_TOKENS = 4096


@dataclass(frozen=True)
class Window:
    """How long a trial's passes are repeated: until it lasts `least_s`, or `most_passes`."""

    least_s: float = 0.0
    most_passes: int = 1

    def is_full(self, passes: int, begin_ns: int, end_ns: int) -> bool:
        """Whether no further pass is needed after so many between two stamps."""
        return passes >= self.most_passes or end_ns - begin_ns >= self.least_s * NS_PER_S


ONE_PASS = Window()


@dataclass(frozen=True)
class Trial:
    """Raw stamps of one repetition, all of `time.monotonic_ns()`.

    `prefill_ns` has begin and end of every prefill pass, none without a prompt; `passes_ns` the
    stamps of every generation pass, one per token. All passes start at the same depth: what
    was added is forgotten between them, outside of every rate. A warm-up is kept but never
    counted.
    """

    repetition: int
    warmup: bool
    prefill_ns: tuple[tuple[int, int], ...]
    passes_ns: tuple[tuple[int, ...], ...]
    prompt_tokens: int
    round: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trial:
        """The inverse of `dataclasses.asdict`, after a way through JSON."""
        prefill_ns = tuple((int(begin), int(end)) for begin, end in data["prefill_ns"])
        passes_ns = tuple(tuple(stamps) for stamps in data["passes_ns"])
        return cls(**{**data, "prefill_ns": prefill_ns, "passes_ns": passes_ns})

    @property
    def prefill_tok_s(self) -> float | None:
        """Prompt tokens per second over all passes; None without a prompt."""
        return self.prompt_tokens / self.ttft_s if self.ttft_s else None

    @property
    def ttft_s(self) -> float | None:
        """From the prompt's submission to its last logits, model loaded: the passes' mean."""
        if not self.prefill_ns:
            return None
        total_ns = sum(end - begin for begin, end in self.prefill_ns)
        return total_ns / len(self.prefill_ns) / NS_PER_S

    @property
    def decode_s(self) -> float | None:
        """First to last stamp of every pass, added up; None where no pass has two tokens."""
        if not self.token_times_ns:
            return None
        return sum(self.token_times_ns) / NS_PER_S

    @property
    def decode_tok_s(self) -> float | None:
        """Sum of (N - 1) over sum of (t_N - t_1): N stamps bound N - 1 intervals."""
        return len(self.token_times_ns) / self.decode_s if self.decode_s else None

    @property
    def token_times_ns(self) -> list[int]:
        """How long each token took but the first of every pass, which no stamp precedes."""
        return [b - a for stamps in self.passes_ns for a, b in pairwise(stamps)]

    @property
    def prefill_window_ns(self) -> tuple[int, int] | None:
        """First begin to last end, over all passes."""
        return (self.prefill_ns[0][0], self.prefill_ns[-1][1]) if self.prefill_ns else None

    @property
    def decode_window_ns(self) -> tuple[int, int] | None:
        """First to last stamp, over all passes; None below two tokens."""
        return (self.passes_ns[0][0], self.passes_ns[-1][-1]) if self.window_tokens > 0 else None

    @property
    def window_tokens(self) -> int:
        """Tokens whose whole work lies in the decode window: all but the very first."""
        return max(sum(map(len, self.passes_ns)) - 1, 0)

    @property
    def window_prompt_tokens(self) -> int:
        """Prompt tokens processed in the prefill window."""
        return self.prompt_tokens * len(self.prefill_ns)

    def to_record(self) -> dict[str, Any]:
        """What a profile keeps: rates, windows, and token times as whole microseconds.

        A pass is its first stamp, its last one and the times between; passes beyond the first
        `KEPT_TOKENS` tokens are without the latter.
        """
        return {
            "repetition": self.repetition,
            "round": self.round,
            "warmup": self.warmup,
            "prompt_tokens": self.prompt_tokens,
            "decode_tok_s": self.decode_tok_s,
            "prefill_tok_s": self.prefill_tok_s,
            "ttft_s": self.ttft_s,
            "prefill_ns": [stamp for ends in self.prefill_ns for stamp in ends],
            "pass_begin_ns": [stamps[0] for stamps in self.passes_ns],
            "pass_end_ns": [stamps[-1] for stamps in self.passes_ns],
            "token_us": self._kept_times_us(),
        }

    def _kept_times_us(self) -> list[list[int]]:
        """Cumulative times are rounded, not single ones: their sum stays right."""
        kept: list[list[int]] = []
        for stamps in self.passes_ns:
            if kept and sum(map(len, kept)) + len(stamps) > KEPT_TOKENS:
                break
            since_us = [round((stamp - stamps[0]) / 1000) for stamp in stamps]
            kept.append([b - a for a, b in pairwise(since_us)])
        return kept


def run_trial(
    engine: Engine,
    plan: TokenPlan,
    repetition: int,
    warmup: bool,
    clock: Clock,
    window: Window = ONE_PASS,
    round_number: int = 0,
    joint: bool = False,
) -> Trial:
    """Prefill the prompt, go back to the depth, generate; each again until its window is full.

    Args:
        engine: holds the plan's depth already, and does again afterwards.
        plan: the ids to feed.
        repetition: the trial's number in its process.
        warmup: whether it is one that does not count.
        clock: nanoseconds; called only between finished device work.
        window: how long each of the two is repeated.
        round_number: the round it belongs to.
        joint: whether generation continues the prompt instead of going back to the depth. All
            prompts still come first, so that each window holds one kind of work.
    """
    depth = len(plan.depth)
    prefill_ns = _prefills(engine, plan, clock, window) if plan.prompt else ()
    start = depth + (len(plan.prompt) if joint else 0)
    passes_ns = _decodes(engine, plan.generate, start, clock, window) if plan.generate else ()
    engine.trim(depth)
    return Trial(repetition, warmup, prefill_ns, passes_ns, len(plan.prompt), round_number)


def _prefills(
    engine: Engine, plan: TokenPlan, clock: Clock, window: Window
) -> tuple[tuple[int, int], ...]:
    ends: list[tuple[int, int]] = []
    while not ends or not window.is_full(len(ends), ends[0][0], ends[-1][1]):
        engine.trim(len(plan.depth))
        begin_ns = clock()
        engine.prefill(plan.prompt)
        ends.append((begin_ns, clock()))
    return tuple(ends)


def _decodes(
    engine: Engine, ids: Sequence[int], start: int, clock: Clock, window: Window
) -> tuple[tuple[int, ...], ...]:
    passes: list[tuple[int, ...]] = []
    while not passes or not window.is_full(len(passes), passes[0][0], passes[-1][-1]):
        engine.trim(start)
        stamps: list[int] = []
        engine.decode(ids, lambda found=stamps: found.append(clock()))  # type: ignore[misc]
        passes.append(tuple(stamps))
    return tuple(passes)
