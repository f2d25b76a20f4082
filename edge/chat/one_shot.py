"""One answer for a script: plain text on stdout and nothing else there, figures on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict

import mlx.core as mx

from edge.chat.base_model import Continuation
from edge.chat.session import (
    NO_SYSTEM_NOTICE,
    Opened,
    Settings,
    going_on_notice,
    no_turns_notice,
    open_talk,
)
from edge.chat.status import TurnClock, status_line
from edge.chat.terminal import Sanitiser, Screen, StopKey
from edge.generate.conversation import Events
from edge.generate.transcript import Message, Transcript
from edge.power.meter import Meter
from edge.stdout import check_stdout, write_stdout

INTERRUPTED = 130


def answer_once(
    opened: Opened,
    settings: Settings,
    text: str,
    *,
    meter: Meter,
    transcript: Transcript,
    output: str = "text",
    quiet: bool = False,
) -> int:
    """Print the answer to a text.

    Args:
        opened: the model.
        settings: how to answer.
        text: the message, or for a base model the text to continue.
        meter: measures the answer, if it can.
        transcript: where it is written down; what it tells already is gone on with.
        output: "text", as it comes, or "json", one document at the end.
        quiet: print nothing on stderr.

    Returns:
        The exit code: 0, or 130 after Ctrl-C, when what came was printed.
    """
    check_stdout()
    talk = open_talk(opened, settings, transcript.messages)
    errors = Screen(sys.stderr)
    if isinstance(talk, Continuation):
        _warn_of_base(errors, opened.name, settings.system, quiet)
    if transcript.messages and not quiet:
        errors.note(going_on_notice(transcript))
    events = talk.ask(text, sampling=settings.sampling, max_tokens=settings.max_tokens)
    warning = transcript.record([*talk.messages, Message("user", text)])
    meter.start()
    clock = TurnClock()
    try:
        came = _follow(events, clock, _ignore if output == "json" else _printer())
    finally:
        samples = meter.stop()
        warning = transcript.record(talk.messages) or warning
    turn = clock.turn(tuple(samples))
    if output == "json":
        document = {"text": came, "model": opened.name, **asdict(turn)}
        write_stdout(json.dumps(document, indent=2) + "\n")
    elif not came.endswith("\n"):
        write_stdout("\n")
    if not quiet:
        errors.note(
            status_line(
                turn,
                mx.get_active_memory(),
                talk.context_tokens,
                talk.context_limit,
                max_tokens=settings.max_tokens,
            )
        )
    if warning is not None:
        errors.say(warning)
    return INTERRUPTED if turn.finish == "interrupted" else 0


def _warn_of_base(errors: Screen, name: str, system: str | None, quiet: bool) -> None:
    """What a base model does, and what of the wishes it cannot: that is said in any case."""
    if not quiet:
        errors.say(f"edge chat: {no_turns_notice(name)}")
    if system:
        errors.say(f"edge chat: {NO_SYSTEM_NOTICE}")


def _follow(events: Events, clock: TurnClock, show: Callable[[str], None]) -> str:
    """The text until it ends or Ctrl-C."""
    came = ""
    with contextlib.suppress(KeyboardInterrupt), StopKey() as stop, contextlib.closing(events):
        for event in events:
            stop.begun = True
            clock.take(event)
            came += event.text
            show(event.text)
            if stop.pressed and event.finish is None:
                break
    return came


def _ignore(_: str) -> None:
    """The text is printed at the end."""


def _printer() -> Callable[[str], None]:
    """Text as it is, but for a terminal, which would act on some of it."""
    if not sys.stdout.isatty():
        return write_stdout
    sanitiser = Sanitiser()
    return lambda piece: write_stdout(sanitiser.add(piece))
