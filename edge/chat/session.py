"""A chat session: the model, the conversation, its settings, and how answers are printed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edge.chat.screen import Highlighter, Screen, echo_off, follow
from edge.device.memory import wired
from edge.generate.conversation import Conversation, Events
from edge.generate.decode import LlamaSource
from edge.generate.sampling import Sampling
from edge.generate.speculate import PromptLookup
from edge.generate.stream import TextEvent, TokenClock
from edge.generate.transcript import Message, Transcript
from edge.model.stablelm import Model
from edge.power.meter import Meter, Sample, integrate
from edge.stdout import TerminalText, write_stdout

if TYPE_CHECKING:
    from edge.generate.fim import Completer
from edge.text import size

INTERRUPTED = 130
# Least share of an answer that the meter must cover for joules per token.
LEAST_COVERAGE = 0.95


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model; `note` is shown to the user."""

    name: str
    model: Model | LlamaSource
    tokenizer: Any
    running_bytes: int = 0  # of MLX's buffers
    note: str | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of answers as in the options of `edge chat`; max_tokens None has no limit."""

    sampling: Sampling
    max_tokens: int | None = None
    system: str | None = None
    kv_bits: int | None = None
    lookup: bool = False


@dataclass(frozen=True)
class Turn:
    """Figures of one answer; times as in `Stats`, energy None where the meter did not cover it."""

    generated_tokens: int
    stopped_by: str
    prompt_tokens: int | None
    ttft_s: float | None
    decode_tok_s: float | None
    power_w: float | None = None
    joules_per_token: float | None = None
    empty: bool = False


class ScreenPrinter:
    """Prints an answer on the screen, with colours for code."""

    def __init__(self, screen: Screen):
        self._screen = screen
        self._pieces = TerminalText()
        self._highlighter = Highlighter() if screen.colour else None

    def add(self, text: str) -> None:
        text = self._pieces.add(text)
        self._screen.write(text if self._highlighter is None else self._highlighter.add(text))

    def finish(self, turn: Turn) -> None:
        if self._highlighter is not None:
            self._screen.write(self._highlighter.finish())


class StdoutPrinter:
    """Prints an answer on stdout."""

    def __init__(self) -> None:
        self._last = ""

    def add(self, text: str) -> None:
        self._last = text or self._last
        write_stdout(text)

    def finish(self, turn: Turn) -> None:
        if not self._last.endswith("\n"):
            write_stdout("\n")


class JsonPrinter:
    """Prints an answer and its figures as one JSON document on stdout."""

    def __init__(self, model: str):
        self._model, self._text = model, ""

    def add(self, text: str) -> None:
        self._text += text

    def finish(self, turn: Turn) -> None:
        document = {"text": self._text, "model": self._model, **asdict(turn)}
        write_stdout(json.dumps(document, indent=2) + "\n")


Printer = ScreenPrinter | StdoutPrinter | JsonPrinter


@dataclass
class Session:
    """A chat session; files in `attached` (text by name) are sent with the next message."""

    opened: LoadedModel
    settings: Settings
    screen: Screen
    meter: Meter
    open_model: Callable[[str], LoadedModel]
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

    def switch(self, opened: LoadedModel) -> None:
        """Continues the conversation with another model."""
        if not self.talk.is_base:
            self.settings = replace(self.settings, system=self.talk.system)
        talk = self._open_talk(opened, self.talk.messages)
        before = self.opened.model
        self.opened, self.talk, self.completer = opened, talk, None
        if isinstance(before, LlamaSource):
            before.close()
        self._keep_resident()

    def print_notes(self, prefix: str = "") -> None:
        """Prints the notes on a base model and on a transcript that is continued."""
        self.print_base_note(prefix)
        if self.transcript.messages:
            messages = counted(len(self.transcript.messages), "message")
            self.screen.note(f"going on with the {messages} of {self.transcript.path}")

    def print_base_note(self, prefix: str = "") -> None:
        if not self.talk.is_base:
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
        memory_bytes, _ = self.talk.source.memory_bytes
        self.screen.note(status_line(turn, memory_bytes, self.talk, self.settings.max_tokens))

    def _open_talk(self, opened: LoadedModel, earlier: Sequence[Message]) -> Conversation:
        draft = PromptLookup() if self.settings.lookup else None
        kv_bits = self.settings.kv_bits
        talk = Conversation(opened.model, opened.tokenizer, kv_bits=kv_bits, draft=draft)
        talk.restore(earlier)
        if self.settings.system and not talk.is_base:
            talk.system = self.settings.system
        return talk

    def _keep_resident(self) -> None:
        self._resident.close()
        self._resident.enter_context(wired(self.opened.running_bytes))


def answer_once(session: Session, text: str, output: str = "text") -> int:
    """Prints one answer as "text" or "json"; returns the exit code, 130 after Ctrl-C."""
    session.print_notes("edge chat: ")
    printer = JsonPrinter(session.opened.name) if output == "json" else StdoutPrinter()
    try:
        session.ask(text, printer)
    finally:
        session.record()
    return INTERRUPTED if session.turns[-1].stopped_by == "interrupted" else 0


def run_turn(events: Events, meter: Meter, printer: Printer) -> Turn:
    """Prints an answer until it ends or Ctrl-C is pressed."""
    meter.start()
    clock = TokenClock()

    def take(event: TextEvent) -> None:
        if event.ids:
            clock.count(len(event.ids))
        printer.add(event.text)

    try:
        seen = follow(events, take)
    finally:
        samples = meter.stop()
    turn = summarise(clock, seen, samples)
    printer.finish(turn)
    return turn


def summarise(clock: TokenClock, events: Sequence[TextEvent], samples: Sequence[Sample]) -> Turn:
    """The figures of an answer, which may have been interrupted before its last event."""
    last = events[-1] if events else None
    stats = None if last is None else last.stats
    power_w = joules_per_token = None
    if samples and clock.last_ns > clock.begin_ns:
        energy = integrate(samples, clock.begin_ns, clock.last_ns)
        covered_s = energy.coverage * (clock.last_ns - clock.begin_ns) / 1e9
        power_w = energy.total_j / covered_s if covered_s else None
        if energy.coverage >= LEAST_COVERAGE and clock.tokens:
            joules_per_token = energy.total_j / clock.tokens
    return Turn(
        generated_tokens=clock.tokens,
        stopped_by=(last and last.stopped_by) or "interrupted",
        prompt_tokens=None if stats is None else stats.prompt_tokens,
        ttft_s=clock.ttft_s,
        decode_tok_s=clock.decode_tok_s,
        power_w=power_w,
        joules_per_token=joules_per_token,
        empty=not any(event.text.strip() for event in events),
    )


def status_line(turn: Turn, memory_bytes: int, talk: Conversation, max_tokens: int | None) -> str:
    """The figures of an answer in one line."""
    reached = max_tokens is not None and turn.generated_tokens >= max_tokens
    cut = {
        "interrupted": "stopped by you",
        "length": f"cut at {'max_tokens' if reached else 'the end of the context'}",
    }
    parts = [
        counted(turn.generated_tokens, "token"),
        turn.decode_tok_s is not None and f"{turn.decode_tok_s:.1f} tok/s",
        turn.ttft_s is not None and f"first after {turn.ttft_s:.2f} s",
        size(memory_bytes),
        f"context {talk.context_tokens}/{talk.context_limit}",
        talk.dropped_turns > 0 and f"{counted(talk.dropped_turns, 'early turn')} left out",
        turn.power_w is not None and f"{turn.power_w:.1f} W",
        turn.joules_per_token is not None and f"{turn.joules_per_token:.2f} J/token",
        turn.empty and "the answer is empty",
        cut.get(turn.stopped_by, ""),
    ]
    return " · ".join(part for part in parts if part)


def counted(number: int, thing: str) -> str:
    """A number with its noun, such as "2 tokens"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
