"""Write what belongs at a cursor in the middle of a file."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from edge.cli import model_path
from edge.cli.opened import opened
from edge.cli.options.complete import ARTEFACT
from edge.cli.sampling import sampling_from
from edge.errors import EdgeError
from edge.formats.files import check_argument, decode_text, read_text
from edge.generate.fim import Completer, MiddleEvent
from edge.generate.hole import read_hole, split_at_mark
from edge.stdout import check_stdout, write_stdout


def run(args: argparse.Namespace) -> int:
    """Find the hole, open the model, fill the hole, print the middle as it comes."""
    check_stdout()
    # First: a cursor that --context took for one more file is named by its error.
    others = [read_text(Path(name)) for name in args.context]
    prefix, suffix = _hole(args)
    sampling = sampling_from(args)
    path = model_path.runnable(args.model, args.command, ARTEFACT)

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
