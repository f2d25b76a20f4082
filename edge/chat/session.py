"""A model, the conversation with it and what is printed: for the loop, and for one answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from edge.chat.base_model import Continuation
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
from edge.generate.chat_prompt import can_chat
from edge.generate.conversation import Conversation, Events
from edge.generate.lookup import PromptLookup
from edge.generate.sampling import Sampling
from edge.generate.transcript import Message, Transcript
from edge.power.meter import Meter

if TYPE_CHECKING:
    from edge.generate.fim import Completer
    from edge.model.stablelm import Model

INTERRUPTED = 130


@dataclass(frozen=True)
class Opened:
    """A model that was loaded.

    Attributes:
        name: to show for it.
        running_bytes: what it takes while it runs, and should stay resident.
        note: what the user should know of it.
    """

    name: str
    model: Model
    tokenizer: Any
    running_bytes: int = 0
    note: str | None = None


@dataclass(frozen=True)
class Settings:
    """How to answer.

    Attributes:
        sampling: how tokens are chosen.
        max_tokens: of one answer; None goes on to the end of the context.
        system: the system prompt.
        kv_bits: 4 or 8 for a quantised cache.
        lookup: propose tokens that followed the same words earlier.
    """

    sampling: Sampling
    max_tokens: int | None = None
    system: str | None = None
    kv_bits: int | None = None
    lookup: bool = False


@dataclass
class Totals:
    """Sums over the session."""

    turns: int = 0
    tokens: int = 0
    decode_s: float = 0.0
    decoded_tokens: int = 0
    joules: float = 0.0

    def add(self, turn: Turn) -> None:
        """Counts a turn."""
        self.turns += 1
        self.tokens += turn.tokens
        if turn.decode_tok_s:
            self.decoded_tokens += turn.tokens - 1
            self.decode_s += (turn.tokens - 1) / turn.decode_tok_s
        if turn.joules_per_token is not None:
            self.joules += turn.joules_per_token * turn.tokens


@dataclass
class Session:
    """One sitting with a model.

    Attributes:
        open_model: from MODEL as on the command line to a loaded one.
        transcript: where everything said is written down; what it tells already is gone on with.
        attached: files that go with the next message, by name.
        last: the figures of the last answer.
    """

    opened: Opened
    settings: Settings
    screen: Screen
    meter: Meter
    open_model: Callable[[str], Opened]
    transcript: Transcript = field(default_factory=Transcript)
    attached: dict[str, str] = field(default_factory=dict)
    last: Turn | None = None
    totals: Totals = field(default_factory=Totals)
    completer: Completer | None = None

    def __post_init__(self) -> None:
        self.talk = self._open_talk(self.opened, self.transcript.messages)
        self._resident = contextlib.ExitStack()
        self._keep_resident()

    def close(self) -> None:
        """Gives back what was kept resident, and closes the transcript."""
        self._resident.close()
        self.transcript.close()

    @property
    def answers(self) -> bool:
        """The model has turns; others only continue a text."""
        return not isinstance(self.talk, Continuation)

    def switch(self, opened: Opened) -> None:
        """Goes on with another model."""
        if self.answers:
            self.settings = replace(self.settings, system=self.talk.system)
        talk = self._open_talk(opened, self.talk.messages)
        self.opened, self.talk, self.completer = opened, talk, None
        self._keep_resident()

    def introduce(self, prefix: str = "") -> None:
        """Says what the user should know of a model without turns."""
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

    def introduce_transcript(self) -> None:
        """Says that there is something to go on with."""
        if self.transcript.messages:
            messages = counted(len(self.transcript.messages), "message")
            self.screen.note(f"going on with the {messages} of {self.transcript.path}")

    def ask(self, text: str, printer: Printer | None = None) -> None:
        """Prints the answer to a message as it comes, with the attached files before it."""
        text = "\n\n".join([*self.attached.values(), text])
        events = self.talk.ask(text, **self._options())
        self.attached.clear()
        self.record(Message("user", text))
        self._answer(events, printer)

    def regenerate(self) -> None:
        """Prints another answer to the last message."""
        self._answer(self.talk.regenerate(**self._options()))

    def record(self, *under_way: Message) -> None:
        """Writes down what was said, and the question whose answer is under way."""
        warning = self.transcript.record([*self.talk.messages, *under_way])
        if warning is not None:
            self.screen.say(warning)

    def _options(self) -> dict[str, Any]:
        return {"sampling": self.settings.sampling, "max_tokens": self.settings.max_tokens}

    def _answer(self, events: Events, printer: Printer | None = None) -> None:
        """Prints an answer, by default on the screen, and the line under it."""
        with echo_off() if printer is None else contextlib.nullcontext():
            self.last = run_turn(events, self.meter, printer or ScreenPrinter(self.screen))
        self.totals.add(self.last)
        self.screen.note(
            status_line(
                self.last,
                mx.get_active_memory(),
                self.talk.context_tokens,
                self.talk.context_limit,
                self.talk.dropped_turns,
                self.settings.max_tokens,
            )
        )

    def _open_talk(self, opened: Opened, earlier: Sequence[Message]) -> Conversation:
        """A conversation, or for a model without turns the continuation of texts.

        A system prompt that was given replaces the one of the earlier messages.
        """
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
    """Prints one answer for a script: on stdout nothing else, figures on the session's screen.

    Args:
        session: whose screen is not stdout.
        text: the message, or for a base model the text to continue.
        output: "text", as it comes, or "json", one document at the end.

    Returns:
        The exit code: 0, or 130 after Ctrl-C, when what came was printed.
    """
    session.introduce("edge chat: ")
    session.introduce_transcript()
    as_json = output == "json"
    try:
        session.ask(text, JsonPrinter(session.opened.name) if as_json else StdoutPrinter())
    finally:
        session.record()
    return INTERRUPTED if session.last and session.last.finish == "interrupted" else 0
