"""Workloads from the command line: llama-bench's flags, and suites of them by name."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from itertools import zip_longest

from edge.bench.workload import Workload
from edge.errors import EdgeError

# llama-bench's own.
PROMPT, GENERATE, DEPTH, REPETITIONS = 512, 128, 0, 5
STANDARD = Workload(PROMPT, GENERATE)
TABLE_11_SUITE = "table11"
SUITES: dict[str, tuple[Workload, ...]] = {
    # The report does not say what it ran; llama-bench's default is what most tables have.
    TABLE_11_SUITE: (STANDARD,),
    "quick": (Workload(128, 32),),
    "depth": tuple(Workload(PROMPT, GENERATE, depth) for depth in (0, 1024, 4096, 16384)),
    # LocalScore's nine scenarios in its order (localscore.ai; github.com/cjpais/LocalScore).
    "localscore": tuple(
        Workload(prompt, generate, joint=True)
        for prompt, generate in (
            (1024, 16),
            (4096, 256),
            (2048, 256),
            (2048, 768),
            (1024, 1024),
            (1280, 3072),
            (384, 1152),
            (64, 1024),
            (16, 1536),
        )
    ),
}
FLAGS = {"prompt": "-p", "generate": "-n", "depth": "-d", "joint": "-pg"}
RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?")
LARGEST_TOKENS, MOST_VALUES = 2**31 - 1, 1000


def token_counts(text: str) -> list[int]:
    """llama-bench's lists, for argparse: numbers and ranges FIRST-LAST, +STEP or *FACTOR."""
    return [value for part in text.split(",") for value in _range(part, text)]


def prompt_and_generate(text: str) -> Workload:
    """llama-bench's -pg, for argparse."""
    values = token_counts(text) if re.fullmatch(r"\d+,\d+", text) else []
    if len(values) != 2 or values[0] < 1 or values[1] < 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not P,N with a prompt of at least 1 and at least 2 generated tokens"
        )
    return Workload(values[0], values[1], joint=True)


def workloads(args: argparse.Namespace, context_tokens: int, name: str) -> list[Workload]:
    """What the arguments ask for, one workload per row of each artefact.

    llama-bench's tests are single: each prompt length, each number of generated tokens, each
    -pg, at every depth. A row here holds one of either of the first two, first with first, so
    that every test is run once.

    Args:
        args: with what `add_workload_arguments` declared.
        context_tokens: what the model was trained for. Of a suite, what is longer is left out.
        name: the model's, for messages.

    Raises:
        EdgeError: a workload is too long or empty, or a suite is given with single flags.
    """
    if args.suite is not None:
        return _suite(args, context_tokens, name)
    asked = [
        Workload(work.prompt, work.generate, depth, work.joint)
        for depth in args.depth or [DEPTH]
        for work in _tests(args)
    ]
    if not asked:
        raise EdgeError("-p 0 -n 0 leaves nothing to measure; use a prompt, or -n 2 or more.")
    for workload in asked:
        _check(workload, context_tokens, name)
    return list(dict.fromkeys(asked))


def left_out(args: argparse.Namespace, context_tokens: int) -> list[Workload]:
    """A suite's workloads that are longer than the model's context."""
    asked = SUITES[args.suite] if args.suite is not None else ()
    return [workload for workload in asked if workload.context_tokens > context_tokens]


def _suite(args: argparse.Namespace, context_tokens: int, name: str) -> list[Workload]:
    given = [flag for dest, flag in FLAGS.items() if getattr(args, dest) is not None]
    if given:
        raise EdgeError(
            f"--suite {args.suite} sets the workloads itself; leave out {', '.join(given)}."
        )
    longer = left_out(args, context_tokens)
    fitting = [workload for workload in SUITES[args.suite] if workload not in longer]
    if not fitting:
        raise EdgeError(
            f"--suite {args.suite} needs at least "
            f"{min(workload.context_tokens for workload in longer)} positions, {name} was trained "
            f"for {context_tokens}; use -p, -n and -d instead."
        )
    return fitting


def _tests(args: argparse.Namespace) -> list[Workload]:
    prompts = _wanted(args.prompt, PROMPT)
    generates = _wanted(args.generate, GENERATE)
    paired = zip_longest(prompts, generates, fillvalue=0)
    return [*(Workload(p, n) for p, n in paired), *(args.joint or [])]


def _wanted(given: Sequence[int] | None, default: int) -> list[int]:
    """Without doubles and zeros, which mean that there is no such test."""
    return [n for n in dict.fromkeys([default] if given is None else given) if n]


def _check(workload: Workload, context_tokens: int, name: str) -> None:
    if workload.prompt == 0 and workload.generate < 2:
        raise EdgeError(
            f"-n {workload.generate} leaves nothing to measure without a prompt: one token has no "
            f"rate; use -n 2 or more."
        )
    if workload.context_tokens > context_tokens:
        raise EdgeError(
            f"{workload} needs {workload.context_tokens} positions, {name} was trained for "
            f"{context_tokens}; use a smaller -p, -n, -d or -pg."
        )


def _range(part: str, text: str) -> list[int]:
    match = RANGE.fullmatch(part)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of whole numbers and ranges, such as 512,1024 or 128-512+128"
        )
    first, last = int(match[1]), int(match[2] or match[1])
    if max(first, last) > LARGEST_TOKENS:
        raise argparse.ArgumentTypeError(f"{part} is more than {LARGEST_TOKENS}")
    values: list[int] = []
    value, step = first, int(match[4] or 1)
    while value <= last and len(values) <= MOST_VALUES:
        values.append(value)
        following = value * step if match[3] == "*" else value + step
        if following <= value and last > first:
            raise argparse.ArgumentTypeError(f"the range {part} never ends")
        value = max(following, value + 1)
    if not values or len(values) > MOST_VALUES:
        raise argparse.ArgumentTypeError(f"the range {part} has no or too many values")
    return values
