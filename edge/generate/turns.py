"""Questions and answers, and what messages they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.errors import EdgeError
from edge.generate.chatml import Said
from edge.generate.stream import TextEvent
from edge.generate.transcript import Message


@dataclass(frozen=True)
class Turn:
    """A question and its answer, None before there is one."""

    question: str
    answer: Message | None = None
    said: Said = field(default_factory=Said)


class Answer:
    """What came of an answer."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self.cut_off = True

    def add(self, event: TextEvent) -> None:
        """One more event."""
        self._pieces.append(event.text)
        # A stop token is the template's to write.
        self._ids += event.ids[:-1] if event.finish == "stop token" else event.ids
        self.cut_off = event.finish in (None, "length")

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._pieces)

    def said(self) -> Said:
        """Its ids."""
        return Said.of(self._tokenizer, self._ids, self.text)


def messages_of(system: str | None, turns: Sequence[Turn]) -> Iterator[Message]:
    """The messages of turns, the system prompt first if there is one."""
    if system is not None:
        yield Message("system", system)
    for turn in turns:
        yield Message("user", turn.question)
        if turn.answer is not None:
            yield turn.answer


def turns_of(messages: Sequence[Message]) -> tuple[str | None, tuple[Turn, ...]]:
    """Messages as a system prompt, or None, and turns.

    Raises:
        EdgeError: questions and answers do not take turns.
    """
    has_system = bool(messages) and messages[0].role == "system"
    rest = messages[1:] if has_system else messages
    for place, message in enumerate(rest):
        wanted = ("user", "assistant")[place % 2]
        if message.role != wanted:
            raise EdgeError(
                f"message {place + 1 + has_system} is the {message.role}'s where the {wanted}'s "
                f"turn is; choose a conversation in which they take turns."
            )
        check_text(message.content, "message")
    questions, answers = list(rest[::2]), list(rest[1::2])
    if len(answers) < len(questions):
        answers.append(Message("assistant", "", cut_off=True))
    pairs = zip(questions, answers, strict=True)
    turns = tuple(Turn(question.content, answer) for question, answer in pairs)
    return (messages[0].content or None if has_system else None), turns


def check_text(text: str, what: str) -> None:
    """Refuse half characters, which no tokenizer encodes.

    Raises:
        EdgeError: there is one.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise EdgeError(f"the {what} is no UTF-8; check the encoding of where it comes from.")
