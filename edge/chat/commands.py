"""The commands of the chat."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.chat.screen import echo_off, follow
from edge.chat.session import Session, counted
from edge.errors import EdgeError
from edge.formats.files import read_text, user_path
from edge.generate import CURSOR
from edge.generate.chat_prompt import NO_SYSTEM
from edge.generate.decode import open_source
from edge.generate.fim import Completer, read_hole, split_at_mark
from edge.generate.transcript import HEADINGS, read_transcript, write_markdown, write_transcript
from edge.stdout import TerminalText
from edge.text import plain, size

# /usr/bin/x is not a command, nor is a comment of C++.
COMMAND = re.compile(r"/([A-Za-z]+|\?)(?=\s|$)")
# The settings of /set.
SETTINGS: dict[str, Callable[[str], float]] = {
    "temperature": float, "top_p": float, "top_k": int, "min_p": float,
    "repetition_penalty": float, "seed": int, "max_tokens": int,
}  # fmt: skip
# Settings that can be turned off.
OPTIONAL = ("repetition_penalty", "seed", "max_tokens")
OFF = "off"
SHORT_CHARACTERS = 60
# Formats of /save by ending.
WRITERS = {".md": write_markdown, ".jsonl": write_transcript}


class Leave(Exception):
    """The user wants to leave."""


@dataclass(frozen=True)
class Command:
    """A command; `handler` gets the text after its name. Arguments in brackets are optional."""

    name: str
    arguments: str
    summary: str
    handler: Callable[[Session, str], None]
    takes_path: bool = False
    takes_lines: bool = False


def split_command(text: str) -> tuple[str, str] | None:
    """Name and argument of a command; None for a message.

    Several lines are a message unless the command takes lines: code may begin like a command.
    """
    found = COMMAND.match(text)
    if found is None:
        return None
    name, argument = found[1].lower(), text[found.end() :].strip()
    if "\n" in text.strip() and not (name in TABLE and TABLE[name].takes_lines):
        return None
    return name, argument


def as_message(text: str) -> str:
    """The message of a text: //word sends /word."""
    return text[1:] if text.startswith("//") and split_command(text[1:]) is not None else text


def run_command(session: Session, name: str, argument: str) -> None:
    """Runs a command; /exit raises Leave."""
    command = TABLE.get(ALIASES.get(name, name))
    if command is None:
        near = difflib.get_close_matches(name, [*TABLE, *ALIASES], n=1, cutoff=0.5)
        hint = f"did you mean /{near[0]}? " if near else ""
        raise EdgeError(
            f"/{name} is not a command; {hint}/help lists them, and //{name} sends it as a message."
        )
    if argument and not command.arguments:
        raise EdgeError(f"/{command.name} takes nothing after it; leave out {argument!r}.")
    if not argument and command.arguments and not command.arguments.startswith("["):
        raise EdgeError(f"/{name} needs {command.arguments}, to {command.summary}.")
    command.handler(session, argument)


def _help(session: Session, _: str) -> None:
    width = max(len(c.name) + len(c.arguments) for c in TABLE.values()) + 4
    for c in TABLE.values():
        session.screen.say(f"  {f'/{c.name} {c.arguments}'.rstrip():<{width}}{c.summary}")
    session.screen.say('  """ begins and ends a text of several lines; Alt-Enter adds a line.')
    session.screen.say("  Ctrl-C stops an answer or clears the line; Ctrl-D leaves.")


def _clear(session: Session, _: str) -> None:
    session.talk.clear()
    session.attached.clear()
    session.screen.note("a new conversation; the system prompt stays, if there is one")


def _undo(session: Session, _: str) -> None:
    taken = session.talk.undo()
    if taken is None:
        raise EdgeError("there is nothing to take back; the conversation is empty.")
    session.screen.note(f"took back: {plain(taken.content, SHORT_CHARACTERS)}")


def _system(session: Session, text: str) -> None:
    if session.talk.is_base:
        raise EdgeError(NO_SYSTEM)
    if not text:
        session.screen.say(session.talk.system or "there is no system prompt; /system TEXT sets it")
        return
    session.talk.system = None if text == OFF else text
    note = "there is no system prompt any more" if text == OFF else "the system prompt is set"
    session.screen.note(f"{note}, from the next message on")


def _model(session: Session, name: str) -> None:
    if not name:
        session.screen.say(session.opened.name)
        return
    session.switch(session.open_model(name))
    kept = counted(len(session.talk.messages), "message")
    session.screen.note(f"now {session.opened.name}; {kept} kept")
    session.print_base_note()


def _stats(session: Session, _: str) -> None:
    talk, turns, meter = session.talk, session.turns, session.meter
    tokens = sum(turn.generated_tokens for turn in turns)
    timed = [(turn.generated_tokens - 1, turn.decode_tok_s) for turn in turns if turn.decode_tok_s]
    decode_s = sum(count / rate for count, rate in timed)
    rate = f"{sum(count for count, _ in timed) / decode_s:.1f} tok/s" if timed else "-"
    joules = sum(turn.generated_tokens * (turn.joules_per_token or 0) for turn in turns)
    unmeasured = "not measured" if meter.source == "none" else meter.unavailable
    context = f"{talk.context_tokens} of {talk.context_limit} tokens"
    memory = "{} now, {} at most".format(*map(size, talk.source.memory_bytes))
    rows = {
        "model": session.opened.name,
        "answers": f"{len(turns)} with {tokens} tokens, {rate} on average",
        "context": f"{context}, {talk.reused_tokens} of the last prompt were cached",
        "left out": f"{talk.dropped_turns} of the oldest turns",
        "memory": f"{memory}, {size(talk.source.cache_bytes)} for the conversation",
        "power": unmeasured if meter.unavailable else f"{joules:.1f} J by {meter.source}",
        "transcript": session.transcript.path or "none",
    }
    for name, value in rows.items():
        session.screen.say(f"  {name:<12}{value}")


def _exit(_session: Session, _: str) -> None:
    raise Leave


def _save(session: Session, name: str) -> None:
    path = user_path(name)
    if not session.talk.messages:
        raise EdgeError("there is nothing to save; the conversation is empty.")
    if not path.parent.is_dir():
        raise EdgeError(f"{path.parent} is not a folder; make it first, or choose another one.")
    if path.suffix not in WRITERS:
        raise EdgeError(
            f"{path} needs an ending: .md for text to read, .jsonl for a file that /load reads."
        )
    if path.exists():
        _check_is_saved(path)
    WRITERS[path.suffix](path, session.talk.messages)
    session.screen.note(f"saved {counted(len(session.talk.messages), 'message')} to {path}")


def _check_is_saved(path: Path) -> None:
    """Raise EdgeError for a file that /save did not write: the name may be mistyped."""
    try:
        if path.suffix == ".md" and read_text(path).startswith(HEADINGS):
            return
        read_transcript(path)
    except EdgeError:
        raise EdgeError(f"{path} exists and is not a saved chat; choose another name.") from None


def _load(session: Session, name: str) -> None:
    path = user_path(name)
    messages = read_transcript(path)
    session.talk.restore(messages)
    session.screen.note(f"loaded {counted(len(messages), 'message')} from {path}")


def _read(session: Session, name: str) -> None:
    if not name:
        waiting = "\n".join(f"  {name}" for name in session.attached)
        session.screen.say(waiting or "no file waits for your next message; /read FILE adds one")
        return
    path = user_path(name)
    block = as_block(path.name, read_text(path))
    tokens = len(session.opened.tokenizer.encode(block, add_special_tokens=False))
    limit = session.talk.context_limit
    if tokens >= limit:
        raise EdgeError(
            f"{path} has {tokens} tokens and the model's context {limit}; read a part of it."
        )
    session.attached[str(path)] = block
    session.screen.note(f"{path}: {tokens} tokens, which go with your next message")


def as_block(name: str, text: str) -> str:
    """A file as Markdown: its name, and its text in a fence longer than any in the text."""
    longest = max(map(len, re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    end = "" if text.endswith("\n") else "\n"
    return f"{name}:\n{fence}{Path(name).suffix[1:]}\n{text}{end}{fence}"


def _set(session: Session, argument: str) -> None:
    """Shows all settings, or changes one by NAME VALUE or NAME=VALUE."""
    settings = session.settings
    if not argument:
        for name in SETTINGS:
            session.screen.say(f"  {name:<20}{_setting(session, name)}")
        return
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    name, text = name.lower().replace("-", "_"), text.strip()
    if name not in SETTINGS:
        raise EdgeError(f"there is no {name!r} to set; choose one of {', '.join(SETTINGS)}.")
    if text:
        changed: dict[str, Any] = {name: _parsed(name, text)}
        if name != "max_tokens":
            changed = {"sampling": replace(settings.sampling, **changed)}
        session.settings = replace(settings, **changed)
    session.screen.note(f"{name} is {_setting(session, name)}")


def _setting(session: Session, name: str) -> str:
    holder = session.settings if name == "max_tokens" else session.settings.sampling
    value = getattr(holder, name)
    return OFF if value is None else str(value)


def _parsed(name: str, text: str) -> float | None:
    if name in OPTIONAL and text.lower() in (OFF, "none"):
        return None
    try:
        value = SETTINGS[name](text)
    except ValueError:
        kind = "whole number" if SETTINGS[name] is int else "number"
        off = f" or {OFF}" if name in OPTIONAL else ""
        raise EdgeError(f"{name} takes a {kind}{off}, not {text!r}.") from None
    if name == "max_tokens" and value < 1:
        raise EdgeError(f"max_tokens is {value}; choose 1 or more, or {OFF}.")
    return value


def _fim(session: Session, argument: str) -> None:
    marked = CURSOR in argument
    hole = split_at_mark(argument, where="the text") if marked else read_hole(argument)
    if session.completer is None:
        opened = session.opened
        source = open_source(opened.model, session.settings.kv_bits)
        session.completer = Completer(source, opened.tokenizer)
    middle, pieces = session.completer.stream(*hole), TerminalText()
    with echo_off():
        events = follow(middle, lambda event: session.screen.write(pieces.add(event.text)))
    done = events[-1].completion if events else None
    if done is None:
        session.screen.note("stopped by you")
        return
    rate = "" if done.decode_tok_s is None else f" · {done.decode_tok_s:.1f} tok/s"
    session.screen.note(
        f"{counted(done.generated_tokens, 'token')}{rate} · first after {done.ttft_s:.2f} s · "
        f"ended by {done.stopped_by}"
    )


TABLE = {
    c.name: c
    for c in (
        Command("help", "", "this list", _help),
        Command("clear", "", "begin a new conversation", _clear),
        Command("undo", "", "take back the last message and its answer", _undo),
        Command("regen", "", "another answer to the last message", lambda s, _: s.regenerate()),
        Command("system", "[TEXT]", "show or set the system prompt; off for none", _system,
                takes_lines=True),
        Command("set", "[NAME VALUE]", "show or set temperature, top_p, max_tokens …", _set),
        Command("stats", "", "tokens, memory and energy of the conversation", _stats),
        Command("save", "FILE", "write the conversation to FILE.md or FILE.jsonl", _save,
                takes_path=True),
        Command("load", "FILE", "continue a saved conversation", _load, takes_path=True),
        Command("read", "[FILE]", "send a file's text with the next message", _read,
                takes_path=True),
        Command("fim", "HOLE", "fill PREFIX<CURSOR>SUFFIX or FILE:LINE[:COL]", _fim,
                takes_path=True, takes_lines=True),
        Command("model", "[NAME]", "continue with another model", _model, takes_path=True),
        Command("exit", "", "leave, as Ctrl-D does", _exit),
    )
}  # fmt: skip
ALIASES = {"quit": "exit", "q": "exit", "bye": "exit", "?": "help"}
