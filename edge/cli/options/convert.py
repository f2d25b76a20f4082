"""Options of `edge convert`."""

import argparse

from edge.cli.options import shared
from edge.convert.artefacts.recipes import GPTQ, GROUP_SIZES, MENDED
from edge.errors import EdgeError

# Options by the names that argparse gives them.
OF_CHECKPOINT = ("revision", "layers", "rope_theta", "context")
OF_RECIPES = ("group_size", "requantise", "calibrate", "calibration", "imatrix")
OPTIONS = ("to", "out", "force", *OF_CHECKPOINT, *OF_RECIPES)


def parser() -> argparse.ArgumentParser:
    """Parser of the command."""
    parser = shared.new_parser()
    shared.add_checkpoint(parser, default=None)
    shared.add_artefacts(parser, "--to", "what to make", also=(MENDED,))
    parser.set_defaults(to=None)  # to see whether it was given; Table 11's are put in later
    shared.add_out(parser, "folder for the artefacts")
    parser.add_argument("--force", action="store_true", help="replace existing artefacts")
    shared.add_output(parser, ["text", "json"])
    _add_quantisation(parser.add_argument_group("how to quantise"))
    instead = parser.add_argument_group("instead of converting").add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="show every artefact and its size")
    meaning = "check a finished artefact against its digests, and its tensors against MODEL"
    shared.add_path(instead, "--verify", metavar="ARTEFACT", help=meaning)
    return parser


def _add_quantisation(group: argparse._ArgumentGroup) -> None:
    meaning = "of MLX quantisation (default: 64)"
    group.add_argument("--group-size", type=int, choices=GROUP_SIZES, help=meaning)
    group.add_argument(
        *("--requantise", "--requantize"),
        action="store_true",
        help="round a quantised source again, for loaders other than edge, instead of keeping "
        "its values",
    )
    meaning = "learn the quantisation of mlx-intN from a text"
    group.add_argument("--calibrate", choices=[GPTQ], help=meaning)
    meaning = "that text (default: edge's own code)"
    shared.add_path(group, "--calibration", metavar="FILE", help=meaning)
    meaning = "llama.cpp's importance matrix, for GGUF"
    shared.add_path(group, "--imatrix", metavar="FILE", help=meaning)


def refuse_others(args: argparse.Namespace, doing: str, *used: str) -> None:
    """Refuse options outside `used`, which would have no effect."""
    given = [name for name in OPTIONS if getattr(args, name) and name not in used]
    if given:
        flag = given[0].replace("_", "-")
        raise EdgeError(f"--{flag} has no effect when {doing}; leave it out.")
