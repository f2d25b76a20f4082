'''What the user types: lines with history and completion, or plain ones where nothing else works.

A text is one line, or a block between """ and """, or several lines with Alt-Enter or a paste.
'''

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.layout.processors import TabsProcessor

from edge.chat.paths import make_private

PROMPT, CONTINUED = ">>> ", "... "
QUOTES = '"""'
TAB_COLUMNS = 4


class Reader(Protocol):
    """Where the user's texts come from."""

    def read(self) -> str:
        """The next text, without the quotes of a block.

        Raises:
            EOFError: there is no more.
            KeyboardInterrupt: Ctrl-C with nothing typed.
        """


def is_open(text: str) -> bool:
    '''Whether a text begins a """ block that has not ended.'''
    return text.lstrip().startswith(QUOTES) and text.count(QUOTES) % 2 == 1


def without_quotes(text: str) -> str:
    '''The content of a """ block; any other text as it is.'''
    inner = text.strip()
    if not (inner.startswith(QUOTES) and inner.endswith(QUOTES) and len(inner) >= 2 * len(QUOTES)):
        return text
    inner = inner.removeprefix(QUOTES).removesuffix(QUOTES)
    return inner.removeprefix("\n").removesuffix("\n")


def clean(text: str) -> str:
    """Bytes that are no UTF-8 came as lone surrogates, which no tokenizer takes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class PlainReader:
    """Lines as the terminal itself edits them: for dumb terminals and for a piped stdout."""

    def read(self) -> str:
        """See `Reader`."""
        text = self._line(PROMPT)
        while is_open(text):
            text += self._line(CONTINUED)
        return without_quotes(clean(text.removesuffix("\n")))

    def _line(self, prompt: str) -> str:
        print(prompt, end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line


class TerminalReader:
    """prompt_toolkit's line editor."""

    def __init__(self, session: PromptSession[str]):
        self._session = session

    def read(self) -> str:
        """See `Reader`."""
        return without_quotes(clean(self._session.prompt(PROMPT)))


class CommandCompleter(Completer):
    """Completes /commands and their paths; prose is left alone.

    Args:
        commands: name, what it does, and whether it takes a path.
    """

    def __init__(self, commands: Sequence[tuple[str, str, bool]]):
        self._summaries = {f"/{name}": summary for name, summary, _ in commands}
        self._take_path = {f"/{name}" for name, _, takes_path in commands if takes_path}
        self._paths = PathCompleter(expanduser=True)

    def is_naming(self, document: Document) -> bool:
        """Whether the cursor is at the end of a command's name."""
        text = document.text
        return text.startswith("/") and not any(c.isspace() for c in text)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """What the text before the cursor could become."""
        text = document.text_before_cursor
        name, space, argument = text.partition(" ")
        if not space:
            yield from self._commands(text)
        elif name in self._take_path:
            argument = argument.lstrip()
            yield from self._paths.get_completions(
                Document(argument, len(argument)), complete_event
            )

    def _commands(self, text: str) -> Iterable[Completion]:
        for name, summary in self._summaries.items():
            if text.startswith("/") and name.startswith(text):
                yield Completion(name, -len(text), display_meta=summary)


def open_terminal(
    commands: Sequence[tuple[str, str, bool]],
    history_file: Path | None,
    notice: Callable[[str], None],
) -> TerminalReader:
    """A line editor on this terminal.

    Args:
        commands: name, what it does, and whether it takes a path.
        history_file: where typed lines are kept; None keeps them in memory.
        notice: told in one sentence when they cannot be kept.
    """
    completer = CommandCompleter(commands)
    session: PromptSession[str] = PromptSession(
        multiline=True,
        history=_history(history_file, notice),
        completer=completer,
        complete_while_typing=Condition(
            lambda: completer.is_naming(session.default_buffer.document)
        ),
        key_bindings=_keys(),
        prompt_continuation=CONTINUED,
        input_processors=[TabsProcessor(tabstop=TAB_COLUMNS, char1=" ", char2=" ")],
        reserve_space_for_menu=6,
        enable_suspend=True,
    )
    return TerminalReader(session)


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


def _history(file: Path | None, notice: Callable[[str], None]) -> History:
    if file is None:
        return InMemoryHistory()
    try:
        make_private(file.parent)
        with file.open("ab"):
            file.chmod(0o600)
    except OSError as error:
        notice(_not_kept(file, error))
        return InMemoryHistory()

    kept_in = file

    class Kept(FileHistory):
        """Goes on without the file when the disk is full or gone."""

        def load_history_strings(self) -> Iterable[str]:
            try:
                return list(super().load_history_strings())
            except OSError:
                return []

        def store_string(self, string: str) -> None:
            try:
                super().store_string(clean(string))
            except OSError as error:
                notice(_not_kept(kept_in, error))

    return Kept(str(file))


def _not_kept(file: Path, error: OSError) -> str:
    return (
        f"what you type is not kept for the next time, because {file} cannot be written "
        f"({error.strerror}); check the folder's permissions, or give --no-history."
    )
