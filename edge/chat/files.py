"""The commands that read and write files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edge.chat.session import Session
from edge.chat.status import counted
from edge.errors import EdgeError
from edge.generate.transcript import read_transcript, write_transcript
from edge.text_file import read_text


def save(session: Session, name: str) -> None:
    """/save FILE."""
    path = _path(name, "/save")
    if not session.talk.messages:
        raise EdgeError("there is nothing to save; the conversation is empty.")
    if path.exists():
        _check_is_ours(path)
    write_transcript(path, session.talk.messages)
    session.screen.note(f"saved {counted(len(session.talk.messages), 'message')} to {path}")


def load(session: Session, name: str) -> None:
    """/load FILE."""
    path = _path(name, "/load")
    messages = read_transcript(path)
    session.talk.restore(messages)
    session.screen.note(f"loaded {counted(len(messages), 'message')} from {path}")


def read(session: Session, name: str) -> None:
    """/read FILE: the text goes with the next message."""
    if not name:
        _list(session)
        return
    path = _path(name, "/read")
    block = as_block(path.name, read_text(path))
    tokens, limit = session.count(block), session.talk.context_limit
    if tokens >= limit:
        raise EdgeError(
            f"{path} has {tokens} tokens and the model's context {limit}; read a part of it."
        )
    session.attached[str(path)] = block
    session.screen.note(f"{path}: {tokens} tokens, which go with your next message")


def _list(session: Session) -> None:
    for name in session.attached:
        session.screen.say(f"  {name}")
    if not session.attached:
        session.screen.say("no file waits for your next message; /read FILE adds one")


def as_block(name: str, text: str) -> str:
    """A file as Markdown: its name, and its text between fences that it does not hold."""
    longest = max(map(len, re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    end = "" if text.endswith("\n") else "\n"
    return f"{name}:\n{fence}{Path(name).suffix[1:]}\n{text}{end}{fence}"


def _path(name: str, command: str) -> Path:
    if not name:
        raise EdgeError(f"{command} needs a file's name.")
    return Path(os.path.expanduser(name))  # noqa: PTH111  # Path.expanduser raises for ~nobody


def _check_is_ours(path: Path) -> None:
    """A name typed wrong must not cost somebody a file."""
    try:
        read_transcript(path)
    except EdgeError:
        raise EdgeError(
            f"{path} is there and holds no conversation; choose another name."
        ) from None
