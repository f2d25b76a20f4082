"""Options that several commands take, and the types of their values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from edge.convert.artefacts.recipes import RECIPES, TABLE_11, Recipe, find_recipe
from edge.errors import EdgeError
from edge.power.choose import SOURCES

LARGEST_COUNT = 2**31 - 1  # files hold 32 bits

# --- types


def whole_number(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        if value > LARGEST_COUNT:
            raise argparse.ArgumentTypeError(f"{text} is more than {LARGEST_COUNT}")
        return value

    return parse


def number(least: float, most: float, meaning: str) -> Callable[[str], float]:
    """An argparse type: a number from `least` to `most`, described by `meaning` in the error."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")
        return value

    return parse


count = whole_number(1)
count_or_zero = whole_number(0)
seconds = number(0.0, 86400.0, "a number of seconds from 0 to a day")
# No trained model is near either end; float32 holds both.
rotary_base = number(1.0, 1e30, "a number from 1 to 1e+30")


def artefact(name: str) -> Recipe:
    """An artefact's recipe, for argparse."""
    try:
        return find_recipe(name)
    except EdgeError as error:
        raise argparse.ArgumentTypeError(f"{error} MODEL goes before the artefacts.") from None


def table_11() -> list[Recipe]:
    """Recipes of the rows of Table 11."""
    return [find_recipe(name) for name in TABLE_11]


# --- options


def add_checkpoint(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add what names a checkpoint; without a default it is None where it is not given."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default=default,
        help="demo, a checkpoint's directory, a GGUF file, a hub id (owner/name or "
        "owner/name:branch), or synthetic:NAME for random weights at a published shape"
        + (f" (default: {default})" if default else ""),
    )
    source = parser.add_argument_group("the checkpoint")
    source.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    source.add_argument("--layers", metavar="N", type=count, help="layers of a synthetic model")
    source.add_argument(
        "--rope-theta",
        metavar="BASE",
        type=rotary_base,
        help="rotary base, if the source's is wrong",
    )
    source.add_argument(
        "--context", metavar="N", type=count, help="positions, if the source's number is wrong"
    )


def add_artefacts(
    parser: argparse.ArgumentParser, flag: str, purpose: str, also: tuple[Recipe, ...] = ()
) -> None:
    """Add an option that takes artefacts' names, Table 11's rows by default."""
    choices = {**RECIPES, **{recipe.name: recipe for recipe in also}}
    parser.add_argument(
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
        f"models/NAME/{artefact_name} is made when missing (default: demo)"
    )


def add_out(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add the folder of the artefacts."""
    parser.add_argument("--out", metavar="DIR", type=Path, help=f"{meaning} (default: models/NAME)")


def add_output(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, choices: Sequence[str]
) -> None:
    """Add the form of the result, the first of `choices` by default."""
    parser.add_argument(
        "-o",
        "--output",
        choices=choices,
        default=choices[0],
        help=f"what to print (default: {choices[0]})",
    )


def add_threads(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add llama.cpp's threads."""
    parser.add_argument(
        "-t",
        "--threads",
        metavar="N",
        type=count,
        help="CPU threads of llama.cpp (default: usable cores)",
    )


def add_kv_bits(parser: argparse.ArgumentParser | argparse._ArgumentGroup, meaning: str) -> None:
    """Add the bits of a quantised KV cache."""
    parser.add_argument("--kv-bits", type=int, choices=[4, 8], help=meaning)


def add_max_tokens(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, default: int, of: str
) -> None:
    """Add the largest number of tokens of one answer or middle."""
    parser.add_argument(
        "-n",
        "--max-tokens",
        metavar="N",
        type=count,
        default=default,
        help=f"at most this many tokens {of} (default: {default})",
    )


def add_order(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the order of prefix and suffix in an infilling prompt."""
    parser.add_argument(
        "--order",
        choices=["psm", "spm"],
        default="psm",
        help="prefix or suffix first in the prompt; models see both in training (default: psm)",
    )


def add_power(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, flag: str, default: str
) -> None:
    """Add the choice of a power meter."""
    parser.add_argument(
        flag,
        metavar="SOURCE",
        choices=SOURCES,
        default=default,
        help=f"where watts come from: {', '.join(SOURCES)} (default: {default})",
    )


def add_bandwidth(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the memory bandwidth, for machines that the chip table does not have."""
    parser.add_argument(
        "--bandwidth-gb-s",
        metavar="GB/S",
        type=number(0.1, 1e6, "a number of GB/s from 0.1 to 1000000"),
        help="memory bandwidth, if the chip table is wrong or does not have it",
    )


def add_sampling(
    parser: argparse.ArgumentParser, temperature: float, top_p: float = 1.0, top_k: int = 0
) -> None:
    """Add how tokens are chosen; `edge.generate.sampling.Sampling` checks the ranges."""
    group = parser.add_argument_group("how tokens are chosen")
    group.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        default=temperature,
        help=f"0 takes the most probable token (default: {temperature:g})",
    )
    group.add_argument(
        "--top-p",
        metavar="P",
        type=float,
        default=top_p,
        help=f"draw from the most probable tokens with this share (default: {top_p:g})",
    )
    group.add_argument(
        "--top-k",
        metavar="K",
        type=int,
        default=top_k,
        help=f"draw from the K most probable tokens, 0 for all (default: {top_k})",
    )
    group.add_argument(
        "--min-p",
        metavar="P",
        type=float,
        default=0.0,
        help="draw from tokens with at least this share of the best one's probability",
    )
    group.add_argument(
        "--repetition-penalty",
        metavar="X",
        type=float,
        help="above 1 makes recent tokens less likely, 1.1 slightly",
    )
    group.add_argument(
        "--seed", metavar="N", type=int, help="the same seed draws the same tokens again"
    )
