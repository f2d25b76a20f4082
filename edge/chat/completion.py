"""Completion of commands after a slash, and of paths after those that take one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document


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
