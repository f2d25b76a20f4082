"""A chat session: the model, the conversation, its settings and its output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from edge.chat.screen import Screen, echo_off
from edge.chat.turn import (
    JsonPrinter,
    Printer,
    ScreenPrinter,
    StdoutPrinter,
    Turn,
    counted,
    run_turn,
    status_line,
)
from edge.device.memory import wired
from edge.errors import EdgeError
from edge.generate.chat_prompt import ChatPrompt, GeneratedIds, can_chat
from edge.generate.conversation import Conversation, Events
from edge.generate.sampling import Sampling
from edge.generate.speculate import PromptLookup
from edge.generate.stream import encode_beginning
from edge.generate.transcript import Message, Transcript
from edge.model.stablelm import Model
from edge.power.meter import Meter

if TYPE_CHECKING:
    from edge.generate.fim import Completer

INTERRUPTED = 130
NO_SYSTEM = "a base model takes no system prompt; begin your text with it."


@dataclass(frozen=True)
class Opened:
    """A loaded model; `note` is shown to the user."""

    name: str
    model: Model
    tokenizer: Any
    running_bytes: int = 0
    note: str | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of answers as in the options of `edge chat`; max_tokens None has no limit."""

    sampling: Sampling
    max_tokens: int | None = None
    system: str | None = None
    kv_bits: int | None = None
    lookup: bool = False


class PlainText(ChatPrompt):
    """The prompt of a base model: only the last text of a conversation, without a template."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def ids(
        self,
        messages: Sequence[Message],
        generated: Mapping[int, GeneratedIds] | None = None,
        answer: bool = True,
    ) -> list[int]:
        """The ids of the user's last text and of its continuation."""
        last = max(place for place, message in enumerate(messages) if message.role == "user")
        ids = encode_beginning(self._tokenizer, messages[last].content)
        return [*ids, *(generated or {}).get(last + 1, GeneratedIds()).ids]

    def check_system(self) -> None:
        """Refuses a system prompt."""
        raise EdgeError(NO_SYSTEM)


class Continuation(Conversation):
    """A conversation with a base model: texts of the user and their continuations."""

    _prompt_class = PlainText
    dropped_turns = 0

    def restore(self, messages: Sequence[Message]) -> None:
        """Replaces the conversation with these messages, without their system prompt."""
        super().restore([message for message in messages if message.role != "system"])


@dataclass
class Session:
    """A chat session; files in `attached` (text by name) are sent with the next message."""

    opened: Opened
    settings: Settings
    screen: Screen
    meter: Meter
    open_model: Callable[[str], Opened]
    transcript: Transcript = field(default_factory=Transcript)
    attached: dict[str, str] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    completer: Completer | None = None

    def __post_init__(self) -> None:
        self.talk = self._open_talk(self.opened, self.transcript.messages)
        self._resident = contextlib.ExitStack()
        self._keep_resident()

    def close(self) -> None:
        """Ends keeping the model's memory resident."""
        self._resident.close()

    @property
    def answers(self) -> bool:
        """False for a base model, which only continues text."""
        return not isinstance(self.talk, Continuation)

    def switch(self, opened: Opened) -> None:
        """Continues the conversation with another model."""
        if self.answers:
            self.settings = replace(self.settings, system=self.talk.system)
        talk = self._open_talk(opened, self.talk.messages)
        self.opened, self.talk, self.completer = opened, talk, None
        self._keep_resident()

    def begin(self, prefix: str = "") -> None:
        """Prints the notes on a base model and on a transcript that is continued."""
        self.introduce(prefix)
        if self.transcript.messages:
            messages = counted(len(self.transcript.messages), "message")
            self.screen.note(f"going on with the {messages} of {self.transcript.path}")

    def introduce(self, prefix: str = "") -> None:
        """Prints the notes on a base model."""
        if self.answers:
            return
        self.screen.note(
            f"{prefix}{self.opened.name} is a base model without a chat template, so it continues "
            f"what you type instead of answering it."
        )
        if self.settings.system:
            self.screen.say(
                f"{prefix}a base model takes no system prompt, so yours is left out; begin your "
                f"text with it."
            )

    def ask(self, text: str, printer: Printer | None = None) -> None:
        """Sends a message with the attached files before it, and prints the answer."""
        text = "\n\n".join([*self.attached.values(), text])
        events = self.talk.ask(text, **self._options())
        self.attached.clear()
        self.record(Message("user", text))
        self._answer(events, printer)

    def regenerate(self) -> None:
        """Prints another answer to the last message."""
        self._answer(self.talk.regenerate(**self._options()))

    def record(self, *under_way: Message) -> None:
        """Writes the conversation to the transcript, with a question that is being answered."""
        warning = self.transcript.record([*self.talk.messages, *under_way])
        if warning is not None:
            self.screen.say(warning)

    def _options(self) -> dict[str, Any]:
        return {"sampling": self.settings.sampling, "max_tokens": self.settings.max_tokens}

    def _answer(self, events: Events, printer: Printer | None = None) -> None:
        with echo_off() if printer is None else contextlib.nullcontext():
            turn = run_turn(events, self.meter, printer or ScreenPrinter(self.screen))
        self.turns.append(turn)
        memory_bytes = mx.get_active_memory()
        self.screen.note(status_line(turn, memory_bytes, self.talk, self.settings.max_tokens))

    def _open_talk(self, opened: Opened, earlier: Sequence[Message]) -> Conversation:
        draft = PromptLookup() if self.settings.lookup else None
        answers = can_chat(opened.tokenizer)
        talk = (Conversation if answers else Continuation)(
            opened.model, opened.tokenizer, kv_bits=self.settings.kv_bits, draft=draft
        )
        talk.restore(earlier)
        if answers and self.settings.system:
            talk.system = self.settings.system
        return talk

    def _keep_resident(self) -> None:
        self._resident.close()
        self._resident.enter_context(wired(self.opened.running_bytes))


def answer_once(session: Session, text: str, output: str = "text") -> int:
    """Prints one answer as "text" or "json"; returns the exit code, 130 after Ctrl-C."""
    session.begin("edge chat: ")
    printer = JsonPrinter(session.opened.name) if output == "json" else StdoutPrinter()
    try:
        session.ask(text, printer)
    finally:
        session.record()
    return INTERRUPTED if session.turns[-1].finish == "interrupted" else 0
