"""One timed repetition: stamps in, rates out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge.bench.engines.engine import Engine
from edge.bench.workload import TokenPlan

Clock = Callable[[], int]
NS_PER_S = 1e9


@dataclass(frozen=True)
class Trial:
    """Raw stamps of one repetition, all of `time.monotonic_ns()`.

    `token_ns` holds one stamp per generated token. A warm-up is kept but never counted.
    """

    repetition: int
    warmup: bool
    prefill_begin_ns: int
    prefill_end_ns: int
    token_ns: tuple[int, ...]
    prompt_tokens: int

    @property
    def prefill_tok_s(self) -> float | None:
        """Prompt tokens per second; None without a prompt."""
        return self.prompt_tokens / self.ttft_s if self.ttft_s else None

    @property
    def ttft_s(self) -> float | None:
        """From the prompt's submission to the first token's logits, model loaded."""
        elapsed_ns = self.prefill_end_ns - self.prefill_begin_ns
        return elapsed_ns / NS_PER_S if self.prompt_tokens else None

    @property
    def decode_s(self) -> float | None:
        """From the first token's stamp to the last one's; None below two tokens."""
        if len(self.token_ns) < 2:
            return None
        return (self.token_ns[-1] - self.token_ns[0]) / NS_PER_S

    @property
    def decode_tok_s(self) -> float | None:
        """(N - 1) / (t_N - t_1): N stamps bound N - 1 intervals."""
        return (len(self.token_ns) - 1) / self.decode_s if self.decode_s else None


def run_trial(
    engine: Engine, plan: TokenPlan, repetition: int, warmup: bool, clock: Clock
) -> Trial:
    """Prefill the prompt, go back to the depth, generate.

    Args:
        engine: holds the plan's depth already, and does again afterwards.
        plan: the ids to feed.
        repetition: the trial's number.
        warmup: whether it is one that does not count.
        clock: nanoseconds; called only between finished device work.
    """
    depth = len(plan.depth)
    engine.trim(depth)
    begin_ns = clock()
    if plan.prompt:
        engine.prefill(plan.prompt)
    end_ns = clock()
    engine.trim(depth)
    stamps: list[int] = []
    engine.decode(plan.generate, lambda: stamps.append(clock()))
    engine.trim(depth)
    return Trial(repetition, warmup, begin_ns, end_ns, tuple(stamps), len(plan.prompt))
