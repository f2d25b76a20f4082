"""What is run: llama-bench's tests, with its meanings."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """`prompt` tokens processed at once, and `generate` tokens one by one, each after `depth`.

    As in llama-bench the two are separate tests: generation starts at the depth, not behind the
    prompt. With `joint`, its -pg, they are one test: generation continues the prompt.
    """

    prompt: int
    generate: int
    depth: int = 0
    joint: bool = False

    @property
    def context_tokens(self) -> int:
        """Positions the cache must hold."""
        added = self.prompt + self.generate if self.joint else max(self.prompt, self.generate)
        return self.depth + added

    @property
    def decode_depth(self) -> int:
        """Positions in the cache when generation starts."""
        return self.depth + (self.prompt if self.joint else 0)

    def __str__(self) -> str:
        """pp512, tg128 @ d4096; a joint one, as llama-bench has it, pp512+tg128."""
        tests = [f"{k}{n}" for k, n in (("pp", self.prompt), ("tg", self.generate)) if n]
        name = "+".join(tests) if self.joint else ", ".join(tests)
        return name + (f" @ d{self.depth}" if self.depth else "")


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
