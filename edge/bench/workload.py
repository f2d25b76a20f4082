"""Workloads: llama-bench's tests, suites of them, and their token ids."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from typing import Any

from msgspec.structs import replace

from edge.errors import EdgeError
from edge.profile.profile import Workload

SUITES: dict[str, tuple[Workload, ...]] = {
    # The report does not state its workload; this is llama-bench's default.
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

STEP = 64  # of the depths that are chosen for a short context


@dataclass(frozen=True)
class TokenPlan:
    """Token ids of a workload, the same for every engine; of a batch a list per sequence."""

    depth: list[Any]
    prompt: list[Any]
    generate: list[Any]


def plan_tokens(workload: Workload, vocab_size: int, seed: int) -> TokenPlan:
    """Random ids, as in llama-bench: speed does not depend on them."""
    if workload.batch > 1:
        one = replace(workload, batch=1)
        plans = [plan_tokens(one, vocab_size, seed + row) for row in range(workload.batch)]
        depths, prompts = [p.depth for p in plans], [p.prompt for p in plans]
        return TokenPlan(depths, prompts, [p.generate for p in plans])
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(count)]

    return TokenPlan(ids(workload.depth), ids(workload.prompt), ids(workload.generate))


def plan_workloads(
    prompts: Sequence[int],
    generates: Sequence[int],
    depths: Sequence[int],
    joint: Sequence[tuple[int, int]] = (),
    batches: Sequence[int] = (1,),
) -> list[Workload]:
    """The workloads of -p, -n, -d, -pg and -npl; an EdgeError if there is nothing to measure.

    llama-bench runs each prompt length, each number of generated tokens and each -pg at every
    depth as a test of its own. A workload here pairs the first two in their order, so that every
    test is run once. 0 means no such test. Each is run in a batch of every size.
    """
    wanted = ([n for n in dict.fromkeys(counts) if n] for counts in (prompts, generates))
    tests = [Workload(p, n) for p, n in zip_longest(*wanted, fillvalue=0)]
    tests += [Workload(p, n, joint=True) for p, n in joint]
    if not tests or any(test.prompt == 0 and test.generate < 2 for test in tests):
        raise EdgeError(
            "-n 0 and -n 1 leave nothing to measure without a prompt: one token has no rate; use "
            "-n 2 or more, or a prompt (-p)."
        )
    shapes = product(depths, tests, batches)
    every = [replace(test, depth=depth, batch=batch) for depth, test, batch in shapes]
    return list(dict.fromkeys(every))


def served_workloads(
    prompts: Sequence[int], generates: Sequence[int], joint: Sequence[tuple[int, int]]
) -> list[Workload]:
    """The workloads of -p, -n and -pg: a request always generates behind its prompt."""
    planned = plan_workloads(prompts, generates, [0], joint)
    if any(workload.prompt == 0 for workload in planned):
        raise EdgeError("A request to a server has a prompt; give as many lengths to -p as to -n.")
    return list(dict.fromkeys(replace(w, joint=w.generate > 0) for w in planned))


def check_lengths(workloads: Sequence[Workload], context_tokens: int, name: str) -> None:
    for workload in workloads:
        if workload.context_tokens > context_tokens:
            raise EdgeError(
                f"{workload} needs {workload.context_tokens} positions, {name} was trained for "
                f"{context_tokens}; use a smaller -p, -n, -d or -pg."
            )


def suite_workloads(
    suite: str, context_tokens: int, name: str, warn: Callable[[str], None]
) -> list[Workload]:
    """The workloads of a suite that the model was trained for; `warn` gets the others.

    Depths that are too long are replaced by shorter ones. An EdgeError if all are too long.
    """
    fitting = [w for w in SUITES[suite] if w.context_tokens <= context_tokens]
    if not fitting:
        check_lengths(SUITES[suite], context_tokens, name)
    longer = [w for w in SUITES[suite] if w not in fitting]
    if not longer:
        return fitting
    added = [w for w in _shorter(longer, context_tokens) if w not in fitting]
    instead = f"; measured instead: {_listed(added)}" if added else ""
    why = f"as {name} was trained for {context_tokens} positions"
    warn(f"left out, {why}: {_listed(longer)}{instead}")
    return sorted([*fitting, *added], key=lambda w: w.depth)


def _shorter(longer: Sequence[Workload], context_tokens: int) -> list[Workload]:
    """One for each that has a depth: all of what the context allows, a half of it, a quarter ..."""
    deep = [w for w in longer if w.depth]
    most = [context_tokens - replace(w, depth=0).context_tokens for w in deep]
    depths = [(room >> halvings) // STEP * STEP for halvings, room in enumerate(most)]
    return [replace(w, depth=d) for w, d in zip(deep, depths, strict=True) if d][::-1]


def _listed(workloads: Sequence[Workload]) -> str:
    return "; ".join(map(str, workloads))
