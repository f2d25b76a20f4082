"""Chat with a model, or answer a single prompt."""

import argparse
import contextlib
import sys
from pathlib import Path

import mlx.core as mx

from edge.chat.screen import Screen
from edge.chat.session import LoadedModel, Session, Settings, answer_once
from edge.cli.model_path import open_for, runnable
from edge.cli.options.chat import ARTEFACT
from edge.errors import EdgeError
from edge.formats.files import check_argument, decode_text
from edge.generate.sampling import Sampling
from edge.generate.transcript import Transcript
from edge.model.follow import is_launched
from edge.power.choose import choose_meter, why_not

DEMO_NOTE = (
    "the demo is a tiny code model, not an assistant; for answers name a model such as "
    "stabilityai/stable-code-instruct-3b"
)


def run(args: argparse.Namespace) -> int:
    """Answer a prompt, or chat until the user leaves."""
    settings, text = _settings(args), _text(args)
    if text is not None:
        screen = Screen(sys.stderr, quiet=args.quiet)
        with contextlib.closing(_session(args, settings, screen, args.transcript)) as session:
            return answer_once(session, text, args.output)
    if args.output == "json":
        raise EdgeError("-o json needs a prompt; give -p TEXT, or a text on stdin.")
    from edge.chat.repl import converse, new_transcript_file  # prompt_toolkit, which -p needs not

    file = args.transcript or (None if args.no_history else new_transcript_file())
    with contextlib.closing(_session(args, settings, Screen(sys.stdout), file)) as session:
        converse(session, keep_history=not args.no_history)
    return 0


def _session(
    args: argparse.Namespace, settings: Settings, screen: Screen, file: Path | None
) -> Session:
    transcript = Transcript(file)
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    meter = choose_meter(args.power, ["GPU" if on_gpu else "CPU"])
    if args.power != "none" and (reason := why_not(meter, args.power)):
        print(f"edge chat: warning: power is not measured: {reason}.", file=sys.stderr)
    return Session(
        opened=_open(args.model, args.kv_bits),
        settings=settings,
        screen=screen,
        meter=meter,
        open_model=lambda name: _open(name, args.kv_bits),
        transcript=transcript,
    )


def _settings(args: argparse.Namespace) -> Settings:
    sampling = Sampling.from_options(args)
    # Measured on the demo: 1.1 to 1.3 times as fast greedily, 0.96 to 1.01 when tokens are drawn.
    lookup = sampling.temperature == 0 if args.lookup is None else args.lookup
    return Settings(
        sampling=sampling,
        max_tokens=args.max_tokens,
        system=check_argument(args.system, "--system") if args.system else None,
        kv_bits=args.kv_bits,
        lookup=lookup,
    )


def _text(args: argparse.Namespace) -> str | None:
    """Text to answer; None for an interactive chat."""
    piped = ""
    if is_launched():  # mlx.launch passes on a terminal's lines, and no end
        if args.prompt is None:
            return None
    elif sys.stdin is not None and not sys.stdin.isatty():
        piped = decode_text(sys.stdin.buffer.read(), "stdin")
    elif args.prompt is None:
        if sys.stdin is None:
            raise EdgeError("stdin is closed; give -p TEXT.")
        return None
    prompt = check_argument(args.prompt or "", "-p")
    text = "\n\n".join(part for part in (prompt, piped) if part)
    if not text.strip():
        raise EdgeError("there is nothing to answer; give -p TEXT, or a text on stdin.")
    return text


def _open(name: str, kv_bits: int | None) -> LoadedModel:
    path = runnable(name, "chat", ARTEFACT)
    opened = open_for("chat", path, kv_bits)
    shown, note = (name, DEMO_NOTE) if name == "demo" else (str(path), None)
    return LoadedModel(shown, opened.model, opened.tokenizer, opened.running_bytes, note)
