"""What `edge bench` takes."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from edge.bench.suites import REPETITIONS, add_workload_arguments
from edge.cli.arguments import (
    add_artefacts,
    add_checkpoint,
    count,
    count_or_zero,
)
from edge.cli.bench_compare import add_compare_arguments
from edge.power.choose import SOURCES
from edge.quality.sizes import TOKENS

# Speed settles in 3 s (hyperfine); counters of energy are published up to 2.2 s apart.
SPEED_WINDOW_S, ENERGY_WINDOW_S = 3.0, 10.0
IDLE_S = 10.0
COOLDOWN_S = 60.0
LONGEST_S = 86400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; short flags are llama-bench's."""
    add_checkpoint(parser, default="demo")
    add_artefacts(parser, "--rows", "what to measure")
    add_workload_arguments(parser)
    add_compare_arguments(parser)
    _add_method(parser.add_argument_group("method"))
    _add_engines(parser.add_argument_group("engines"))
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder of the artefacts (default: models/NAME)"
    )
    parser.add_argument(
        "--save",
        type=Path,
        default=Path("profiles/local"),
        metavar="DIR",
        help="folder for the profile and its plot (default: profiles/local)",
    )
    parser.add_argument(
        "-o", "--output", choices=["md", "json"], default="md", help="what to print (default: md)"
    )


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
        help="repeat a trial's passes until its timed window lasts so long; 0: one pass "
        f"(default: {SPEED_WINDOW_S:g}, with a power meter {ENERGY_WINDOW_S:g}; 30 is better)",
    )
    group.add_argument(
        "--cooldown",
        metavar="S",
        type=seconds,
        default=COOLDOWN_S,
        help="wait at most so long before a process until the machine is cool and idle, where that "
        f"can be known; 0: never (default: {COOLDOWN_S:g})",
    )
    group.add_argument(
        "--idle",
        metavar="S",
        type=seconds,
        default=IDLE_S,
        help="measure idle power so long before and after, where there is a meter (default: "
        f"{IDLE_S:g})",
    )
    group.add_argument(
        "--power",
        metavar="SOURCE",
        choices=SOURCES,
        default="auto",
        help=f"where watts come from: {', '.join(SOURCES)} (default: auto)",
    )
    group.add_argument(
        "--bandwidth-gb-s",
        metavar="GB/S",
        type=_bandwidth,
        help="the machine's memory bandwidth, where edge does not know it",
    )
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
        help="also measure what each artefact loses against mlx-fp16, as edge eval does, on so "
        f"many tokens of code at most; 0: all of the sample (default with --quality: {TOKENS})",
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
    group.add_argument(
        "--kv-bits",
        type=int,
        choices=[4, 8],
        help="our network with keys and values stored in so many bits, to compare",
    )
    group.add_argument(
        "-t",
        "--threads",
        metavar="N",
        type=count,
        help="CPU threads of llama.cpp (default: usable cores)",
    )


def seconds(text: str) -> float:
    """A number of seconds from 0 to a day, for argparse."""
    return _number(text, 0.0, LONGEST_S, "number of seconds from 0 to a day")


def _bandwidth(text: str) -> float:
    return _number(text, 0.1, 1e6, "number of GB/s from 0.1 to 1000000")


def _number(text: str, least: float, most: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}")
    return value
