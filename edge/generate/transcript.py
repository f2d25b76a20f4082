"""A conversation in a file of JSON lines, which is written again after each finished message.

    {"role": "system", "content": "Be short.", "cut_off": false}
    {"role": "user", "content": "Hello", "cut_off": false}
    {"role": "assistant", "content": "Hi", "cut_off": false}

A crash loses the answer being written. Earlier versions appended, so a file can have half a line
at its end, {"undo": 1} after a question that was removed with its answer, and system prompts later.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from edge.errors import EdgeError
from edge.formats.files import atomic_write, read_small_file, strict_json

Role = Literal["system", "user", "assistant"]
HEADINGS = ("## System\n", "## User\n", "## Assistant\n")  # begin what `write_markdown` writes


@dataclass(frozen=True)
class Message:
    """One message; `cut_off` marks an answer that ended before the model ended it."""

    role: Role
    content: str
    cut_off: bool = False


class Transcript:
    """Writes a conversation while it goes on, until it fails; begins with the first question."""

    def __init__(self, path: Path | None = None):
        self.path = path
        self.messages: list[Message] = []
        # Path.exists raises for a folder without permissions, which `record` reports later.
        if path is not None and os.path.exists(path):  # noqa: PTH110
            self.messages = read_transcript(path)
        self.is_begun = bool(self.messages)

    def record(self, messages: Sequence[Message]) -> str | None:
        """Writes the conversation if it changed; returns a warning if that fails."""
        asked = any(message.role == "user" for message in (*self.messages, *messages))
        if self.path is None or not asked or list(messages) == self.messages:
            return None
        try:
            with suppress(OSError):  # of which the next step says more
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_transcript(self.path, messages)
        except EdgeError as error:
            self.path = None
            return (
                f"the transcript {str(error).partition('; check')[0]}, so further messages are not "
                f"saved; save the conversation to another file."
            )
        self.messages, self.is_begun = list(messages), True
        return None


def write_transcript(path: Path, messages: Sequence[Message]) -> None:
    lines = [json.dumps(asdict(message), ensure_ascii=False) + "\n" for message in messages]
    _write(path, "".join(lines))


def write_markdown(path: Path, messages: Sequence[Message]) -> None:
    """Writes a conversation to read, with the roles as headings."""
    parts = []
    for message in messages:
        cut = "\n\n*(cut off)*" if message.cut_off else ""
        parts.append(f"## {message.role.capitalize()}\n\n{message.content.strip()}{cut}\n")
    _write(path, "\n".join(parts))


def _write(path: Path, text: str) -> None:
    with atomic_write(path.resolve()) as partial:
        partial.touch(0o600)
        with partial.open("wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())


def read_transcript(path: Path) -> list[Message]:
    """The conversation in a transcript; half a line at the end is ignored."""
    *lines, torn = read_small_file(path).split(b"\n")
    if torn and not lines:
        lines = [b""]  # refused below: half a line alone is not a transcript
    messages: list[Message] = []
    for number, line in enumerate(lines, start=1):
        try:
            _take(strict_json(line), messages)
        except ValueError as error:
            raise EdgeError(
                f"{path} is not a transcript of a chat: line {number} cannot be used ({error}); "
                f"correct that line or choose another file."
            ) from None
    return messages


def split_system(
    messages: Sequence[Message],
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The system prompt, if any, and the messages after it."""
    count = int(bool(messages) and messages[0].role == "system")
    return tuple(messages[:count]), tuple(messages[count:])


def _take(entry: object, messages: list[Message]) -> None:
    """Applies one line to the messages; a ValueError says why it cannot be used."""
    match entry:
        case {"role": "system", "content": str(content)}:
            system = [Message("system", content)] if content else []
            messages[:] = [*system, *split_system(messages)[1]]
        case {"role": "user" | "assistant" as role, "content": str(content), "cut_off": bool(cut)}:
            messages.append(Message(role, content, cut))
        case {"undo": int(count)}:
            asked = [place for place, message in enumerate(messages) if message.role == "user"]
            if not 0 < count <= len(asked):
                raise ValueError(f"there are {len(asked)} questions to undo, not {count}")
            del messages[asked[-count] :]
        case _:
            raise ValueError("it is not a message")
