"""Options of `edge chat`."""

import argparse

from edge.cli.options import shared

ARTEFACT = "mlx-int4"
# What Stable Code Instruct's model card generates with.
TEMPERATURE, TOP_P, TOP_K = 0.5, 0.95, 100


def parser() -> argparse.ArgumentParser:
    """Parser of the command."""
    parser = shared.new_parser()
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="demo",
        help=f"{shared.model_help(ARTEFACT)}; a base model without a chat template continues what "
        f"it is given",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    once = parser.add_argument_group("one answer for a script, also if stdin is not a terminal")
    meaning = "answer this, and what stdin has after it"
    once.add_argument("-p", "--prompt", metavar="TEXT", help=meaning)
    shared.add_output(once, ["text", "json"])
    once.add_argument("-q", "--quiet", action="store_true", help="no figures on stderr")
    shared.add_sampling(parser, TEMPERATURE, TOP_P, TOP_K)
    running = parser.add_argument_group("how the model runs")
    shared.add_max_tokens(running, 2048, "of one answer")
    shared.add_kv_bits(running)
    running.add_argument(
        "--lookup",
        action=argparse.BooleanOptionalAction,
        help="propose tokens that followed the same words earlier: the answer stays the same and "
        "comes faster where it repeats the text, as edits do (default: at temperature 0, where it "
        "did not lose in any measurement)",
    )
    shared.add_power(running, "--power", "none")
    _add_kept(parser.add_argument_group("what is kept"))
    return parser


def _add_kept(group: argparse._ArgumentGroup) -> None:
    shared.add_path(
        group,
        "--transcript",
        metavar="FILE",
        help="write the conversation to this file as it goes, and continue the one it holds "
        "(default: a new one in the state directory, ~/.local/state/edge or macOS's Application "
        "Support, where it stays until you remove it; for one answer: none)",
    )
    meaning = "keep neither what you type nor, without --transcript, the conversation"
    group.add_argument("--no-history", action="store_true", help=meaning)
