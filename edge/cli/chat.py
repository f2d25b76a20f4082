"""Chat with a model, or get one answer for a script."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import mlx.core as mx

from edge.chat.one_shot import answer_once
from edge.chat.paths import new_transcript_file
from edge.chat.session import Opened, Session, Settings, Tools
from edge.chat.terminal import Screen
from edge.cli import model_path
from edge.cli.opened import open_for
from edge.cli.options.chat import ARTEFACT
from edge.cli.sampling import sampling_from
from edge.device.memory import wired
from edge.errors import EdgeError
from edge.formats.files import check_argument, decode_text
from edge.generate.hole import CURSOR, read_hole, split_at_mark
from edge.generate.sampling import Sampling
from edge.generate.transcript import Transcript
from edge.power.choose import choose_meter
from edge.power.meter import Meter
from edge.stdout import check_stdout

DEMO = (
    "the demo is tiny and no assistant, it only shows how this works; name a model that talks, "
    "such as stabilityai/stable-code-instruct-3b"
)


def run(args: argparse.Namespace) -> int:
    """Answer once, or talk until the user leaves."""
    sampling = sampling_from(args)
    text = _text(args)
    if text is not None:
        return _answer_once(args, sampling, text)
    if args.output == "json":
        raise EdgeError("-o json is for one answer; give -p TEXT, or a text on stdin.")
    return _talk(args, sampling)


# --- one answer


def _text(args: argparse.Namespace) -> str | None:
    """What to answer; None if somebody sits at the terminal.

    Raises:
        EdgeError: it is empty or no UTF-8.
    """
    piped = None
    if sys.stdin is not None and not sys.stdin.isatty():
        piped = decode_text(sys.stdin.buffer.read(), "stdin")
    if args.prompt is None and piped is None:
        if sys.stdin is None:
            raise EdgeError("there is no stdin; give -p TEXT.")
        return None
    parts = [check_argument(args.prompt, "-p")] if args.prompt else []
    parts += [piped] if piped else []
    if not "".join(parts).strip():
        raise EdgeError("there is nothing to answer; give -p TEXT, or a text on stdin.")
    return "\n\n".join(parts)


def _answer_once(args: argparse.Namespace, sampling: Sampling, text: str) -> int:
    with contextlib.closing(Transcript(args.transcript)) as transcript:
        opened, settings = _open(args.model, args.kv_bits), _settings(args, sampling)
        with wired(opened.running_bytes):
            return answer_once(
                opened,
                settings,
                text,
                meter=_meter(args.power),
                transcript=transcript,
                output=args.output,
                quiet=args.quiet,
            )


def _meter(source: str) -> Meter:
    """The meter, `auto` for the processor that MLX computes on."""
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    return choose_meter(source, ["GPU" if on_gpu else "CPU"])


# --- a conversation


def _talk(args: argparse.Namespace, sampling: Sampling) -> int:
    from edge.chat.repl import converse  # here: it imports prompt_toolkit, and -p needs none

    check_stdout()
    transcript = Transcript(_transcript_file(args))
    session = Session(
        opened=_open(args.model, args.kv_bits),
        settings=_settings(args, sampling),
        tools=Tools(
            open_model=lambda name: _open(name, args.kv_bits),
            find_hole=_find_hole,
        ),
        screen=Screen(),
        meter=_meter(args.power),
        transcript=transcript,
    )
    with contextlib.closing(session):
        converse(session, keep_history=not args.no_history)
    return 0


def _transcript_file(args: argparse.Namespace) -> Path | None:
    if args.transcript is not None or args.no_history:
        path: Path | None = args.transcript
        return path
    return new_transcript_file()


def _settings(args: argparse.Namespace, sampling: Sampling) -> Settings:
    # Measured on the demo: 1.1 to 1.3 times as fast greedily, 0.96 to 1.01 when tokens are drawn.
    lookup = sampling.temperature == 0 if args.lookup is None else args.lookup
    return Settings(
        sampling=sampling,
        max_tokens=args.max_tokens,
        system=check_argument(args.system, "--system") if args.system else None,
        kv_bits=args.kv_bits,
        lookup=lookup,
    )


def _find_hole(text: str) -> tuple[str, str]:
    """What /fim was given."""
    return split_at_mark(text, where="the text") if CURSOR in text else read_hole(text)


# --- the model


def _open(name: str, kv_bits: int | None) -> Opened:
    path = model_path.runnable(name, "chat", ARTEFACT)
    model, tokenizer, need = open_for("chat", path, kv_bits)
    demo = name == "demo"
    shown, remark = (name, DEMO) if demo else (str(path), None)
    return Opened(shown, model, tokenizer, need.running_bytes, remark)
