"""Options of `edge bench`; the short flags are llama-bench's."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from edge.cli.options.shared import (
    add_artefacts,
    add_bandwidth,
    add_checkpoint,
    add_kv_bits,
    add_out,
    add_output,
    add_power,
    add_threads,
    count,
    count_or_zero,
    number,
    seconds,
)
from edge.quality import TOKENS

# Speed settles in 3 s (hyperfine); counters of energy are published up to 2.2 s apart.
SPEED_WINDOW_S, ENERGY_WINDOW_S = 3.0, 10.0
IDLE_S = 10.0
COOLDOWN_S = 60.0
# llama-bench's own.
PROMPT, GENERATE, DEPTH, REPETITIONS = 512, 128, 0, 5
# Of edge.bench.workload, which takes long to import.
TABLE_11_SUITE = "table11"
SUITES = (TABLE_11_SUITE, "quick", "depth", "localscore")
RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?:([+*])(\d{1,9}))?)?")
MOST_VALUES = 1000


def parser() -> argparse.ArgumentParser:
    """Parser of the command."""
    parser = argparse.ArgumentParser()
    add_checkpoint(parser, default="demo")
    add_artefacts(parser, "--rows", "what to measure")
    add_workload(parser)
    add_compare(parser)
    _add_method(parser.add_argument_group("method"))
    _add_engines(parser.add_argument_group("engines"))
    add_out(parser, "folder of the artefacts")
    parser.add_argument(
        "--save",
        type=Path,
        default=Path("profiles/local"),
        metavar="DIR",
        help="folder for the profile and its plot (default: profiles/local)",
    )
    add_output(parser, ["md", "json"])
    return parser


def add_workload(parser: argparse.ArgumentParser) -> None:
    """Add the workload; each flag may be repeated and takes a list."""
    group = parser.add_argument_group(
        "workload", "LIST: 512 or 512,1024 or a range, 128-512+128 or 128-1024*2"
    )
    for flags, dest, default, meaning in (
        (("-p", "--prompt", "--n-prompt"), "prompt", PROMPT, "prompt tokens; 0 for none"),
        (("-n", "--generate", "--n-gen"), "generate", GENERATE, "generated tokens; 0 for none"),
        (("-d", "--depth", "--n-depth"), "depth", DEPTH, "tokens of context before"),
    ):
        group.add_argument(
            *flags,
            dest=dest,
            metavar="LIST",
            type=_token_counts,
            action="extend",
            help=f"{meaning} (default: {default})",
        )
    group.add_argument(
        "-pg",
        dest="joint",
        metavar="P,N",
        type=_prompt_and_generate,
        action="append",
        help="also a test that generates N tokens behind a prompt of P; with -p 0 -n 0, only it",
    )
    group.add_argument(
        "--suite",
        choices=SUITES,
        help=f"workloads by name; {TABLE_11_SUITE} shows the published figures beside",
    )


def _token_counts(text: str) -> list[int]:
    """llama-bench's lists: numbers and ranges FIRST-LAST, +STEP or *FACTOR."""
    return [value for part in text.split(",") for value in _range(part)]


def _range(part: str) -> list[int]:
    values: list[int] = []
    if match := RANGE.fullmatch(part):
        value, last, step = int(match[1]), int(match[2] or match[1]), int(match[4] or 1)
        while value <= last and len(values) <= MOST_VALUES:
            values.append(value)
            value = value * step if match[3] == "*" else value + step
    if not 0 < len(values) <= MOST_VALUES:
        raise argparse.ArgumentTypeError(
            f"{part!r} is not a whole number or a growing range, such as 512 or 128-512+128"
        )
    return values


def _prompt_and_generate(text: str) -> tuple[int, int]:
    """llama-bench's -pg."""
    values = _token_counts(text) if re.fullmatch(r"\d+,\d+", text) else []
    if len(values) != 2 or values[0] < 1 or values[1] < 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not P,N with a prompt of at least 1 and at least 2 generated tokens"
        )
    return values[0], values[1]


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Add the comparison of two profiles."""
    group = parser.add_argument_group("compare, and measure nothing")
    group.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        type=Path,
        help="two profiles of one model: B's speed, energy and memory against A's",
    )
    group.add_argument(
        "--min-effect",
        metavar="PERCENT",
        type=_percent,
        default=2.0,
        help="a smaller difference is not called one (default: 2)",
    )


def _percent(text: str) -> float:
    return number(0.0, 99.999, "a percentage from 0 to below 100")(text.removesuffix("%"))


def _add_method(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-r",
        "--repetitions",
        metavar="N",
        type=count,
        default=REPETITIONS,
        help=f"trials per row, spread over the rounds and rounded up (default: {REPETITIONS})",
    )
    group.add_argument(
        "--rounds",
        metavar="N",
        type=count,
        default=3,
        help="fresh processes per row, rows in turn; never more than -r (default: 3)",
    )
    group.add_argument(
        "--seed",
        metavar="N",
        type=int,
        default=0,
        help="of the token ids and the order (default: 0)",
    )
    group.add_argument(
        "--min-window",
        metavar="S",
        type=seconds,
        help="repeat a trial's passes until its timed window lasts this long; 0: one pass "
        f"(default: {SPEED_WINDOW_S:g}, with a power meter {ENERGY_WINDOW_S:g}; 30 is better)",
    )
    group.add_argument(
        "--cooldown",
        metavar="S",
        type=seconds,
        default=COOLDOWN_S,
        help="wait at most this long before a process until the machine is cool and idle, where "
        f"that can be known; 0: never (default: {COOLDOWN_S:g})",
    )
    group.add_argument(
        "--idle",
        metavar="S",
        type=seconds,
        default=IDLE_S,
        help="measure idle power this long before and after, where there is a meter (default: "
        f"{IDLE_S:g})",
    )
    add_power(group, "--power", "auto")
    add_bandwidth(group)
    group.add_argument(
        "--no-check",
        dest="check",
        action="store_false",
        help="do not compare logits with the checkpoint's, which takes a while for a large model",
    )
    group.add_argument(
        "--quality",
        metavar="TOKENS",
        nargs="?",
        type=count_or_zero,
        const=TOKENS,
        help="also measure what each artefact loses against mlx-fp16, as edge eval does, on at "
        f"most this many tokens of code; 0: all of the sample (default with --quality: {TOKENS})",
    )
    group.add_argument(
        "--timeout",
        type=count,
        default=3600,
        metavar="S",
        help="seconds per process (default: 3600)",
    )


def _add_engines(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--peers",
        action="store_true",
        help="also run MLX artefacts on mlx-lm's own network, in our compute dtype",
    )
    add_kv_bits(group, "our network with keys and values stored in this many bits, to compare")
    add_threads(group)
