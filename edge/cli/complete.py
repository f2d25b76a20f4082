"""Write what belongs at a cursor in the middle of a file."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli.arguments import count, output_folder
from edge.cli.progress import progress_bars
from edge.errors import EdgeError

if TYPE_CHECKING:
    from edge.generate.fim import Completion

CURSOR = "<CURSOR>"
ARTEFACT = "mlx-fp16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    _add_hole(parser)
    parser.add_argument(
        "--model",
        metavar="MODEL",
        default="demo",
        help="a directory, best an MLX artefact, or another checkpoint as in convert, whose "
        f"models/NAME/{ARTEFACT} is made when missing (default: demo)",
    )
    parser.add_argument(
        "--order",
        choices=["psm", "spm"],
        default="psm",
        help="prefix or suffix first in the prompt; models see both in training (default: psm)",
    )
    parser.add_argument(
        "--context",
        metavar="FILE",
        nargs="+",
        default=[],
        help="other files of the repository, the most important last; they have what room prefix "
        "and suffix leave",
    )
    _add_end(parser)
    parser.add_argument(
        "-o", "--output", choices=["text", "json"], default="text", help="(default: text)"
    )


def _add_hole(parser: argparse.ArgumentParser) -> None:
    hole = parser.add_argument_group("the cursor (default: a mark on stdin)")
    hole.add_argument(
        "place",
        metavar="FILE:LINE[:COL]",
        nargs="?",
        help="both from 1, COL in characters: 1 is before the first (default: the line's end)",
    )
    hole.add_argument("--prefix", metavar="TEXT", help="the text before the cursor")
    hole.add_argument("--suffix", metavar="TEXT", help="the text after it")
    hole.add_argument(
        "--cursor", metavar="MARK", default=CURSOR, help=f"stands once on stdin (default: {CURSOR})"
    )


def _add_end(parser: argparse.ArgumentParser) -> None:
    end = parser.add_argument_group("the end of the middle")
    end.add_argument(
        "-n",
        "--max-tokens",
        metavar="N",
        type=count,
        default=128,
        help="at most so many tokens (default: 128)",
    )
    end.add_argument(
        "--max-lines",
        metavar="N",
        type=count,
        help="at most so many lines, blank ones before the first not counted",
    )
    end.add_argument(
        "--no-stop-rules",
        action="store_true",
        help="do not end at a blank line, a smaller indentation, a bracket or line that the "
        "suffix has",
    )


def run(args: argparse.Namespace) -> int:
    """Find the hole, open the model, fill the hole, print the middle."""
    prefix, suffix = _hole(args)
    others = [_read_file(Path(name)) for name in args.context]
    path = _artefact(args.model)
    from edge import load
    from edge.generate.fim import Completer

    completion = Completer(*load(path)).complete(
        prefix,
        suffix,
        context=others,
        order=args.order,
        max_tokens=args.max_tokens,
        max_lines=args.max_lines,
        stop_rules=not args.no_stop_rules,
    )
    _print(completion, args.output)
    return 0


def _print(completion: Completion, output: str) -> None:
    """In bytes: nothing may translate the line ends of a middle, or fail to encode it."""
    text = completion.text
    if output == "json":
        text = json.dumps(asdict(completion), indent=2) + "\n"
    sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
    sys.stdout.buffer.flush()


# --- the hole


def _hole(args: argparse.Namespace) -> tuple[str, str]:
    """What is before and after the cursor.

    Raises:
        EdgeError: the cursor is given twice, or is nowhere, or what holds it is no text.
    """
    given = args.prefix is not None or args.suffix is not None
    if args.place is not None and given:
        raise EdgeError(
            f"the cursor is given twice, by {args.place} and by --prefix or --suffix; leave one "
            f"out."
        )
    if args.place is not None:
        return _at_place(args.place)
    if given:
        return _argument(args.prefix, "--prefix"), _argument(args.suffix, "--suffix")
    if sys.stdin is None or sys.stdin.isatty():
        raise EdgeError("there is no cursor; give FILE:LINE, or --prefix, or a mark on stdin.")
    return split_at_mark(_text(sys.stdin.buffer.read(), "stdin"), args.cursor)


def split_at_mark(text: str, mark: str) -> tuple[str, str]:
    """Text before and after the only cursor mark.

    Raises:
        EdgeError: the mark is not there exactly once.
    """
    if not mark:
        raise EdgeError("--cursor is empty; give the mark that stands at the cursor.")
    prefix, found, suffix = text.partition(mark)
    if not found:
        raise EdgeError(f"stdin has no cursor mark {mark}; put one where the middle belongs.")
    if mark in suffix:
        raise EdgeError(
            f"stdin has the cursor mark {mark} {text.count(mark)} times; leave one, or name "
            f"another mark with --cursor."
        )
    return prefix, suffix


def _at_place(place: str) -> tuple[str, str]:
    path, line, column = parse_place(place)
    return split_at(_read_file(path), line, column, str(path))


def parse_place(place: str) -> tuple[Path, int, int | None]:
    """FILE:LINE[:COL]; of a name with colons the last one or two numbers count.

    Raises:
        EdgeError: there is no line.
    """
    # \d is any script's digit, and so is what int() reads.
    found = re.fullmatch(r"(.+?):([0-9]{1,9})(?::([0-9]{1,9}))?", place, re.DOTALL)
    if found is None:
        raise EdgeError(f"{place!r} names no line; write FILE:LINE or FILE:LINE:COL.")
    name, line, column = found.groups()
    if column is not None and not Path(name).exists() and Path(f"{name}:{line}").exists():
        name, line, column = f"{name}:{line}", column, None  # its name ends with a number
    return Path(name), int(line), None if column is None else int(column)


def split_at(text: str, line: int, column: int | None, where: str) -> tuple[str, str]:
    r"""Text before and after a cursor; lines end with LF or CRLF.

    Args:
        text: a file's.
        line: from 1; after a last line that has its end there is an empty one.
        column: from 1, in characters, up to one more than the line has; None for its end.
        where: the file's name.

    Raises:
        EdgeError: the line or the column is not there.
    """
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        raise EdgeError(f"{where} has lines 1 to {len(lines)}, not {line}; choose one of them.")
    content = lines[line - 1]
    if line < len(lines):
        content = content.removesuffix("\r")
    if column is None:
        column = len(content) + 1
    if not 1 <= column <= len(content) + 1:
        raise EdgeError(
            f"line {line} of {where} has columns 1 to {len(content) + 1}, not {column}; choose one "
            f"of them."
        )
    at = sum(len(before) + 1 for before in lines[: line - 1]) + column - 1
    return text[:at], text[at:]


def _read_file(path: Path) -> str:
    try:
        return _text(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise EdgeError(f"{path} is not there; check the path.") from None
    except OSError as error:
        raise EdgeError(
            f"{path} cannot be read ({error.strerror or error}); check its permissions."
        ) from None


def _text(data: bytes, where: str) -> str:
    if b"\0" in data:
        raise EdgeError(f"{where} is binary; only text can be completed.")
    try:
        # A byte order mark is no text, and comes before the first column.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EdgeError(
            f"{where} is no UTF-8 at byte {error.start}; save it in that encoding first."
        ) from None


def _argument(text: str | None, flag: str) -> str:
    """An argument's text, "" if it was not given; bytes that are no UTF-8 came as surrogates."""
    text = text or ""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise EdgeError(f"{flag} is no UTF-8; pass the text through a file or stdin.")
    return text


# --- the model


def _artefact(model: str) -> Path:
    """A directory that `edge.load` opens; a named checkpoint's is made when it is missing."""
    if model != "demo" and Path(model).is_dir():
        return Path(model)
    from edge.checkpoints.artefacts.recipes import find_recipe
    from edge.checkpoints.checkpoint import open_checkpoint
    from edge.checkpoints.convert import convert

    checkpoint = open_checkpoint(model)
    for warning in checkpoint.warnings:
        print(f"edge complete: warning: {warning}", file=sys.stderr)
    recipes = [find_recipe(ARTEFACT)]
    out = output_folder(None, checkpoint.source.name)
    if recipes[0].path_in(out).exists():
        return convert(checkpoint, recipes, out, _unseen)[0].path
    with progress_bars() as progress:
        return convert(checkpoint, recipes, out, progress)[0].path


def _unseen(name: str, done: float) -> None:
    """No progress to show for a look at what is there."""
