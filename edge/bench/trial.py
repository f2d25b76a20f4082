"""Timing of one repetition."""

import time
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from edge.bench.engines.engine import Engine
from edge.bench.workload import TokenPlan
from edge.profile.trial import Trial

NS_PER_S = 1e9
# Tokens per trial whose times a profile keeps one by one; later passes keep first and last only.
KEPT_TOKENS = 4096
MAX_PASSES = 1000
Passes = Sequence[Sequence[int]]


def run_trial(engine: Engine, plan: TokenPlan, least_s: float = 0.0, joint: bool = False) -> Trial:
    """Times prefill passes, then decode passes, each kind for at least `least_s` seconds.

    All stamps are of `time.monotonic_ns()`, taken when the device has finished. The cache holds
    the plan's depth before and after. Passes start at the depth; with `joint`, those of decoding
    behind the prompt.
    """
    depth = len(plan.depth)
    start = depth + (len(plan.prompt) if joint else 0)

    def prefill() -> list[int]:
        engine.trim(depth)
        begin_ns = time.monotonic_ns()
        engine.prefill(plan.prompt)
        return [begin_ns, time.monotonic_ns()]

    def decode() -> list[int]:
        stamps: list[int] = []
        engine.trim(start)
        engine.decode(plan.generate, lambda: stamps.append(time.monotonic_ns()))
        return stamps

    prefills = _repeated(prefill, least_s) if plan.prompt else []
    passes = _repeated(decode, least_s) if plan.generate else []
    engine.trim(depth)
    return make_trial(len(plan.prompt), prefills, passes)


def _repeated(one_pass: Callable[[], list[int]], least_s: float) -> list[list[int]]:
    passes = [one_pass()]
    while passes[-1][-1] - passes[0][0] < least_s * NS_PER_S and len(passes) < MAX_PASSES:
        passes.append(one_pass())
    return passes


def make_trial(prompt_tokens: int, prefills: Passes, passes: Passes) -> Trial:
    """Rates and stamps of one repetition; a rate is None where its window is missing.

    Decode rate: sum of (N - 1) over sum of (t_N - t_1), as N stamps bound N - 1 intervals.
    `ttft_s` is the mean time of a prefill, the model being loaded.
    """
    prefill_s = sum(stamps[-1] - stamps[0] for stamps in prefills) / NS_PER_S
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
    """Microseconds between stamps; cumulative times are rounded, so that sums stay exact."""
    since_us = [round((stamp - stamps[0]) / 1000) for stamp in stamps]
    return [after - before for before, after in pairwise(since_us)]


def kept_times(token_us: list[list[int]]) -> list[list[int]]:
    """Times of whole passes with up to `KEPT_TOKENS` tokens in all; at least one pass."""
    counts = accumulate(len(times) + 1 for times in token_us)
    kept = [times for times, tokens in zip(token_us, counts, strict=True) if tokens <= KEPT_TOKENS]
    return kept or token_us[:1]
