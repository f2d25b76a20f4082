"""Options of `edge bench`; the short flags are llama-bench's."""

import argparse
import re
from pathlib import Path

from edge.cli.options import shared
from edge.quality import TOKENS

# Speed settles in 3 s (hyperfine); counters of energy are published up to 2.2 s apart.
SPEED_WINDOW_S, ENERGY_WINDOW_S = 3.0, 10.0
# llama-bench's own.
PROMPT, GENERATE, DEPTH, REPETITIONS = 512, 128, 0, 5
# Of edge.bench.workload, which takes long to import.
TABLE_11_SUITE = "table11"
SUITES = (TABLE_11_SUITE, "quick", "depth", "localscore")
RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?:([+*])(\d{1,9}))?)?")
MOST_VALUES = 1000


def parser() -> argparse.ArgumentParser:
    """Parser of the command."""
    parser = shared.new_parser()
    shared.add_checkpoint(parser, default="demo")
    shared.add_artefacts(parser, "--rows", "what to measure")
    _add_workload(parser)
    _add_compare(parser.add_argument_group("compare, and measure nothing"))
    method = parser.add_argument_group("method")
    _add_times(method)
    shared.add_power(method, "--power", "auto")
    shared.add_bandwidth(method)
    _add_checks(method)
    engines = parser.add_argument_group("engines")
    peers = "also run MLX artefacts on mlx-lm's own network, in our compute dtype"
    engines.add_argument("--peers", action="store_true", help=peers)
    shared.add_kv_bits(engines)
    shared.add_threads(engines)
    shared.add_out(parser, "folder of the artefacts")
    save, folder = "folder for the profile and its plot", Path("profiles/local")
    shared.add_path(parser, "--save", metavar="DIR", default=folder, help=save)
    shared.add_output(parser, ["md", "json"])
    return parser


def _add_workload(parser: argparse.ArgumentParser) -> None:
    """Add the workload; each flag may be repeated and takes a list."""
    group = parser.add_argument_group(
        "workload", "LIST: 512 or 512,1024 or a range, 128-512+128 or 128-1024*2"
    )
    for flags, dest, default, meaning in (
        (("-p", "--prompt", "--n-prompt"), "prompt", PROMPT, "prompt tokens; 0 for none"),
        (("-n", "--generate", "--n-gen"), "generate", GENERATE, "generated tokens; 0 for none"),
        (("-d", "--depth", "--n-depth"), "depth", DEPTH, "tokens of context before"),
    ):
        meaning = f"{meaning} (default: {default})"
        group.add_argument(
            *flags, dest=dest, metavar="LIST", type=_token_counts, action="extend", help=meaning
        )
    group.add_argument(
        "-pg",
        dest="joint",
        metavar="P,N",
        type=_prompt_and_generate,
        action="append",
        help="also a test that generates N tokens behind a prompt of P; with -p 0 -n 0, only it",
    )
    meaning = f"workloads by name; {TABLE_11_SUITE} shows the published figures beside"
    group.add_argument("--suite", choices=SUITES, help=meaning)


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


def _add_compare(group: argparse._ArgumentGroup) -> None:
    meaning = "two profiles of one model: B's speed, energy and memory against A's"
    group.add_argument("--compare", nargs=2, metavar=("A", "B"), type=Path, help=meaning)
    meaning = "a smaller difference is not called one"
    group.add_argument("--min-effect", metavar="PERCENT", type=_percent, default=2.0, help=meaning)


def _percent(text: str) -> float:
    below_100 = shared.number(0.0, 99.999, "a percentage from 0 to below 100")
    percent: float = below_100(text.removesuffix("%"))
    return percent


def _add_times(group: argparse._ArgumentGroup) -> None:
    shared.add_count(
        group,
        *("-r", "--repetitions"),
        default=REPETITIONS,
        help="trials per row, spread over the rounds and rounded up",
    )
    meaning = "fresh processes per row, rows in turn; never more than -r"
    shared.add_count(group, "--rounds", default=3, help=meaning)
    meaning = "of the token ids and the order"
    group.add_argument("--seed", metavar="N", type=int, default=0, help=meaning)
    for flag, default, meaning in (
        (
            "--min-window",
            None,
            "repeat a trial's passes until its timed window lasts this long; 0: one pass "
            f"(default: {SPEED_WINDOW_S:g}, with a power meter {ENERGY_WINDOW_S:g}; 30 is better)",
        ),
        (
            "--cooldown",
            60.0,
            "wait at most this long before a process until the machine is cool and idle, where "
            "that can be known; 0: never",
        ),
        ("--idle", 10.0, "measure idle power this long before and after, with a meter"),
    ):
        group.add_argument(flag, metavar="S", type=shared.seconds, default=default, help=meaning)


def _add_checks(group: argparse._ArgumentGroup) -> None:
    meaning = "do not compare logits with the checkpoint's, which takes long for a large model"
    group.add_argument("--no-check", dest="check", action="store_false", help=meaning)
    shared.add_count(
        group,
        "--quality",
        least=0,
        metavar="TOKENS",
        nargs="?",
        const=TOKENS,
        help="also measure what each artefact loses against mlx-fp16, as edge eval does, on at "
        f"most this many tokens of code; 0: all of the sample (with --quality alone: {TOKENS})",
    )
    meaning = "seconds per process"
    shared.add_count(group, "--timeout", default=3600, metavar="S", help=meaning)
