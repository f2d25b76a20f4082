"""The loop: read a text, run it as a command or print the answer to it, until the user leaves."""

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from edge.chat.commands import ALIASES, TABLE, Leave, as_message, run_command, split_command
from edge.chat.input import open_terminal, read_plainly
from edge.chat.screen import is_capable
from edge.chat.session import Session
from edge.errors import EdgeError


def state_folder() -> Path:
    """The platform's folder for state of programs, which need not exist yet."""
    named = os.environ.get("XDG_STATE_HOME", "")
    if Path(named).is_absolute():  # the specification: a relative path is to be ignored
        return Path(named) / "edge"
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Application Support" / "edge"
    return Path.home() / ".local" / "state" / "edge"


def new_transcript_file() -> Path:
    """A name for this conversation; two processes never share one."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl"
    return state_folder() / "chats" / name


def converse(session: Session, keep_history: bool = True) -> None:
    """Talks with the user at the terminal until they leave, and says where it is kept."""
    greet(session)
    read = read_plainly
    if is_capable(sys.stdout):
        commands = [(c.name, c.summary, c.takes_path) for c in TABLE.values()]
        commands.append(("quit", f"/{ALIASES['quit']}", False))
        history = state_folder() / "history" if keep_history else None
        read = open_terminal(commands, history, session.screen.note)
    run_loop(session, read)
    if session.transcript.path is not None and session.transcript.is_begun:
        session.screen.note(f"the conversation is in {session.transcript.path}")


def greet(session: Session) -> None:
    """Says what the user should know before the first word."""
    limit = session.talk.context_limit
    session.screen.note(f"{session.opened.name} · context {limit} · /help for commands")
    if session.opened.note is not None:
        session.screen.note(session.opened.note)
    session.begin()
    if session.meter.unavailable is not None and session.meter.source != "none":
        session.screen.note(session.meter.unavailable)


def run_loop(session: Session, read: Callable[[], str]) -> None:
    """Runs what the user types until /exit or the end of the input."""
    while True:
        try:
            text = read()
        except KeyboardInterrupt:
            session.screen.prompt_shown()
            session.screen.note("Ctrl-D or /exit leaves")
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
    """Runs one text of the user's; raises Leave if that says so."""
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
