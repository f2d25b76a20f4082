"""One answer: printed as it comes, measured, and summed up in one line."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from edge.chat.highlight import Highlighter
from edge.chat.screen import Sanitiser, Screen, follow
from edge.generate.conversation import Conversation, Events
from edge.generate.stream import TextEvent, TokenClock
from edge.power.meter import Meter, Sample, integrate
from edge.stdout import write_stdout

# Joules per token of a turn that the meter saw less of would be a guess.
COVERED = 0.95


@dataclass(frozen=True)
class Turn:
    """One answer's figures as in `Stats`, and its energy where the meter covered the turn."""

    tokens: int
    finish: str
    prompt_tokens: int | None
    ttft_s: float | None
    decode_tok_s: float | None
    power_w: float | None = None
    joules_per_token: float | None = None
    empty: bool = False


class TurnClock(TokenClock):
    """Counts and times the events of one answer, also of one that is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self._empty = True
        self._last: TextEvent | None = None

    def take(self, event: TextEvent) -> None:
        """Counts an event."""
        self._last = event
        self._empty = self._empty and not event.text.strip()
        if event.ids:
            self.count(len(event.ids))

    def turn(self, samples: Sequence[Sample] = ()) -> Turn:
        """The figures, with the energy of the meter's samples."""
        stats = None if self._last is None else self._last.stats
        finish = (self._last and self._last.finish) or "interrupted"
        prompt_tokens = None if stats is None else stats.prompt_tokens
        figures = (self.tokens, finish, prompt_tokens, self.ttft_s, self.decode_tok_s)
        power_w, joules_per_token = self._energy(samples)
        return Turn(*figures, power_w, joules_per_token, self._empty)

    def _energy(self, samples: Sequence[Sample]) -> tuple[float | None, float | None]:
        if not samples or self.last_ns <= self.begin_ns:
            return None, None
        energy = integrate(samples, self.begin_ns, self.last_ns)
        covered_s = energy.coverage * (self.last_ns - self.begin_ns) / 1e9
        if not covered_s:
            return None, None
        whole = energy.coverage >= COVERED and self.tokens > 0
        return energy.total_j / covered_s, energy.total_j / self.tokens if whole else None


class ScreenPrinter:
    """Prints an answer on the screen, with colours for code."""

    def __init__(self, screen: Screen):
        self._screen = screen
        self._sanitiser, self._colours = Sanitiser(), Highlighter(screen.colour)

    def add(self, text: str) -> None:
        """Prints what can be shown now."""
        self._screen.write(self._colours.add(self._sanitiser.add(text)))

    def finish(self, turn: Turn) -> None:
        """Prints what was held back."""
        rest = self._colours.add(self._sanitiser.finish())
        self._screen.write(rest + self._colours.finish())


class StdoutPrinter:
    """Prints an answer on stdout as it is, but for a terminal, which would act on some of it."""

    def __init__(self) -> None:
        self._sanitiser = Sanitiser() if sys.stdout.isatty() else None
        self._last = ""

    def add(self, text: str) -> None:
        """Prints a piece."""
        self._last = text or self._last
        write_stdout(self._sanitiser.add(text) if self._sanitiser else text)

    def finish(self, turn: Turn) -> None:
        """Ends the last line."""
        if not self._last.endswith("\n"):
            write_stdout("\n")


class JsonPrinter:
    """Prints an answer with its figures as one JSON document on stdout."""

    def __init__(self, model: str):
        self._model, self._text = model, ""

    def add(self, text: str) -> None:
        """Keeps a piece."""
        self._text += text

    def finish(self, turn: Turn) -> None:
        """Prints the document."""
        document = {"text": self._text, "model": self._model, **asdict(turn)}
        write_stdout(json.dumps(document, indent=2) + "\n")


Printer = ScreenPrinter | StdoutPrinter | JsonPrinter


def run_turn(events: Events, meter: Meter, printer: Printer) -> Turn:
    """Prints an answer until it ends or Ctrl-C is pressed."""
    meter.start()
    clock = TurnClock()

    def take(event: TextEvent) -> None:
        clock.take(event)
        printer.add(event.text)

    try:
        follow(events, take)
    finally:
        samples = meter.stop()
    turn = clock.turn(samples)
    printer.finish(turn)
    return turn


def status_line(turn: Turn, memory_bytes: int, talk: Conversation, max_tokens: int | None) -> str:
    """The line under an answer."""
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
    """A number of things."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def size(count_bytes: float) -> str:
    """A number of bytes in MB or GB, powers of ten."""
    return f"{count_bytes / 1e6:.0f} MB" if count_bytes < 1e9 else f"{count_bytes / 1e9:.2f} GB"
