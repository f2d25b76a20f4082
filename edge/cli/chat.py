"""Chat with a model, or get one answer for a script."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli import model_path
from edge.cli.arguments import count
from edge.cli.opened import open_for
from edge.cli.sampling_arguments import add_sampling, sampling_from
from edge.errors import EdgeError
from edge.formats.files import check_argument, decode_text
from edge.power.choose import SOURCES, choose_meter
from edge.stdout import check_stdout

if TYPE_CHECKING:
    from edge.chat.session import Opened, Settings
    from edge.generate.sampling import Sampling
    from edge.power.meter import Meter

ARTEFACT = "mlx-int4"
# What Stable Code Instruct's model card generates with.
TEMPERATURE, TOP_P, TOP_K = 0.5, 0.95, 100
MAX_TOKENS = 2048

DEMO = (
    "the demo is tiny and no assistant, it only shows how this works; name a model that talks, "
    "such as stabilityai/stable-code-instruct-3b"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="demo",
        help=f"{model_path.help_text(ARTEFACT)}. A base model without a chat template continues "
        f"what it is given",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    _add_once(parser)
    add_sampling(parser, TEMPERATURE, TOP_P, TOP_K)
    _add_running(parser)
    _add_kept(parser)


def _add_once(parser: argparse.ArgumentParser) -> None:
    once = parser.add_argument_group("one answer for a script, also if stdin is no terminal")
    once.add_argument(
        "-p", "--prompt", metavar="TEXT", help="answer this, and what stdin has after it"
    )
    once.add_argument(
        "-o", "--output", choices=["text", "json"], default="text", help="(default: text)"
    )
    once.add_argument("-q", "--quiet", action="store_true", help="no figures on stderr")


def _add_running(parser: argparse.ArgumentParser) -> None:
    running = parser.add_argument_group("how the model runs")
    running.add_argument(
        "-n",
        "--max-tokens",
        metavar="N",
        type=count,
        default=MAX_TOKENS,
        help=f"of one answer at most (default: {MAX_TOKENS})",
    )
    running.add_argument(
        "--kv-bits", type=int, choices=[4, 8], help="bits of the cached keys and values"
    )
    running.add_argument(
        "--lookup",
        action=argparse.BooleanOptionalAction,
        help="propose tokens that followed the same words earlier: the answer stays the same and "
        "comes faster where it repeats the text, as edits do (default: at temperature 0, where it "
        "did not lose in any measurement)",
    )
    running.add_argument(
        "--power",
        metavar="SOURCE",
        choices=SOURCES,
        default="none",
        help=f"measure watts, by {', '.join(SOURCES)} (default: none)",
    )


def _add_kept(parser: argparse.ArgumentParser) -> None:
    kept = parser.add_argument_group("what is kept")
    kept.add_argument(
        "--transcript",
        metavar="FILE",
        type=Path,
        help="write the conversation to this file as it goes, and go on with the one it has "
        "(default: a new one in the state directory, ~/.local/state/edge or macOS's Application "
        "Support, where it stays until you remove it; for one answer: none)",
    )
    kept.add_argument(
        "--no-history",
        action="store_true",
        help="keep neither what you type nor, without --transcript, the conversation",
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
    from edge.chat.one_shot import answer_once
    from edge.device.memory import wired
    from edge.generate.transcript import Transcript

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
    import mlx.core as mx

    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    return choose_meter(source, ["GPU" if on_gpu else "CPU"])


# --- a conversation


def _talk(args: argparse.Namespace, sampling: Sampling) -> int:
    from edge.chat.repl import converse
    from edge.chat.session import Session, Tools
    from edge.chat.terminal import Screen
    from edge.generate.transcript import Transcript

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
    from edge.chat.paths import new_transcript_file

    if args.transcript is not None or args.no_history:
        path: Path | None = args.transcript
        return path
    return new_transcript_file()


def _settings(args: argparse.Namespace, sampling: Sampling) -> Settings:
    from edge.chat.session import Settings

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
    from edge.generate.hole import CURSOR, read_hole, split_at_mark

    return split_at_mark(text, where="the text") if CURSOR in text else read_hole(text)


# --- the model


def _open(name: str, kv_bits: int | None) -> Opened:
    from edge.chat.session import Opened

    path = model_path.runnable(name, "chat", ARTEFACT)
    model, tokenizer, need = open_for("chat", path, kv_bits)
    demo = name == "demo"
    shown, remark = (name, DEMO) if demo else (str(path), None)
    return Opened(shown, model, tokenizer, need.running_bytes, remark)
