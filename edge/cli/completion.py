"""Print a script that completes commands, options and names in a shell."""

import argparse

import shtab

from edge.cli.main import COMMANDS, parser_of
from edge.convert.artefacts.recipes import RECIPES
from edge.formats.files import user_path


def run(args: argparse.Namespace) -> int:
    print(shtab.complete(_parser(), args.shell))
    return 0


def _parser() -> argparse.ArgumentParser:
    """A parser of all commands, whose actions say how they are completed."""
    parser = argparse.ArgumentParser("edge")
    parser.add_argument("--version", action="store_true", help="show the version")
    commands = parser.add_subparsers()
    for name, summary in COMMANDS.items():
        known = parser_of(name)
        for action in known._actions:
            _complete(action)
        commands.add_parser(name, parents=[known], add_help=False, help=summary)
    return parser


def _complete(action: argparse.Action) -> None:
    """Names of artefacts, or of files and folders."""
    if action.metavar == "ARTEFACT" and action.type is not user_path:
        action.choices = list(RECIPES)
    elif action.type is user_path or action.metavar in ("MODEL", "FILE:LINE[:COL]"):
        folder = action.metavar == "DIR"
        action.complete = shtab.DIRECTORY if folder else shtab.FILE  # type: ignore[attr-defined]
