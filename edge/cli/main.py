"""`edge COMMAND`: find the command, run it, turn errors into one sentence."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import edge
from edge.cli import bench, complete, convert
from edge.errors import EdgeError

COMMANDS = {"convert": convert, "bench": bench, "complete": complete}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 for a failure, 130 if interrupted. Wrong arguments exit with 2.
    """
    parser = argparse.ArgumentParser(prog="edge", description=(edge.__doc__ or "").split("\n")[0])
    parser.add_argument("--version", action="version", version=f"edge {edge.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").split("\n")[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    return run_command(parser.parse_args(argv))


def run_one(name: str, prog: str) -> int:
    """Run one command under a name of its own (`convert.py`, `bench.py`)."""
    module = COMMANDS[name]
    summary = (module.__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog=prog, description=summary)
    module.add_arguments(parser)
    args = parser.parse_args()
    args.command = name
    return run_command(args)


def run_command(args: argparse.Namespace) -> int:
    """Run the parsed command; what the user can mend becomes a sentence on stderr."""
    try:
        code: int = COMMANDS[args.command].run(args)
        sys.stdout.flush()  # here, where a reader that went away can still be handled
        return code
    except EdgeError as error:
        print(f"edge {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"edge {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `edge bench | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
