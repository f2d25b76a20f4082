"""Options of `edge chat`."""

import argparse

from edge.cli.options import shared

ARTEFACT = "mlx-int4"
# From the model card of Stable Code Instruct.
TEMPERATURE, TOP_P, TOP_K = 0.5, 0.95, 100


def parser() -> argparse.ArgumentParser:
    parser = shared.new_parser()
    meaning = f"{shared.model_help(ARTEFACT)}; a base model continues the text"
    shared.add_model(parser, "model", nargs="?", default="demo", help=meaning)
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    once = parser.add_argument_group("single answer, also if stdin is not a terminal")
    meaning = "prompt to answer; text on stdin is appended"
    once.add_argument("-p", "--prompt", metavar="TEXT", help=meaning)
    shared.add_output(once, ["text", "json"])
    once.add_argument("-q", "--quiet", action="store_true", help="no statistics on stderr")
    shared.add_sampling(parser, TEMPERATURE, TOP_P, TOP_K)
    generation = parser.add_argument_group("generation")
    shared.add_max_tokens(generation, 2048)
    shared.add_kv_bits(generation)
    generation.add_argument(
        "--lookup",
        action=argparse.BooleanOptionalAction,
        help="speculative decoding with n-grams of the conversation: the same answer, faster where "
        "it repeats earlier text; not for a GGUF file (default: on at temperature 0)",
    )
    shared.add_power(generation, "--power", "none")
    history = parser.add_argument_group("history")
    shared.add_path(
        history,
        "--transcript",
        metavar="FILE",
        help="continue the conversation in FILE and append to it (default: a new file in "
        "~/.local/state/edge, on macOS in Application Support; none for a single answer)",
    )
    meaning = "save neither the input history nor, without --transcript, the conversation"
    history.add_argument("--no-history", action="store_true", help=meaning)
    return parser
