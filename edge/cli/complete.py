"""Write what belongs at a cursor in the middle of a file."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli import model_path
from edge.cli.arguments import count
from edge.cli.opened import opened
from edge.cli.sampling_arguments import add_sampling, sampling_from
from edge.errors import EdgeError
from edge.formats.files import check_argument, decode_text, read_text
from edge.generate.hole import CURSOR, read_hole, split_at_mark
from edge.stdout import check_stdout, write_stdout

if TYPE_CHECKING:
    from edge.generate.fim import MiddleEvent

ARTEFACT = "mlx-fp16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    _add_hole(parser)
    parser.add_argument(
        "--model", metavar="MODEL", default="demo", help=model_path.help_text(ARTEFACT)
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
        action="extend",
        default=[],
        help="other files of the repository, the most important last; they have what room prefix "
        "and suffix leave",
    )
    _add_end(parser)
    add_sampling(parser, temperature=0)
    parser.add_argument(
        "--kv-bits",
        type=int,
        choices=[4, 8],
        help="store keys and values in so few bits, for long files on small machines",
    )
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
    """Find the hole, open the model, fill the hole, print the middle as it comes."""
    check_stdout()
    # First: a cursor that --context took for one more file is named by its error.
    others = [read_text(Path(name)) for name in args.context]
    prefix, suffix = _hole(args)
    sampling = sampling_from(args)
    path = model_path.runnable(args.model, args.command, ARTEFACT)
    from edge.generate.fim import Completer

    with opened(path, args.command, args.kv_bits) as (model, tokenizer):
        events = Completer(model, tokenizer, kv_bits=args.kv_bits).stream(
            prefix,
            suffix,
            context=others,
            order=args.order,
            max_tokens=args.max_tokens,
            max_lines=args.max_lines,
            stop_rules=not args.no_stop_rules,
            sampling=sampling,
        )
        with contextlib.closing(events):
            return _print_json(events) if args.output == "json" else _print_text(events)


def _print_text(events: Iterable[MiddleEvent]) -> int:
    for event in events:
        if event.text:
            write_stdout(event.text)
    return 0


def _print_json(events: Iterable[MiddleEvent]) -> int:
    *_, last = events
    assert last.completion is not None
    write_stdout(json.dumps(asdict(last.completion), indent=2) + "\n")
    return 0


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
        return read_hole(args.place)
    if given:
        return (
            check_argument(args.prefix or "", "--prefix"),
            check_argument(args.suffix or "", "--suffix"),
        )
    if sys.stdin is None or sys.stdin.isatty():
        raise EdgeError("there is no cursor; give FILE:LINE, or --prefix, or a mark on stdin.")
    return split_at_mark(decode_text(sys.stdin.buffer.read(), "stdin"), args.cursor)
