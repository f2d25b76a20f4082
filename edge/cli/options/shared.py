"""Options that several commands share, and the types of their values."""

import argparse
import difflib
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from edge.convert.artefacts.recipes import RECIPES, TABLE_11, Recipe, find_recipe
from edge.convert.sources.names import check_model
from edge.errors import EdgeError, printable
from edge.formats.files import unreadable, user_path
from edge.power import SOURCES
from edge.text import Layout
from edge.tokenizer.fim_tokens import ORDERS

Options = argparse._ActionsContainer  # a parser or a group of one
LARGEST_COUNT = 2**31 - 1  # files hold 32 bits
TABLE_11_RECIPES = [RECIPES[name] for name in TABLE_11]
UNKNOWN = "unrecognized arguments: "  # begins a message of argparse
SHOWN = (int, float, str, Path)  # types of the defaults that --help shows


class _Formatter(argparse.HelpFormatter):
    """Help that shows defaults and does not break names such as mlx-int4 at the hyphen."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default, text = action.default, action.help or ""
        is_shown = isinstance(default, SHOWN) and not isinstance(default, bool)
        if not is_shown or default == argparse.SUPPRESS or "default:" in text:
            return action.help
        shown = f"{default:g}" if isinstance(default, float) else default
        return f"{text} (default: {shown})"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        words = message.removeprefix(UNKNOWN).split()
        if message.startswith(UNKNOWN):
            near = difflib.get_close_matches(words[0], self._option_string_actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            message = f"{' '.join(words)} is not understood{hint}"
        sentence = printable(message.removeprefix("argument "))
        self.exit(2, f"{self.prog}: {sentence}; see `{self.prog} --help`\n")


def new_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    return _Parser(epilog=epilog, formatter_class=_Formatter)


def check_inputs(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse a missing model or file before the command is imported, which takes seconds."""
    for action in parser._actions:
        given = getattr(args, action.dest, None)
        for name in given if isinstance(given, list) else [given]:
            if action.type is model_name and name is not None:
                check_model(name, getattr(args, "revision", None))
            elif action.type is input_path and name:
                _check_exists(name)


def _check_exists(path: Path) -> None:
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(path, error) from None


def given(
    args: argparse.Namespace, parser: argparse.ArgumentParser, names: Collection[str]
) -> list[str]:
    """Flags of the options among `names` that do not have their defaults."""
    return [
        (action.option_strings or [str(action.metavar)])[0]
        for action in parser._actions
        if action.dest in names and getattr(args, action.dest) != action.default
    ]


def number(
    least: float, most: float, meaning: str, kind: Callable[[str], float] = float
) -> Callable[[str], Any]:
    """An argparse type: a number from `least` to `most`; the error says "is not `meaning`"."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")
        return value

    return parse


seconds = number(0.0, 86400.0, "a number of seconds from 0 to 86400")


def artefact(name: str) -> Recipe:
    try:
        return find_recipe(name)
    except EdgeError as error:
        raise argparse.ArgumentTypeError(f"{error} MODEL goes before the artefacts.") from None


def add_count(options: Options, *flags: str, least: int = 1, **more: Any) -> None:
    meaning = f"a whole number from {least} to {LARGEST_COUNT}"
    kind = number(least, LARGEST_COUNT, meaning, int)
    options.add_argument(*flags, type=kind, **{"metavar": "N", **more})


def model_name(text: str) -> str:
    """The type of models, by which `check_inputs` finds them."""
    return text


def input_path(text: str) -> Path:
    """The type of files and folders that must be there."""
    return user_path(text)


def add_path(options: Options, *flags: str, **more: Any) -> None:
    """Add a file or folder to write; a leading ~ is the home directory."""
    options.add_argument(*flags, type=user_path, **more)


def add_input(options: Options, *flags: str, **more: Any) -> None:
    """Add a file or folder to read."""
    options.add_argument(*flags, type=input_path, **more)


def add_model(options: Options, *flags: str, **more: Any) -> None:
    options.add_argument(*flags, type=model_name, metavar="MODEL", **more)


CHECKPOINT = (
    "demo, smollm2, a checkpoint directory, a GGUF file, a Hugging Face id (owner/name or "
    "owner/name:branch), or synthetic:NAME for random weights in a published shape"
)


def add_checkpoint(parser: argparse.ArgumentParser, default: str | None) -> None:
    add_model(parser, "model", nargs="?", default=default, help=CHECKPOINT)
    add_corrections(parser)


def add_corrections(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoint")
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit on Hugging Face")
    add_count(group, "--layers", help="number of layers of a synthetic model")
    base = number(1.0, 1e30, "a number from 1 to 1e+30")  # far beyond any model; float32 holds both
    meaning = "RoPE base, if the checkpoint's is wrong"
    group.add_argument("--rope-theta", metavar="BASE", type=base, help=meaning)
    add_count(group, "--context", help="context length, if the checkpoint's is wrong")


def add_artefacts(options: Options, flag: str, purpose: str, also: tuple[Recipe, ...] = ()) -> None:
    """Add an option that takes names of artefacts, by default the rows of Table 11."""
    choices = {**RECIPES, **{recipe.name: recipe for recipe in also}}
    options.add_argument(
        flag,
        nargs="+",
        type=lambda name: choices.get(name) or artefact(name),
        metavar="ARTEFACT",
        default=TABLE_11_RECIPES,
        help=f"{purpose}: {', '.join(choices)} (default: {' '.join(TABLE_11)})",
    )


def model_help(artefact_name: str) -> str:
    """Help for a model to run, converted to this artefact first if necessary."""
    return (
        "directory of an MLX artefact; a GGUF file of any model that llama.cpp runs; or another "
        f"checkpoint as in edge convert, converted to models/NAME/{artefact_name} the first time"
    )


def add_out(options: Options, meaning: str) -> None:
    add_path(options, "--out", metavar="DIR", help=f"{meaning} (default: models/NAME)")


def add_output(options: Options, choices: Sequence[str]) -> None:
    meaning = "output format"
    options.add_argument("-o", "--output", choices=choices, default=choices[0], help=meaning)


def _output(text: str) -> str:
    if text in ("jsonl", "sql"):  # of llama-bench
        raise argparse.ArgumentTypeError(f"{text} is not written; json is one document with all")
    return text


def add_table_output(parser: argparse.ArgumentParser) -> None:
    """Add the formats of a command that prints a table."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    parser.add_argument(
        "-o",
        "--output",
        type=_output,
        choices=["text", "md", "csv", "json"],
        default="text" if is_terminal else "md",
        help="output format (default: text on a terminal, else md)",
    )
    meaning = "text with all columns and notes, not only what fits the terminal"
    parser.add_argument("--wide", action="store_true", help=meaning)


def layout_of(args: argparse.Namespace) -> Layout | None:
    """How the text is laid out; None for Markdown."""
    if args.output != "text":
        return None
    return Layout(shutil.get_terminal_size().columns, args.wide)


def add_threads(options: Options, more: str = "") -> None:
    most = os.cpu_count() or 1
    kind = number(1, most, f"a whole number from 1 to {most}, the cores of this machine", int)
    meaning = "CPU threads of llama.cpp (default: the usable cores"
    options.add_argument("-t", "--threads", metavar="N", type=kind, help=f"{meaning}{more})")


def add_baseline(options: Options) -> None:
    meaning = (
        "also print every row's ratio to ROW, with its interval: an artefact such as mlx-fp16, a "
        "row as the table calls it, such as 'mlx-fp16 (mlx-lm)', an engine, such as mlx-lm, for "
        "the same artefact there, or a batch, such as npl1, for the same row in that batch"
    )
    options.add_argument("--baseline", metavar="ROW", help=meaning)


def add_kv_bits(options: Options) -> None:
    meaning = "quantise the KV cache to this many bits, not of a GGUF file (default: off)"
    options.add_argument("--kv-bits", type=int, choices=[4, 8], help=meaning)


def add_max_tokens(options: Options, default: int) -> None:
    add_count(options, "-n", "--max-tokens", default=default, help="maximum tokens to generate")


def add_order(options: Options) -> None:
    meaning = "prompt order: prefix-suffix-middle or suffix-prefix-middle"
    options.add_argument("--order", choices=ORDERS, default=ORDERS[0], help=meaning)


def add_power(options: Options, flag: str, default: str) -> None:
    meaning = f"power meter: {', '.join(SOURCES)}"
    options.add_argument(flag, metavar="SOURCE", choices=SOURCES, default=default, help=meaning)


def add_bandwidth(options: Options, of: str = "memory bandwidth of this machine") -> None:
    kind = number(0.1, 1e6, "a number of GB/s from 0.1 to 1000000")
    measured = "" if "--import" in of else ", or measured"
    meaning = f"{of} (default: from the chip table{measured})"
    options.add_argument("--bandwidth-gb-s", metavar="GB/S", type=kind, help=meaning)


def add_sampling(
    parser: argparse.ArgumentParser, temperature: float, top_p: float = 1.0, top_k: int = 0
) -> None:
    """Add the sampling options; `edge.generate.sampling.Sampling` checks the ranges."""
    group = parser.add_argument_group("sampling")
    for flag, metavar, kind, default, meaning in (
        ("--temperature", "T", float, temperature, "sampling temperature; 0: greedy"),
        ("--top-k", "K", int, top_k, "sample from the K most probable tokens; 0: all"),
        ("--top-p", "P", float, top_p, "sample from the top tokens of total probability P; 1: all"),
        ("--min-p", "P", float, 0.0, "minimum probability relative to the top token; 0: all"),
        ("--repetition-penalty", "X", float, None, "penalise recent tokens; 1: off (default: off)"),
        ("--seed", "N", int, None, "random seed (default: a new one each time)"),
    ):
        group.add_argument(flag, metavar=metavar, type=kind, default=default, help=meaning)
