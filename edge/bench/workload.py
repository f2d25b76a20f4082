"""What is run: llama-bench's tests, with its meanings."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """`prompt` tokens processed at once, and `generate` tokens one by one, each after `depth`.

    As in llama-bench the two are separate tests: generation starts at the depth, not behind
    the prompt.
    """

    prompt: int
    generate: int
    depth: int = 0

    @property
    def context_tokens(self) -> int:
        """Positions the cache must hold."""
        return self.depth + max(self.prompt, self.generate)

    def __str__(self) -> str:
        """pp512 + tg128 @ d4096."""
        tests = [f"{k}{n}" for k, n in (("pp", self.prompt), ("tg", self.generate)) if n]
        return " + ".join(tests) + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class TokenPlan:
    """The ids that every engine is fed: the same for the same seed and vocabulary."""

    depth: list[int]
    prompt: list[int]
    generate: list[int]


def plan_tokens(workload: Workload, vocab_size: int, seed: int) -> TokenPlan:
    """Random ids, as llama-bench uses: speed does not depend on which they are."""
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(count)]

    return TokenPlan(ids(workload.depth), ids(workload.prompt), ids(workload.generate))
