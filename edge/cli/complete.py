"""Write what belongs at a cursor in the middle of a file."""

import argparse
import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from edge.cli.model_path import opened, runnable
from edge.cli.options.complete import ARTEFACT
from edge.errors import EdgeError
from edge.formats.files import check_argument, decode_text, read_text
from edge.generate.decode import MlxSource
from edge.generate.fim import Completer
from edge.generate.hole import read_hole, split_at_mark
from edge.generate.sampling import Sampling
from edge.stdout import check_stdout, write_stdout


def run(args: argparse.Namespace) -> int:
    """Finds the hole, opens the model, fills the hole, prints the middle as it comes."""
    check_stdout()
    # First: a cursor that --context took for one more file is named by its error.
    context = [read_text(Path(name)) for name in args.context]
    prefix, suffix = _hole(args)
    sampling = Sampling.from_options(args)
    path = runnable(args.model, args.command, ARTEFACT)
    with opened(path, args.command, args.kv_bits) as (model, tokenizer):
        events = Completer(MlxSource(model, args.kv_bits), tokenizer).stream(
            prefix,
            suffix,
            context=context,
            order=args.order,
            max_tokens=args.max_tokens,
            max_lines=args.max_lines,
            stop_rules=not args.no_stop_rules,
            sampling=sampling,
        )
        with contextlib.closing(events):
            for event in events:
                if args.output == "text" and event.text:
                    write_stdout(event.text)
        if args.output == "json":
            assert event.completion is not None
            write_stdout(json.dumps(asdict(event.completion), indent=2) + "\n")
    return 0


def _hole(args: argparse.Namespace) -> tuple[str, str]:
    """Text before and after the cursor, which must be given exactly once."""
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
