"""Workloads: llama-bench's tests with its meanings, suites of them, and the ids that are fed."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from msgspec.structs import replace

from edge.errors import EdgeError
from edge.profile.profile import Workload

SUITES: dict[str, tuple[Workload, ...]] = {
    # The report does not say what it ran; llama-bench's default is what most tables have.
    "table11": (Workload(512, 128),),
    "quick": (Workload(128, 32),),
    "depth": tuple(Workload(512, 128, depth) for depth in (0, 1024, 4096, 16384)),
    # LocalScore's nine scenarios in its order (localscore.ai; github.com/cjpais/LocalScore).
    "localscore": tuple(
        Workload(prompt, generate, joint=True)
        for prompt, generate in (
            *((1024, 16), (4096, 256), (2048, 256), (2048, 768), (1024, 1024)),
            *((1280, 3072), (384, 1152), (64, 1024), (16, 1536)),
        )
    ),
}


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


def plan_workloads(
    prompts: Sequence[int],
    generates: Sequence[int],
    depths: Sequence[int],
    joint: Sequence[tuple[int, int]] = (),
) -> list[Workload]:
    """One workload per row of each artefact.

    llama-bench's tests are single: each prompt length, each number of generated tokens, each
    -pg, at every depth. A row here holds one of either of the first two, first with first, so
    that every test is run once. Zeros mean that there is no such test.

    Raises:
        EdgeError: there is nothing to measure.
    """
    wanted = ([n for n in dict.fromkeys(counts) if n] for counts in (prompts, generates))
    tests = [Workload(p, n) for p, n in zip_longest(*wanted, fillvalue=0)]
    tests += [Workload(p, n, joint=True) for p, n in joint]
    if not tests or any(test.prompt == 0 and test.generate < 2 for test in tests):
        raise EdgeError(
            "-n 0 and -n 1 leave nothing to measure without a prompt: one token has no rate; use "
            "-n 2 or more, or a prompt (-p)."
        )
    every = [replace(test, depth=depth) for depth in depths for test in tests]
    return list(dict.fromkeys(every))


def check_lengths(workloads: Sequence[Workload], context_tokens: int, name: str) -> None:
    """Refuse what is longer than the model was trained for.

    Raises:
        EdgeError: a workload needs more positions.
    """
    for workload in workloads:
        if workload.context_tokens > context_tokens:
            raise EdgeError(
                f"{workload} needs {workload.context_tokens} positions, {name} was trained for "
                f"{context_tokens}; use a smaller -p, -n, -d or -pg."
            )


def suite_workloads(
    suite: str, context_tokens: int, name: str, warn: Callable[[str], None]
) -> list[Workload]:
    """A suite without what is longer than the model was trained for, which is warned of.

    Raises:
        EdgeError: all of it is longer.
    """
    fitting = [w for w in SUITES[suite] if w.context_tokens <= context_tokens]
    if not fitting:
        shortest = min(SUITES[suite], key=lambda workload: workload.context_tokens)
        check_lengths([shortest], context_tokens, name)
    for longer in SUITES[suite]:
        if longer not in fitting:
            warn(f"{longer} is left out: {name} was trained for {context_tokens} positions")
    return fitting
