"""One answer: printed while it is generated, measured, and summed up in a status line."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from edge.chat.screen import Highlighter, Sanitiser, Screen, follow
from edge.generate.conversation import Conversation, Events
from edge.generate.stream import TextEvent, TokenClock
from edge.power.meter import Meter, Sample, integrate
from edge.stdout import write_stdout

# Least share of an answer that the meter must cover for joules per token.
LEAST_COVERAGE = 0.95


@dataclass(frozen=True)
class Turn:
    """Figures of one answer; times as in `Stats`, energy None where the meter did not cover it."""

    tokens: int
    finish: str
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
        self._sanitiser = Sanitiser()
        self._highlighter = Highlighter() if screen.colour else None

    def add(self, text: str) -> None:
        """Prints what can be shown now."""
        self._write(self._sanitiser.add(text))

    def finish(self, turn: Turn) -> None:
        """Prints what was held back."""
        self._write(self._sanitiser.finish())
        if self._highlighter is not None:
            self._screen.write(self._highlighter.finish())

    def _write(self, text: str) -> None:
        self._screen.write(text if self._highlighter is None else self._highlighter.add(text))


class StdoutPrinter:
    """Prints an answer on stdout, unchanged unless it is a terminal."""

    def __init__(self) -> None:
        self._sanitiser = Sanitiser() if sys.stdout.isatty() else None
        self._last = ""

    def add(self, text: str) -> None:
        """Prints a piece of text."""
        self._last = text or self._last
        write_stdout(self._sanitiser.add(text) if self._sanitiser else text)

    def finish(self, turn: Turn) -> None:
        """Ends the last line."""
        if not self._last.endswith("\n"):
            write_stdout("\n")


class JsonPrinter:
    """Prints an answer and its figures as one JSON document on stdout."""

    def __init__(self, model: str):
        self._model, self._text = model, ""

    def add(self, text: str) -> None:
        """Collects a piece of text."""
        self._text += text

    def finish(self, turn: Turn) -> None:
        """Prints the document."""
        document = {"text": self._text, "model": self._model, **asdict(turn)}
        write_stdout(json.dumps(document, indent=2) + "\n")


Printer = ScreenPrinter | StdoutPrinter | JsonPrinter


def run_turn(events: Events, meter: Meter, printer: Printer) -> Turn:
    """Prints an answer until it ends or Ctrl-C is pressed."""
    meter.start()
    clock, seen = TokenClock(), list[TextEvent]()

    def take(event: TextEvent) -> None:
        if event.ids:
            clock.count(len(event.ids))
        seen.append(event)
        printer.add(event.text)

    try:
        follow(events, take)
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
        tokens=clock.tokens,
        finish=(last and last.finish) or "interrupted",
        prompt_tokens=None if stats is None else stats.prompt_tokens,
        ttft_s=clock.ttft_s,
        decode_tok_s=clock.decode_tok_s,
        power_w=power_w,
        joules_per_token=joules_per_token,
        empty=not any(event.text.strip() for event in events),
    )


def status_line(turn: Turn, memory_bytes: int, talk: Conversation, max_tokens: int | None) -> str:
    """The figures of an answer in one line."""
    reached = max_tokens is not None and turn.tokens >= max_tokens
    cut = {
        "interrupted": "stopped by you",
        "length": f"cut at {'max_tokens' if reached else 'the end of the context'}",
    }
    parts = [
        counted(turn.tokens, "token"),
        turn.decode_tok_s is not None and f"{turn.decode_tok_s:.1f} tok/s",
        turn.ttft_s is not None and f"first after {turn.ttft_s:.2f} s",
        size(memory_bytes),
        f"context {talk.context_tokens}/{talk.context_limit}",
        talk.dropped_turns > 0 and f"{counted(talk.dropped_turns, 'early turn')} left out",
        turn.power_w is not None and f"{turn.power_w:.1f} W",
        turn.joules_per_token is not None and f"{turn.joules_per_token:.2f} J/token",
        turn.empty and "the answer is empty",
        cut.get(turn.finish, ""),
    ]
    return " · ".join(part for part in parts if part)


def counted(number: int, thing: str) -> str:
    """A number with its noun, such as "2 tokens"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def size(count_bytes: float) -> str:
    """Bytes in MB or GB (powers of ten)."""
    return f"{count_bytes / 1e6:.0f} MB" if count_bytes < 1e9 else f"{count_bytes / 1e9:.2f} GB"
