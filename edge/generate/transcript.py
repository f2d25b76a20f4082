"""A conversation in a file, written as it goes: whatever ends the process, nothing is lost.

The file is JSON lines, only ever appended to. One line says one thing that happened:

    {"event": "edge chat", "version": 1}
    {"event": "system", "text": "Be short."}
    {"event": "user", "text": "Hello"}
    {"event": "piece", "text": "Hi"}            part of the answer, before anybody sees it
    {"event": "end", "cut_off": false}          the answer is over; without it, it was cut off
    {"event": "regenerate"}                     another answer to the last question
    {"event": "undo"}                           question and answer are taken back
    {"event": "clear"}                          all of them; the system prompt stays

Every line goes to the operating system at once, so it outlives the process; the end of a message
goes to the disk.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edge.atomic import appears_whole
from edge.errors import EdgeError
from edge.json_file import strict_json

Role = Literal["system", "user", "assistant"]
KIND, VERSION = "edge chat", 1
BEGINNING: Mapping[str, Any] = {"event": KIND, "version": VERSION}
# A conversation of a thousand answers of a thousand tokens has some 50 MB.
MAX_BYTES = 500_000_000
# What is personal is nobody else's to read.
MODE = 0o600


@dataclass(frozen=True)
class Message:
    """What somebody said; `cut_off` if the answer was ended before the model ended it."""

    role: Role
    content: str
    cut_off: bool = False


class Transcript:
    """Writes down a conversation. Never raises: a chat is worth more than its transcript.

    Args:
        path: the file; one that is there already is continued if it is a transcript. Made
            with its folders, readable by the user alone.

    Attributes:
        path: the file.
        warning: one sentence once something could not be written, else None. Nothing is
            written after that: a file with a gap would tell another conversation.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.warning: str | None = None
        self._file: int | None = None
        try:
            self._file = _open_to_append(self.path)
        except (OSError, EdgeError) as error:
            self._give_up(error)

    def __enter__(self) -> Transcript:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def system(self, text: str | None) -> None:
        """The system prompt from here on; None for none."""
        self._write({"event": "system", "text": text}, to_disk=True)

    def user(self, text: str) -> None:
        """A question; an answer follows."""
        self._write({"event": "user", "text": text}, to_disk=True)

    def piece(self, text: str) -> None:
        """Part of the answer; call it before the text is shown."""
        if text:
            self._write({"event": "piece", "text": text})

    def end(self, cut_off: bool = False) -> None:
        """The answer is over."""
        self._write({"event": "end", "cut_off": cut_off}, to_disk=True)

    def regenerate(self) -> None:
        """Another answer to the last question follows, in place of the one there was.

        If it is cut off before anything came, the one there was stays.
        """
        self._write({"event": "regenerate"})

    def undo(self) -> None:
        """The last question and its answer are taken back."""
        self._write({"event": "undo"}, to_disk=True)

    def clear(self) -> None:
        """All questions and answers are taken back."""
        self._write({"event": "clear"}, to_disk=True)

    def restart(self, messages: Sequence[Message]) -> None:
        """The conversation is these messages from here on."""
        # In one piece: a crash between two lines would have taken back what is not there yet.
        self._write({"event": "clear"}, *_events(messages), to_disk=True)

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, *events: Mapping[str, Any], to_disk: bool = False) -> None:
        if self._file is None:
            return
        try:
            _write_all(self._file, b"".join(map(_line, events)))
            if to_disk:
                os.fsync(self._file)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        self.warning = (
            f"the transcript {self.path} cannot be written ({reason}), so what is said from here "
            f"on is not saved; save the conversation to another file."
        )
        self.close()


def write_transcript(path: Path | str, messages: Sequence[Message]) -> None:
    """Write a conversation to a file that appears whole or not at all.

    Raises:
        EdgeError: the file cannot be written.
    """
    lines = b"".join(map(_line, (BEGINNING, *_events(messages))))
    with appears_whole(Path(path)) as partial:
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
        try:
            _write_all(file, lines)
            os.fsync(file)
        finally:
            os.close(file)


def read_transcript(path: Path | str) -> list[Message]:
    """The conversation that a transcript tells, the system prompt first if there is one.

    A last line that is not whole is left out, and an answer without an end was cut off: both
    are what a crash leaves. Any other line that cannot be understood is an error and not
    skipped, since what follows it may be about another conversation than it seems.

    Raises:
        EdgeError: the file is missing, is no transcript, or a line of it makes no sense.
    """
    path = Path(path)
    replayed = _Replay()
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            replayed.take(_event(line, number))
        except ValueError as error:
            if number == 1:
                raise EdgeError(
                    f"{path} is no transcript of a chat ({error}); choose one."
                ) from None
            raise EdgeError(
                f"{path} makes no sense at line {number} ({error}); mend or remove that line, or "
                f"choose another transcript."
            ) from None
    return replayed.messages()


def read_earlier(path: Path) -> list[Message]:
    """What a transcript that is to be continued tells: nothing if there is none yet.

    Raises:
        EdgeError: as for `read_transcript`.
    """
    try:
        is_new = path.stat().st_size == 0
    except OSError:  # `Transcript` says what is wrong, if anything is
        is_new = True
    return [] if is_new else read_transcript(path)


class _Replay:
    """Events in, the conversation that they leave out."""

    def __init__(self) -> None:
        self._system: str | None = None
        self._turns: list[tuple[str, Message]] = []
        self._answer: list[str] | None = None  # pieces of the answer under way
        self._replaces = False

    def take(self, event: Mapping[str, Any]) -> None:
        """One event.

        Raises:
            ValueError: it cannot come here.
        """
        kind = event["event"]
        if kind == "piece":
            self._open().append(_text(event))
            return
        if kind == "end":
            self._open()
            self._end(_flag(event, "cut_off"))
            return
        self._end(cut_off=True)  # if an answer was under way, a crash ended it
        match kind:
            case "system":
                self._system = None if event.get("text") is None else _text(event)
            case "user":
                self._turns.append((_text(event), Message("assistant", "", cut_off=True)))
                self._answer, self._replaces = [], False
            case "regenerate":
                self._last()
                self._answer, self._replaces = [], True
            case "undo":
                self._last()
                self._turns.pop()
            case "clear":
                self._turns.clear()
            case _ if kind != KIND:
                raise ValueError(f"there is no event {str(kind)[:40]!r}")

    def messages(self) -> list[Message]:
        """The conversation."""
        self._end(cut_off=True)
        system = [] if self._system is None else [Message("system", self._system)]
        turns = [m for text, answer in self._turns for m in (Message("user", text), answer)]
        return [*system, *turns]

    def _open(self) -> list[str]:
        if self._answer is None:
            raise ValueError("no answer is under way")
        return self._answer

    def _last(self) -> None:
        if not self._turns:
            raise ValueError("there is no question before it")

    def _end(self, cut_off: bool) -> None:
        pieces, self._answer = self._answer, None
        if pieces is None or (cut_off and self._replaces and not any(pieces)):
            return
        text, answer = self._turns[-1]
        self._turns[-1] = text, replace(answer, content="".join(pieces), cut_off=cut_off)


def _event(line: bytes, number: int) -> dict[str, Any]:
    """One line's event; the first must say what the file is."""
    event = strict_json(line)
    if not isinstance(event, dict) or "event" not in event:
        raise ValueError("it is no event of a transcript")
    begins = event["event"] == KIND
    if begins and event.get("version") != VERSION:
        raise ValueError(f"its version is {str(event.get('version'))[:40]}, not {VERSION}")
    if number == 1 and not begins:
        raise ValueError("a transcript begins otherwise")
    return event


def _events(messages: Iterable[Message]) -> Iterator[dict[str, Any]]:
    system: str | None = None
    for message in messages:
        if message.role == "system":
            system = message.content
    yield {"event": "system", "text": system}
    for message in messages:
        if message.role == "user":
            yield {"event": "user", "text": message.content}
        elif message.role == "assistant":
            yield {"event": "piece", "text": message.content}
            yield {"event": "end", "cut_off": message.cut_off}


def _text(event: Mapping[str, Any]) -> str:
    text = event.get("text")
    if not isinstance(text, str):
        raise ValueError("it has no text")
    return text


def _flag(event: Mapping[str, Any], name: str) -> bool:
    flag = event.get(name)
    if not isinstance(flag, bool):
        raise ValueError(f"{name} is neither true nor false")
    return flag


def _line(event: Mapping[str, Any]) -> bytes:
    # Half a surrogate pair, which a terminal can deliver, becomes a question mark.
    return json.dumps(event, ensure_ascii=False).encode(errors="replace") + b"\n"


def _write_all(file: int, data: bytes) -> None:
    while data:  # a disk that is nearly full takes part of it first
        data = data[os.write(file, data) :]


def _open_to_append(path: Path) -> int:
    """A descriptor at the end of a transcript, whose beginning is written if it is new.

    Raises:
        EdgeError: the file is there and is something else.
        OSError: it cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not blocking: a pipe that nobody reads would keep us waiting.
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, MODE)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise EdgeError("it is no file")
        if found.st_size == 0:
            _write_all(file, _line(BEGINNING))
        else:
            _check_beginning(path)
            os.ftruncate(file, _whole_bytes(path))
        return file
    except BaseException:
        os.close(file)
        raise


def _check_beginning(path: Path) -> None:
    with path.open("rb") as opened:
        line = opened.readline(len(_line(BEGINNING)))
    if line != _line(BEGINNING):
        raise EdgeError("it holds something else")


def _whole_bytes(path: Path) -> int:
    """How many bytes the whole lines of a file are; what follows cannot be read by anybody."""
    with path.open("rb") as opened:
        return sum(len(line) for line in opened if line.endswith(b"\n"))


def _whole_lines(path: Path) -> list[bytes]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise EdgeError(f"{path} is a folder, pipe or device; choose a transcript.")
        with path.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise EdgeError(
            f"{path} cannot be read ({error.strerror or error}); choose a transcript that can."
        ) from None
    if len(data) > MAX_BYTES:
        raise EdgeError(f"{path} is larger than {MAX_BYTES // 10**6} MB; choose a transcript.")
    *lines, _torn = data.split(b"\n")
    if not lines:
        raise EdgeError(f"{path} is no transcript of a chat; choose one.")
    return lines
