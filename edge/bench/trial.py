"""One timed repetition: stamps in, rates out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edge.bench.engines.engine import Engine
from edge.bench.workload import TokenPlan
from edge.profile.trial import Trial

NS_PER_S = 1e9
# Tokens of one trial whose single times a profile keeps; further passes keep first and last.
KEPT_TOKENS = 4096
Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Window:
    """How long a trial's passes are repeated: until it lasts `least_s`, or `most_passes`."""

    least_s: float = 0.0
    most_passes: int = 1

    def is_full(self, passes: int, begin_ns: int, end_ns: int) -> bool:
        """No further pass is needed after so many between two stamps."""
        return passes >= self.most_passes or end_ns - begin_ns >= self.least_s * NS_PER_S


ONE_PASS = Window()


def run_trial(
    engine: Engine, plan: TokenPlan, window: Window = ONE_PASS, joint: bool = False
) -> Trial:
    """Prefill the prompt, go back to the depth, generate; each again until its window is full.

    All stamps are of `time.monotonic_ns()`, taken only between finished device work.

    Args:
        engine: holds the plan's depth already, and does again afterwards.
        plan: the ids to feed.
        window: how long each of the two is repeated.
        joint: generation continues the prompt instead of going back to the depth. All prompts
            still come first, so that each window holds one kind of work.
    """
    depth = len(plan.depth)
    prefills = _prefills(engine, plan, window) if plan.prompt else []
    start = depth + (len(plan.prompt) if joint else 0)
    passes = _decodes(engine, plan.generate, start, window) if plan.generate else []
    engine.trim(depth)
    return make_trial(len(plan.prompt), prefills, passes)


def _prefills(engine: Engine, plan: TokenPlan, window: Window) -> Spans:
    """Begin and end of every pass."""
    spans: Spans = []
    while not spans or not window.is_full(len(spans), spans[0][0], spans[-1][1]):
        engine.trim(len(plan.depth))
        begin_ns = time.monotonic_ns()
        engine.prefill(plan.prompt)
        spans.append((begin_ns, time.monotonic_ns()))
    return spans


def _decodes(engine: Engine, ids: Sequence[int], start: int, window: Window) -> list[list[int]]:
    """A stamp per token of every pass, all of which start at the same depth."""
    passes: list[list[int]] = []
    while not passes or not window.is_full(len(passes), passes[0][0], passes[-1][-1]):
        engine.trim(start)
        stamps: list[int] = []
        engine.decode(ids, _stamp_into(stamps))
        passes.append(stamps)
    return passes


def _stamp_into(stamps: list[int]) -> Callable[[], None]:
    return lambda: stamps.append(time.monotonic_ns())


def make_trial(prompt_tokens: int, prefills: Spans, passes: Sequence[Sequence[int]]) -> Trial:
    """Rates and stamps of one repetition; a rate is None where its window is missing.

    Decode rate: sum of (N - 1) over sum of (t_N - t_1), as N stamps bound N - 1 intervals.
    `ttft_s` is the prefills' mean: from the prompt's submission to its last logits, model loaded.
    """
    prefill_s = sum(end - begin for begin, end in prefills) / NS_PER_S
    ttft_s = prefill_s / len(prefills) if prefills else None
    decode_s = sum(stamps[-1] - stamps[0] for stamps in passes) / NS_PER_S
    steps = sum(len(stamps) - 1 for stamps in passes)
    return Trial(
        warmup=False,
        prompt_tokens=prompt_tokens,
        decode_tok_s=steps / decode_s if decode_s else None,
        prefill_tok_s=prompt_tokens / ttft_s if ttft_s else None,
        ttft_s=ttft_s,
        prefill_ns=[stamp for span in prefills for stamp in span],
        pass_begin_ns=[stamps[0] for stamps in passes],
        pass_end_ns=[stamps[-1] for stamps in passes],
        token_us=[_times_us(stamps) for stamps in passes],
    )


def _times_us(stamps: Sequence[int]) -> list[int]:
    """Cumulative times are rounded, not single ones: their sum stays right."""
    since_us = [round((stamp - stamps[0]) / 1000) for stamp in stamps]
    return [after - before for before, after in pairwise(since_us)]


def kept_times(token_us: list[list[int]]) -> list[list[int]]:
    """Single token times that a profile keeps: whole passes of up to `KEPT_TOKENS` tokens."""
    kept: list[list[int]] = []
    tokens = 0
    for times in token_us:
        tokens += len(times) + 1
        if kept and tokens > KEPT_TOKENS:
            break
        kept.append(times)
    return kept
