"""Complete code at a cursor (fill in the middle)."""

import argparse
import contextlib
import json
import sys
from dataclasses import asdict

from edge.cli.model_path import open_for, runnable
from edge.cli.options.complete import ARTEFACT
from edge.device.memory import wired
from edge.errors import EdgeError
from edge.formats.files import check_argument, decode_text, read_text
from edge.generate.decode import open_source
from edge.generate.fim import Completer, read_hole, split_at_mark
from edge.generate.sampling import Sampling
from edge.model.follow import is_launched
from edge.stdout import write_stdout
from edge.tokenizer.fim_tokens import FimTokens
from edge.tokenizer.tokenizer import Tokenizer


def run(args: argparse.Namespace) -> int:
    """Print the text for the cursor, piece by piece or as one JSON document."""
    # First: if --context has taken the cursor for one of its files, this error names it.
    context = [read_text(path) for path in args.context]
    prefix, suffix = _hole(args)
    sampling = Sampling.from_options(args)

    def check(tokenizer: Tokenizer) -> None:
        FimTokens.find(tokenizer.backend_tokenizer).check(args.order)

    path = runnable(args.model, args.command, ARTEFACT, check)
    opened = open_for(args.command, path, args.kv_bits)
    with wired(opened.running_bytes):
        events = Completer(open_source(opened.model, args.kv_bits), opened.tokenizer).stream(
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
    """Text before and after the cursor."""
    in_words = args.prefix is not None or args.suffix is not None
    if args.place is not None:
        if in_words:
            raise EdgeError(f"{args.place} does not go with --prefix or --suffix; leave one out.")
        return read_hole(args.place)
    if in_words:
        return (
            check_argument(args.prefix or "", "--prefix"),
            check_argument(args.suffix or "", "--suffix"),
        )
    if sys.stdin is None or sys.stdin.isatty() or is_launched():  # mlx.launch never closes it
        raise EdgeError("there is no cursor; give FILE:LINE, --prefix, or a mark on stdin.")
    return split_at_mark(decode_text(sys.stdin.buffer.read(), "stdin"), args.cursor)
