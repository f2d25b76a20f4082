"""What is run: llama-bench's tests, with its meanings."""

from __future__ import annotations

import random
from dataclasses import dataclass

from edge.profile.profile import Workload

__all__ = ["TokenPlan", "Workload", "plan_tokens"]


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
