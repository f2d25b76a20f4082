"""In which order rows run: interleaved, so that no row always follows the same hot one."""

from __future__ import annotations

import random


def rounds_for(trials: int, rounds: int) -> int:
    """How many rounds there are: none without a trial."""
    return max(min(trials, rounds), 1)


def trials_per_process(trials: int, rounds: int) -> int:
    """A row's trials spread over its rounds, rounded up so that all rounds are alike."""
    return -(-trials // rounds_for(trials, rounds))


def order_of(rows: int, rounds: int, seed: int) -> list[list[int]]:
    """The rows' numbers in running order, one list per round.

    Each round is a permutation of its own: what a row finds (heat, caches, memory in pieces)
    depends on the row before it, and a fixed order would make that part of the result.
    """
    rng = random.Random(f"order {seed}")
    return [rng.sample(range(rows), rows) for _ in range(rounds)]
