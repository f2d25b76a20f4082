"""A conversation in a file of JSON lines, to which each finished message is appended.

    {"role": "system", "content": "Be short.", "cut_off": false}    "" removes the system prompt
    {"role": "user", "content": "Hello", "cut_off": false}
    {"role": "assistant", "content": "Hi", "cut_off": false}
    {"undo": 1}                  removes the last question with its answer

A crash loses the answer being written, and leaves half a line at most.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from edge.errors import EdgeError
from edge.formats.files import atomic_write, read_small_file, strict_json
from edge.generate.decode import common_length

Role = Literal["system", "user", "assistant"]
MODE = 0o600


@dataclass(frozen=True)
class Message:
    """One message; `cut_off` marks an answer that ended before the model ended it."""

    role: Role
    content: str
    cut_off: bool = False


class Transcript:
    """Writes a conversation while it goes on; the file is created with the first question.

    Nothing is written after a failure, which would leave a gap in the conversation.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self.messages: list[Message] = []
        self._prepared = False
        # Path.exists raises for a folder without permissions, which `record` reports later.
        if path is not None and os.path.exists(path):  # noqa: PTH110
            self.messages = read_transcript(path)

    def record(self, messages: Sequence[Message]) -> str | None:
        """Writes what changed; returns a warning if that fails."""
        asked = any(message.role == "user" for message in (*self.messages, *messages))
        lines = _lines(self.messages, messages)
        if self.path is None or not asked or not lines:
            return None
        try:
            if not self._prepared:
                _prepare(self.path)
            self._prepared = True
            with self.path.open("r+b") as file:
                file.seek(0, os.SEEK_END)
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            path, self.path = self.path, None
            return (
                f"the transcript {path} cannot be written ({error.strerror or error}), so "
                f"further messages are not saved; save the conversation to another file."
            )
        self.messages = list(messages)
        return None

    @property
    def is_begun(self) -> bool:
        return self._prepared or bool(self.messages)


def write_transcript(path: Path | str, messages: Sequence[Message]) -> None:
    with atomic_write(Path(path)) as partial:
        partial.touch(MODE)
        partial.write_bytes(_lines([], messages))


def read_transcript(path: Path | str) -> list[Message]:
    """The conversation in a transcript; half a line at the end is ignored."""
    *lines, torn = read_small_file(Path(path)).split(b"\n")
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


def _lines(before: Sequence[Message], after: Sequence[Message]) -> bytes:
    """The lines that change one conversation into another."""
    (old_system, old), (new_system, new) = split_system(before), split_system(after)
    entries: list[object] = []
    if old_system != new_system:
        entries += map(asdict, new_system or [Message("system", "")])
    same = common_length(old, new)
    if same < len(old):
        same -= old[same].role == "assistant"  # an answer is removed with its question
        entries.append({"undo": sum(message.role == "user" for message in old[same:])})
    entries += map(asdict, new[same:])
    return b"".join(json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in entries)


def _prepare(path: Path) -> None:
    """Creates the file and its folder if needed, and cuts off half a line at its end."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, MODE), "r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
