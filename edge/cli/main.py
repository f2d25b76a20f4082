"""`edge COMMAND`: find the command, run it, turn errors into one sentence."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import edge
from edge.errors import EdgeError
from edge.stdout import discard_stdout, flush_stdout

# Modules of this folder, imported when `main` runs: Ctrl-C meanwhile is no traceback.
COMMANDS = ("convert", "bench", "chat", "complete", "eval", "report", "power", "doctor")
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 for a failure, 130 if interrupted. Wrong arguments exit with 2.
    """
    return _run("edge", _parser, argv)


def run_one(name: str, prog: str) -> int:
    """Run one command under a name of its own (`convert.py`, `bench.py`)."""
    return _run(prog, lambda: _parser_of(name, prog))


def run_command(args: argparse.Namespace) -> int:
    """Run the parsed command; what the user can mend becomes a sentence on stderr."""
    try:
        code: int = _module(args.command).run(args)
        flush_stdout()  # here, where a reader that went away can still be handled
        return code
    except EdgeError as error:
        print(f"edge {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _interrupted(f"edge {args.command}")
    except BrokenPipeError:  # `edge bench | head`
        discard_stdout()
        return 1


def _run(
    prog: str,
    make_parser: Callable[[], argparse.ArgumentParser],
    argv: Sequence[str] | None = None,
) -> int:
    _fill_closed_streams()
    try:
        return run_command(make_parser().parse_args(argv))
    except KeyboardInterrupt:  # before the command itself began
        return _interrupted(prog)


def _interrupted(prog: str) -> int:
    print(f"{prog}: interrupted", file=sys.stderr)
    return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge", description=_summary(edge))
    parser.add_argument("--version", action="version", version=f"edge {edge.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        summary = _summary(_module(name))
        _module(name).add_arguments(commands.add_parser(name, help=summary, description=summary))
    return parser


def _parser_of(name: str, prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=_summary(_module(name)))
    parser.set_defaults(command=name)
    _module(name).add_arguments(parser)
    return parser


def _module(name: str) -> Any:
    return import_module(f"edge.cli.{name}")


def _summary(module: Any) -> str:
    """A docstring's first line."""
    return (module.__doc__ or "").split("\n")[0]


def _fill_closed_streams() -> None:
    """A file that is opened gets the first free number: never that of a closed stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
