"""What the loop and the commands work on: a model, the talk with it, the screen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from edge.chat.base_model import Continuation
from edge.chat.highlight import Highlighter, Plain
from edge.chat.status import Turn, TurnClock, counted, status_line
from edge.chat.terminal import Sanitiser, Screen, StopKey, keys_unseen
from edge.device.memory import wired
from edge.generate.conversation import Conversation, Events, can_chat
from edge.generate.lookup import PromptLookup
from edge.generate.sampling import Sampling
from edge.generate.transcript import Message, Transcript
from edge.power.meter import Meter

if TYPE_CHECKING:
    from edge.generate.fim import Completer
    from edge.model.stablelm import Model


@dataclass(frozen=True)
class Opened:
    """A model that was loaded.

    Attributes:
        name: to show for it.
        running_bytes: what it takes while it runs, and should stay resident.
        remark: what the user should know of it.
    """

    name: str
    model: Model
    tokenizer: Any
    running_bytes: int = 0
    remark: str | None = None


@dataclass(frozen=True)
class Settings:
    """How to answer.

    Attributes:
        sampling: how tokens are chosen.
        max_tokens: of one answer; None goes on to the end of the context.
        system: the system prompt.
        kv_bits: 4 or 8 for a quantised cache.
        lookup: whether tokens that followed the same words earlier are proposed.
    """

    sampling: Sampling
    max_tokens: int | None = None
    system: str | None = None
    kv_bits: int | None = None
    lookup: bool = False


@dataclass(frozen=True)
class Tools:
    """What the commands need from outside.

    Attributes:
        open_model: MODEL as on the command line to a loaded one.
        find_hole: what /fim was given to the text before and after the cursor.
    """

    open_model: Callable[[str], Opened]
    find_hole: Callable[[str], tuple[str, str]]


def open_talk(opened: Opened, settings: Settings, earlier: Sequence[Message]) -> Conversation:
    """A conversation, or for a model without turns the continuation of texts.

    It goes on with earlier messages; a system prompt that was given replaces the one they have.
    """
    draft = PromptLookup() if settings.lookup else None
    answers = can_chat(opened.tokenizer)
    talk = (Conversation if answers else Continuation)(
        opened.model, opened.tokenizer, kv_bits=settings.kv_bits, draft=draft
    )
    talk.restore(earlier)
    if answers and settings.system:
        talk.system = settings.system
    return talk


def going_on_notice(transcript: Transcript) -> str:
    """That the file was there."""
    return f"going on with the {counted(len(transcript.messages), 'message')} of {transcript.path}"


NO_SYSTEM_NOTICE = (
    "a base model takes no system prompt, so yours is left out; begin your text with it."
)


def no_turns_notice(name: str) -> str:
    """Why a base model does not answer."""
    return (
        f"{name} is a base model without a chat template, so it continues what you type instead "
        f"of answering it."
    )


@dataclass
class Totals:
    """Sums over the session."""

    turns: int = 0
    tokens: int = 0
    decode_s: float = 0.0
    decoded_tokens: int = 0
    joules: float = 0.0

    def add(self, turn: Turn) -> None:
        """Count a turn."""
        self.turns += 1
        self.tokens += turn.tokens
        if turn.decode_tok_s:
            self.decoded_tokens += turn.tokens - 1
            self.decode_s += (turn.tokens - 1) / turn.decode_tok_s
        if turn.joules_per_token is not None:
            self.joules += turn.joules_per_token * turn.tokens


@dataclass
class Session:
    """One sitting at the terminal.

    Attributes:
        transcript: where everything said is written down; what it tells already is gone on with.
        attached: files that go with the next message, by name.
        last: the figures of the last answer.
    """

    opened: Opened
    settings: Settings
    tools: Tools
    screen: Screen
    meter: Meter
    transcript: Transcript = field(default_factory=Transcript)
    attached: dict[str, str] = field(default_factory=dict)
    last: Turn | None = None
    totals: Totals = field(default_factory=Totals)
    completer: Completer | None = None

    def __post_init__(self) -> None:
        self.talk = open_talk(self.opened, self.settings, self.transcript.messages)
        self._resident = contextlib.ExitStack()
        self._keep_resident()

    def close(self) -> None:
        """Give back what was kept resident, and close the transcript."""
        self._resident.close()
        self.transcript.close()

    def _keep_resident(self) -> None:
        self._resident.close()
        self._resident.enter_context(wired(self.opened.running_bytes))

    @property
    def answers(self) -> bool:
        """Whether the model has turns, and does not only continue a text."""
        return not isinstance(self.talk, Continuation)

    def switch(self, opened: Opened) -> None:
        """Go on with another model."""
        system = self.talk.system if self.answers else self.settings.system
        settings = replace(self.settings, system=system)
        talk = open_talk(opened, settings, self.talk.messages)
        self.opened, self.settings, self.talk, self.completer = opened, settings, talk, None
        self._keep_resident()

    def say_if_base(self) -> None:
        """What the user should know of a model without turns."""
        if self.answers:
            return
        self.screen.note(no_turns_notice(self.opened.name))
        if self.settings.system:
            self.screen.say(NO_SYSTEM_NOTICE)

    def ask(self, text: str) -> None:
        """Print the answer to a message as it comes, with the attached files before it."""
        text = "\n\n".join([*self.attached.values(), text])
        events = self.talk.ask(
            text, sampling=self.settings.sampling, max_tokens=self.settings.max_tokens
        )
        self.attached.clear()
        self.record(Message("user", text))
        self._answer(events)

    def regenerate(self) -> None:
        """Print another answer to the last message."""
        events = self.talk.regenerate(
            sampling=self.settings.sampling, max_tokens=self.settings.max_tokens
        )
        self._answer(events)

    def _answer(self, events: Events) -> None:
        clock = TurnClock()
        if self.meter.unavailable is None:
            self.meter.start()
            clock = TurnClock()
        try:
            with keys_unseen(), contextlib.closing(events):
                self._print(events, clock)
        finally:
            samples: Sequence[Any] = ()
            if self.meter.unavailable is None:
                samples = self.meter.stop()
        self.last = clock.turn(tuple(samples))
        self.totals.add(self.last)
        self.screen.note(self.status())

    def record(self, *under_way: Message) -> None:
        """Write down what was said, and the question whose answer is under way."""
        warning = self.transcript.record([*self.talk.messages, *under_way])
        if warning is not None:
            self.screen.say(warning)

    def _print(self, events: Events, clock: TurnClock) -> None:
        """Until the text ends or somebody stops it."""
        sanitiser, colours = Sanitiser(), Highlighter() if self.screen.colour else Plain()
        finished = False
        with contextlib.suppress(KeyboardInterrupt), StopKey() as stop:
            for event in events:
                stop.begun = True
                clock.take(event)
                self.screen.write(colours.add(sanitiser.add(event.text)))
                finished = event.finish is not None
                if stop.pressed and not finished:
                    break
        self.screen.write(colours.add(sanitiser.finish()) + colours.finish())

    def status(self) -> str:
        """The line under the last answer."""
        assert self.last is not None
        return status_line(
            self.last,
            mx.get_active_memory(),
            self.talk.context_tokens,
            self.talk.context_limit,
            self.talk.dropped_turns,
            self.settings.max_tokens,
        )

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.opened.tokenizer.encode(text, add_special_tokens=False))
