'''What the user types: a line, a block in """, or lines with Alt-Enter or a paste.'''

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.layout.processors import TabsProcessor

PROMPT, CONTINUED = ">>> ", "... "
QUOTES = '"""'
# Name, what it does, and True if it takes a path.
Commands = Sequence[tuple[str, str, bool]]


def is_open(text: str) -> bool:
    '''A text begins a """ block that has not ended.'''
    return text.lstrip().startswith(QUOTES) and text.count(QUOTES) % 2 == 1


def without_quotes(text: str) -> str:
    '''The content of a """ block; any other text as it is.'''
    inner = text.strip()
    if not (inner.startswith(QUOTES) and inner.endswith(QUOTES) and len(inner) >= 2 * len(QUOTES)):
        return text
    inner = inner.removeprefix(QUOTES).removesuffix(QUOTES)
    return inner.removeprefix("\n").removesuffix("\n")


def clean(text: str) -> str:
    """Bytes that are not UTF-8 came as lone surrogates, which no tokenizer takes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_plainly() -> str:
    """The next text, as the terminal itself edits lines; raises EOFError at the end."""
    text = _line(PROMPT)
    while is_open(text):
        text += _line(CONTINUED)
    return without_quotes(clean(text.removesuffix("\n")))


def _line(prompt: str) -> str:
    print(prompt, end="", flush=True)
    if line := sys.stdin.readline():
        return line
    raise EOFError


class CommandCompleter(Completer):
    """Completes /commands and their paths."""

    def __init__(self, commands: Commands):
        self._summaries = {f"/{name}": summary for name, summary, _ in commands}
        self._take_path = {f"/{name}" for name, _, takes_path in commands if takes_path}
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Completions of the text before the cursor."""
        text = document.text_before_cursor
        name, space, argument = text.partition(" ")
        if space and name in self._take_path:
            path = Document(argument.lstrip())
            yield from self._paths.get_completions(path, complete_event)
        elif not space and text.startswith("/"):
            for name, summary in self._summaries.items():
                if name.startswith(text):
                    yield Completion(name, -len(text), display_meta=summary)


def open_terminal(
    commands: Commands, history_file: Path | None, notice: Callable[[str], None]
) -> Callable[[], str]:
    """Reads as `read_plainly`, by prompt_toolkit; `notice` is told of a history not kept."""

    def is_naming_a_command() -> bool:
        text = session.default_buffer.document.text
        return text.startswith("/") and not any(c.isspace() for c in text)

    session: PromptSession[str] = PromptSession(
        multiline=True,
        history=_history(history_file, notice),
        completer=CommandCompleter(commands),
        complete_while_typing=Condition(is_naming_a_command),
        key_bindings=_keys(),
        prompt_continuation=CONTINUED,
        input_processors=[TabsProcessor(tabstop=4, char1=" ", char2=" ")],
        reserve_space_for_menu=6,
        enable_suspend=True,
    )
    return lambda: without_quotes(clean(session.prompt(PROMPT)))


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
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file.open("ab"):
            file.chmod(0o600)
    except OSError as error:
        notice(_not_kept(file, error))
        return InMemoryHistory()
    return _KeptHistory(file, notice)


class _KeptHistory(FileHistory):
    """Goes on without the file when the disk is full or gone."""

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
            super().store_string(clean(string))
        except OSError as error:
            self._notice(_not_kept(self._file, error))


def _not_kept(file: Path, error: OSError) -> str:
    return (
        f"what you type is not kept for the next time, because {file} cannot be written "
        f"({error.strerror}); check the folder's permissions, or give --no-history."
    )
