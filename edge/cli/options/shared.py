"""Options that several commands take, and the types of their values."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge.convert.artefacts.recipes import RECIPES, TABLE_11, Recipe, find_recipe
from edge.errors import EdgeError
from edge.power import SOURCES

Options = argparse._ActionsContainer  # a parser or a group of one
LARGEST_COUNT = 2**31 - 1  # files hold 32 bits
SHOWN = (int, float, str, Path)  # defaults that --help shows


class _Formatter(argparse.HelpFormatter):
    """Help with defaults, where there is one that can be typed."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = type(action.default) is not bool and isinstance(action.default, SHOWN)
        if not shown or action.default == argparse.SUPPRESS or "default:" in (action.help or ""):
            return action.help
        return f"{action.help} (default: %(default)s)"


def new_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help shows the defaults."""
    return argparse.ArgumentParser(epilog=epilog, formatter_class=_Formatter)


def number(
    least: float, most: float, meaning: str, kind: Callable[[str], float] = float
) -> Callable[[str], Any]:
    """An argparse type: a number from `least` to `most`, described by `meaning` in the error."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")
        return value

    return parse


def whole_number(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `least`."""
    meaning = f"a whole number of at least {least} and at most {LARGEST_COUNT}"
    return number(least, LARGEST_COUNT, meaning, int)


seconds = number(0.0, 86400.0, "a number of seconds from 0 to a day")


def artefact(name: str) -> Recipe:
    """An artefact's recipe, for argparse."""
    try:
        return find_recipe(name)
    except EdgeError as error:
        raise argparse.ArgumentTypeError(f"{error} MODEL goes before the artefacts.") from None


def table_11() -> list[Recipe]:
    """Recipes of the rows of Table 11."""
    return [find_recipe(name) for name in TABLE_11]


def add_count(options: Options, *flags: str, least: int = 1, **more: Any) -> None:
    """Add a whole number, by default of at least 1."""
    options.add_argument(*flags, type=whole_number(least), **{"metavar": "N", **more})


def add_path(options: Options, *flags: str, metavar: str, **more: Any) -> None:
    """Add a file or folder."""
    options.add_argument(*flags, type=Path, metavar=metavar, **more)


def add_checkpoint(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add what names a checkpoint; without a default it is None where it is not given."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default=default,
        help="demo, a checkpoint's directory, a GGUF file, a hub id (owner/name or "
        "owner/name:branch), or synthetic:NAME for random weights at a published shape",
    )
    source = parser.add_argument_group("the checkpoint")
    source.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    add_count(source, "--layers", help="layers of a synthetic model")
    base = number(1.0, 1e30, "a number from 1 to 1e+30")  # far beyond any model; float32 holds both
    meaning = "rotary base, if the source's is wrong"
    source.add_argument("--rope-theta", metavar="BASE", type=base, help=meaning)
    add_count(source, "--context", help="positions, if the source's number is wrong")


def add_artefacts(options: Options, flag: str, purpose: str, also: tuple[Recipe, ...] = ()) -> None:
    """Add an option that takes artefacts' names, Table 11's rows by default."""
    choices = {**RECIPES, **{recipe.name: recipe for recipe in also}}
    options.add_argument(
        flag,
        nargs="+",
        type=lambda name: choices.get(name) or artefact(name),
        metavar="ARTEFACT",
        default=table_11(),
        help=f"{purpose}, of {', '.join(choices)} (default: {' '.join(TABLE_11)})",
    )


def model_help(artefact_name: str) -> str:
    """Help for a model that is run, and converted to this artefact first where it must be."""
    return (
        f"a directory, best an MLX artefact, or another checkpoint as in convert, whose "
        f"models/NAME/{artefact_name} is made when missing"
    )


def add_out(options: Options, meaning: str) -> None:
    """Add the folder of the artefacts."""
    add_path(options, "--out", metavar="DIR", help=f"{meaning} (default: models/NAME)")


def add_output(options: Options, choices: Sequence[str]) -> None:
    """Add the form of the result, the first of `choices` by default."""
    meaning = "what to print"
    options.add_argument("-o", "--output", choices=choices, default=choices[0], help=meaning)


def add_threads(options: Options) -> None:
    """Add llama.cpp's threads."""
    add_count(options, "-t", "--threads", help="CPU threads of llama.cpp (default: usable cores)")


def add_kv_bits(options: Options) -> None:
    """Add the bits of a quantised KV cache."""
    meaning = "store keys and values in this many bits, for long texts on small machines"
    options.add_argument("--kv-bits", type=int, choices=[4, 8], help=meaning)


def add_max_tokens(options: Options, default: int, of: str) -> None:
    """Add the largest number of tokens of one answer or middle."""
    meaning = f"at most this many tokens {of}"
    add_count(options, "-n", "--max-tokens", default=default, help=meaning)


def add_order(options: Options) -> None:
    """Add the order of prefix and suffix in an infilling prompt."""
    meaning = "prefix or suffix first in the prompt; models see both in training"
    options.add_argument("--order", choices=["psm", "spm"], default="psm", help=meaning)


def add_power(options: Options, flag: str, default: str) -> None:
    """Add the choice of a power meter."""
    meaning = f"where watts come from: {', '.join(SOURCES)}"
    options.add_argument(flag, metavar="SOURCE", choices=SOURCES, default=default, help=meaning)


def add_bandwidth(options: Options) -> None:
    """Add the memory bandwidth."""
    kind = number(0.1, 1e6, "a number of GB/s from 0.1 to 1000000")
    meaning = "memory bandwidth, if the chip table is wrong or does not have it"
    options.add_argument("--bandwidth-gb-s", metavar="GB/S", type=kind, help=meaning)


def add_sampling(
    parser: argparse.ArgumentParser, temperature: float, top_p: float = 1.0, top_k: int = 0
) -> None:
    """Add how tokens are chosen; `edge.generate.sampling.Sampling` checks the ranges."""
    group = parser.add_argument_group("how tokens are chosen")
    for flag, metavar, default, meaning in (
        ("--temperature", "T", temperature, "0 takes the most probable token"),
        ("--top-p", "P", top_p, "draw from the most probable tokens with this share"),
        ("--min-p", "P", 0.0, "draw from tokens with this share of the best one's probability"),
        ("--repetition-penalty", "X", None, "above 1 makes recent tokens less likely"),
    ):
        group.add_argument(flag, metavar=metavar, type=float, default=default, help=meaning)
    meaning = "draw from the K most probable tokens, 0 for all"
    group.add_argument("--top-k", metavar="K", type=int, default=top_k, help=meaning)
    meaning = "the same seed draws the same tokens again"
    group.add_argument("--seed", metavar="N", type=int, help=meaning)
