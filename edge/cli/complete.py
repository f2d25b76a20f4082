"""Complete code at one or more cursors (fill in the middle)."""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from edge.cli.model_path import open_for, runnable
from edge.cli.options.complete import ARTEFACT
from edge.device.memory import wired
from edge.errors import EdgeError
from edge.formats.files import check_argument, decode_text, read_text
from edge.generate.decode import open_source
from edge.generate.fim import Completer, Completion, read_hole, split_at_mark
from edge.generate.sampling import Sampling
from edge.model.follow import is_launched
from edge.stdout import write_stdout
from edge.tokenizer.fim_tokens import FimTokens
from edge.tokenizer.tokenizer import Tokenizer


def run(args: argparse.Namespace) -> int:
    """Print the text for each cursor, piece by piece or as one JSON document."""
    # First: if --context has taken the cursor for one of its files, this error names it.
    context = [read_text(path) for path in args.context]
    holes = _holes(args)
    sampling = Sampling.from_options(args)

    def check(tokenizer: Tokenizer) -> None:
        FimTokens.find(tokenizer.backend_tokenizer).check(args.order)

    path = runnable(args.model, args.command, ARTEFACT, check)
    opened = open_for(args.command, path, args.kv_bits)
    with wired(opened.running_bytes):
        completer = Completer(open_source(opened.model, args.kv_bits), opened.tokenizer)
        found = []
        for number, hole in enumerate(holes):
            if args.output == "text" and len(holes) > 1:  # headings as of `head`
                write_stdout(("\n\n" if number else "") + f"==> {args.places[number]} <==\n")
            found.append(_completion(args, completer, hole, context, sampling))
    if args.output == "json":
        write_stdout(json.dumps(_document(args.places, found), indent=2) + "\n")
    return 0


def _completion(
    args: argparse.Namespace,
    completer: Completer,
    hole: tuple[str, str],
    context: Sequence[str],
    sampling: Sampling,
) -> Completion:
    """The middle of a hole; its text is printed as it comes."""
    events = completer.stream(
        *hole,
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
    assert event.completion is not None
    return event.completion


def _document(places: Sequence[str], found: Sequence[Completion]) -> Any:
    """One completion, or a list with the places."""
    if len(found) == 1:
        return asdict(found[0])
    return [{"place": place, **asdict(each)} for place, each in zip(places, found, strict=True)]


def _holes(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Text before and after each cursor."""
    in_words = args.prefix is not None or args.suffix is not None
    if args.places:
        if in_words:
            raise EdgeError(
                f"{args.places[0]} does not go with --prefix or --suffix; leave one out."
            )
        return [read_hole(place) for place in args.places]
    if in_words:
        prefix = check_argument(args.prefix or "", "--prefix")
        return [(prefix, check_argument(args.suffix or "", "--suffix"))]
    if sys.stdin is None or sys.stdin.isatty() or is_launched():  # mlx.launch never closes it
        raise EdgeError("there is no cursor; give FILE:LINE, --prefix, or a mark on stdin.")
    return [split_at_mark(decode_text(sys.stdin.buffer.read(), "stdin"), args.cursor)]
