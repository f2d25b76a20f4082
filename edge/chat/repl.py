"""The loop: read a text, run it as a command or print the answer to it, until the user leaves."""

from __future__ import annotations

import sys

from edge.chat.commands import ALIASES, TABLE, Leave, as_message, run_command, split_command
from edge.chat.input import PlainReader, Reader, open_terminal
from edge.chat.paths import history_file
from edge.chat.session import Session, going_on_notice
from edge.chat.terminal import is_capable
from edge.errors import EdgeError

LEAVING_HINT = "Ctrl-D or /exit leaves"


def greet(session: Session) -> None:
    """What the user should know before the first word."""
    limit = session.talk.context_limit
    session.screen.note(f"{session.opened.name} · context {limit} · /help for commands")
    if session.opened.remark is not None:
        session.screen.note(session.opened.remark)
    session.say_if_base()
    if session.transcript.messages:
        session.screen.note(going_on_notice(session.transcript))
    if session.meter.unavailable is not None and session.meter.source != "none":
        session.screen.note(session.meter.unavailable)


def run_loop(session: Session, reader: Reader) -> None:
    """Until /exit or the end of the input."""
    while True:
        try:
            text = reader.read()
        except KeyboardInterrupt:
            session.screen.prompt_shown()
            session.screen.note(LEAVING_HINT)
            continue
        except EOFError:
            return
        session.screen.prompt_shown()
        try:
            take(session, text)
        except Leave:
            return
        except EdgeError as error:
            session.screen.say(str(error))
        except KeyboardInterrupt:
            session.screen.note("stopped by you")


def take(session: Session, text: str) -> None:
    """Run one text of the user's.

    Raises:
        EdgeError: it cannot be done.
        Leave: the user wants to.
    """
    if not text.strip():
        return
    command = split_command(text)
    try:
        if command is None:
            session.ask(as_message(text))
        else:
            run_command(session, *command)
    finally:
        session.record()


def completed_commands() -> list[tuple[str, str, bool]]:
    """Name, what it does and whether it takes a path, for the completion."""
    table = [(c.name, c.summary, c.takes_path) for c in TABLE.values()]
    return [*table, *((name, f"/{ALIASES[name]}", False) for name in ("quit",))]


def converse(session: Session, keep_history: bool = True) -> None:
    """Talk with whoever is at the terminal until they leave, and say where it is kept."""
    greet(session)
    history = history_file() if keep_history else None
    plain = not is_capable(sys.stdout)
    run_loop(
        session,
        PlainReader()
        if plain
        else open_terminal(completed_commands(), history, session.screen.note),
    )
    if session.transcript.path is not None and session.transcript.is_begun:
        session.screen.note(f"the conversation is in {session.transcript.path}")
