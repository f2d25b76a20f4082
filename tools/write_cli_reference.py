"""Write docs/cli.md, the reference of the commands, from their parsers.

python tools/write_cli_reference.py
"""

import argparse
from pathlib import Path

from edge.cli.main import COMMANDS, parser_of

REFERENCE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """\
# The commands

`edge COMMAND --help` prints the same. In a checkout `python convert.py` is `edge convert`, and
`python bench.py` is `edge bench`. Every command that prints a result takes `-o json`: stdout is
then one JSON document, and everything else goes to stderr. The exit code is 0 for success, 1 for
an error that stderr explains in a sentence, 2 for wrong arguments and 130 after Ctrl-C.

Written by `tools/write_cli_reference.py`; a test compares it with the parsers.
"""


def reference() -> str:
    """The page: a section per command, a table per group of its options."""
    return "\n".join([HEAD, *(_section(name) for name in COMMANDS)])


def _section(name: str) -> str:
    parser = parser_of(name)
    parts = [f"## edge {name}", COMMANDS[name]]
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        actions = [action for action in shown if action.dest != "help"]
        if actions:
            parts += [_heading(group), "\n".join(["| | |", "|---|---|", *map(_row, actions)])]
    if parser.epilog:
        parts.append(parser.epilog)
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(group: argparse._ArgumentGroup) -> str:
    title = {"positional arguments": "Arguments"}.get(group.title or "", group.title or "")
    about = f" {group.description}." if group.description else ""
    return f"**{title[:1].upper()}{title[1:]}**.{about}"


def _row(action: argparse.Action) -> str:
    formatter = parser_of("doctor").formatter_class("edge")
    name = formatter._format_action_invocation(action)
    if action.option_strings:  # the same on every Python: 3.13 names the value only once
        value = formatter._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
        name = f"{', '.join(action.option_strings)} {value}".strip()
    meaning = " ".join(formatter._expand_help(action).split())
    return f"| `{name}` | {meaning} |".replace("|DIR", "\\|DIR")


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
