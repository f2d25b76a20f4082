"""The chat loop: reads a text, runs it as a command or prints the answer, until the user leaves."""

import errno
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.layout.processors import TabsProcessor

from edge.chat.commands import TABLE, Leave, as_message, run_command, split_command
from edge.chat.screen import is_capable
from edge.chat.session import Session
from edge.errors import EdgeError

PROMPT, CONTINUED = ">>> ", "... "
QUOTES = '"""'


def state_folder() -> Path:
    """The platform's folder for state of programs, which may not exist yet."""
    named = os.environ.get("XDG_STATE_HOME", "")
    if Path(named).is_absolute():  # the specification says to ignore a relative path
        return Path(named) / "edge"
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Application Support" / "edge"
    return Path.home() / ".local" / "state" / "edge"


def new_transcript_file() -> Path:
    """The path of a transcript for this process and moment."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl"
    return state_folder() / "chats" / name


def converse(session: Session, keep_history: bool = True) -> None:
    """Runs the loop at the terminal, and names the transcript at the end."""
    greet(session)
    read = read_plainly
    if is_capable(sys.stdout):
        history = state_folder() / "history" if keep_history else None
        read = open_terminal(history, session.screen.note)
    run_loop(session, read)
    if session.transcript.path is not None and session.transcript.is_begun:
        session.screen.note(f"the conversation is in {session.transcript.path}")


def greet(session: Session) -> None:
    """Prints the model's name and notes before the first prompt."""
    limit = session.talk.context_limit
    session.screen.note(f"{session.opened.name} · context {limit} · /help for commands")
    if session.opened.note is not None:
        session.screen.note(session.opened.note)
    session.print_notes()


def run_loop(session: Session, read: Callable[[], str]) -> None:
    """Takes texts until /exit or the end of the input."""
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
            handle(session, text)
        except Leave:
            return
        except EdgeError as error:
            session.screen.say(str(error))
        except KeyboardInterrupt:
            session.screen.note("stopped by you")


def handle(session: Session, text: str) -> None:
    """Runs one text of the user as a command or a message."""
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


def is_open(text: str) -> bool:
    '''True if a text begins a """ block that has not ended.'''
    return text.lstrip().startswith(QUOTES) and text.count(QUOTES) % 2 == 1


def without_quotes(text: str) -> str:
    '''The content of a """ block; any other text unchanged.'''
    inner = text.strip()
    if not (inner.startswith(QUOTES) and inner.endswith(QUOTES) and len(inner) >= 2 * len(QUOTES)):
        return text
    inner = inner.removeprefix(QUOTES).removesuffix(QUOTES)
    return inner.removeprefix("\n").removesuffix("\n")


def _clean(text: str) -> str:
    """Replaces bytes that are not UTF-8, which come as lone surrogates."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_plainly() -> str:
    """Reads the next text without a line editor; raises EOFError at the end."""
    text = _line(PROMPT)
    while is_open(text):
        text += _line(CONTINUED)
    return without_quotes(_clean(text.removesuffix("\n")))


def _line(prompt: str) -> str:
    print(prompt, end="", flush=True)
    if line := sys.stdin.readline():
        return line
    raise EOFError


def open_terminal(history_file: Path | None, notice: Callable[[str], None]) -> Callable[[], str]:
    """A reader as `read_plainly` with a line editor; `notice` gets errors of the history file."""

    def is_naming_a_command() -> bool:
        text = session.default_buffer.document.text
        return text.startswith("/") and not any(c.isspace() for c in text)

    session: PromptSession[str] = PromptSession(
        multiline=True,
        history=_open_history(history_file, notice),
        completer=_CommandCompleter(),
        complete_while_typing=Condition(is_naming_a_command),
        key_bindings=_keys(),
        prompt_continuation=CONTINUED,
        input_processors=[TabsProcessor(tabstop=4, char1=" ", char2=" ")],
        reserve_space_for_menu=6,
        enable_suspend=True,
    )
    return lambda: without_quotes(_clean(session.prompt(PROMPT)))


class _CommandCompleter(Completer):
    """Completes the names of commands, and paths after those that take one."""

    def __init__(self) -> None:
        self._summaries = {f"/{c.name}": c.summary for c in TABLE.values()} | {"/quit": "/exit"}
        self._take_path = {f"/{c.name}" for c in TABLE.values() if c.takes_path}
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        text = document.text_before_cursor
        name, space, argument = text.partition(" ")
        if space and name in self._take_path:
            path = Document(argument.lstrip())
            yield from self._paths.get_completions(path, complete_event)
        elif not space and text.startswith("/"):
            for name, summary in self._summaries.items():
                if name.startswith(text):
                    yield Completion(name, -len(text), display_meta=summary)


def _keys() -> Any:
    keys = KeyBindings()

    @keys.add("enter")
    @keys.add("c-j")
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("escape", "c-j")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: Any) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys


def _open_history(file: Path | None, notice: Callable[[str], None]) -> History:
    if file is None:
        return InMemoryHistory()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if file.exists() and not file.is_file():  # opening a pipe would wait
            raise OSError(errno.EINVAL, "it is not a regular file")
        with file.open("ab"):
            file.chmod(0o600)
    except OSError as error:
        notice(_not_kept(file, error))
        return InMemoryHistory()
    return _SafeFileHistory(file, notice)


class _SafeFileHistory(FileHistory):
    """A history that goes on in memory when its file cannot be read or written."""

    def __init__(self, file: Path, notice: Callable[[str], None]):
        super().__init__(str(file))
        self._file, self._notice = file, notice

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        try:
            super().store_string(_clean(string))
        except OSError as error:
            self._notice(_not_kept(self._file, error))


def _not_kept(file: Path, error: OSError) -> str:
    return (
        f"what you type is not kept, because {file} cannot be written ({error.strerror}); check "
        f"the folder's permissions, or give --no-history."
    )
