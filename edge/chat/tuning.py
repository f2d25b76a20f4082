"""The commands that change how the model answers, and the one that fills a hole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edge.chat.screen import Sanitiser, Screen
from edge.chat.session import Session
from edge.chat.status import counted
from edge.chat.terminal import StopKey, keys_unseen
from edge.errors import EdgeError

if TYPE_CHECKING:
    from edge.generate.fim import Completion, MiddleEvent

NAMES: dict[str, Callable[[str], float]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "seed": int,
    "max_tokens": int,
}
# Those that can be without a value.
OPTIONAL = ("repetition_penalty", "seed", "max_tokens")
OFF = "off"


def set_(session: Session, argument: str) -> None:
    """/set, or /set NAME VALUE; NAME=VALUE is as good."""
    if not argument:
        for name in NAMES:
            session.screen.say(f"  {name:<20}{_shown(_value(session, name))}")
        return
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    name, text = name.lower().replace("-", "_"), text.strip()
    if name not in NAMES:
        raise EdgeError(f"there is no {name!r} to set; choose one of {', '.join(NAMES)}.")
    if text:
        _set(session, name, _parsed(name, text))
    session.screen.note(f"{name} is {_shown(_value(session, name))}")


def _parsed(name: str, text: str) -> float | None:
    if name in OPTIONAL and text.lower() in (OFF, "none"):
        return None
    try:
        return NAMES[name](text)
    except ValueError:
        kind = "whole number" if NAMES[name] is int else "number"
        off = f" or {OFF}" if name in OPTIONAL else ""
        raise EdgeError(f"{name} takes a {kind}{off}, not {text!r}.") from None


def _set(session: Session, name: str, value: float | None) -> None:
    if name != "max_tokens":
        changed: dict[str, Any] = {name: value}
        sampling = replace(session.settings.sampling, **changed)
        session.settings = replace(session.settings, sampling=sampling)
        return
    if value is not None and value < 1:
        raise EdgeError(f"max_tokens is {value}; choose 1 or more, or {OFF}.")
    session.settings = replace(session.settings, max_tokens=None if value is None else int(value))


def _value(session: Session, name: str) -> object:
    if name == "max_tokens":
        return session.settings.max_tokens
    return getattr(session.settings.sampling, name)


def _shown(value: object) -> str:
    return OFF if value is None else str(value)


def fim(session: Session, argument: str) -> None:
    """/fim PREFIX<CURSOR>SUFFIX, or /fim FILE:LINE[:COL]: print the middle as it comes."""
    from edge.generate.fim import Completer

    if not argument:
        raise EdgeError("/fim needs PREFIX<CURSOR>SUFFIX or FILE:LINE[:COL].")
    prefix, suffix = session.tools.find_hole(argument)
    if session.completer is None:
        opened, kv_bits = session.opened, session.settings.kv_bits
        session.completer = Completer(opened.model, opened.tokenizer, kv_bits)
    done = _print_middle(session.screen, session.completer.stream(prefix, suffix))
    if done is None:
        session.screen.note("stopped by you")
        return
    rate = "" if done.decode_tok_s is None else f" · {done.decode_tok_s:.1f} tok/s"
    session.screen.note(
        f"{counted(done.generated_tokens, 'token')}{rate} · first after {done.ttft_s:.2f} s · "
        f"ended by {done.stopped_by}"
    )


def _print_middle(screen: Screen, events: Generator[MiddleEvent, None, None]) -> Completion | None:
    """Until it ends, or until Ctrl-C: then None, and what came stays on the screen."""
    sanitiser, done = Sanitiser(), None
    interrupts = contextlib.suppress(KeyboardInterrupt)
    with keys_unseen(), interrupts, StopKey() as stop, contextlib.closing(events):
        for event in events:
            stop.begun = True
            screen.write(sanitiser.add(event.text))
            done = event.completion
            if stop.pressed:
                break
    screen.write(sanitiser.finish())
    return done
