"""Options of `edge chat`."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge.cli.options.shared import (
    add_kv_bits,
    add_max_tokens,
    add_output,
    add_power,
    add_sampling,
    model_help,
)

ARTEFACT = "mlx-int4"
# What Stable Code Instruct's model card generates with.
TEMPERATURE, TOP_P, TOP_K = 0.5, 0.95, 100
MAX_TOKENS = 2048


def parser() -> argparse.ArgumentParser:
    """Parser of the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="demo",
        help=f"{model_help(ARTEFACT)}. A base model without a chat template continues what it is "
        f"given",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    _add_once(parser)
    add_sampling(parser, TEMPERATURE, TOP_P, TOP_K)
    _add_running(parser)
    _add_kept(parser)
    return parser


def _add_once(parser: argparse.ArgumentParser) -> None:
    once = parser.add_argument_group("one answer for a script, also if stdin is not a terminal")
    once.add_argument(
        "-p", "--prompt", metavar="TEXT", help="answer this, and what stdin has after it"
    )
    add_output(once, ["text", "json"])
    once.add_argument("-q", "--quiet", action="store_true", help="no figures on stderr")


def _add_running(parser: argparse.ArgumentParser) -> None:
    running = parser.add_argument_group("how the model runs")
    add_max_tokens(running, MAX_TOKENS, "of one answer")
    add_kv_bits(running, "bits of the cached keys and values")
    running.add_argument(
        "--lookup",
        action=argparse.BooleanOptionalAction,
        help="propose tokens that followed the same words earlier: the answer stays the same and "
        "comes faster where it repeats the text, as edits do (default: at temperature 0, where it "
        "did not lose in any measurement)",
    )
    add_power(running, "--power", "none")


def _add_kept(parser: argparse.ArgumentParser) -> None:
    kept = parser.add_argument_group("what is kept")
    kept.add_argument(
        "--transcript",
        metavar="FILE",
        type=Path,
        help="write the conversation to this file as it goes, and continue the one it holds "
        "(default: a new one in the state directory, ~/.local/state/edge or macOS's Application "
        "Support, where it stays until you remove it; for one answer: none)",
    )
    kept.add_argument(
        "--no-history",
        action="store_true",
        help="keep neither what you type nor, without --transcript, the conversation",
    )
