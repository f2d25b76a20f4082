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
    parser = shared.new_parser()
    shared.add_checkpoint(parser, default=None)
    purpose = f"artefacts to make ({MENDED.name}: a GGUF file with corrected metadata)"
    shared.add_artefacts(parser, "--to", purpose, also=(MENDED,))
    parser.set_defaults(to=None)  # so that `refuse_others` sees if it was given
    shared.add_out(parser, "folder for the artefacts")
    parser.add_argument("--force", action="store_true", help="replace existing artefacts")
    shared.add_output(parser, ["text", "json"])
    group = parser.add_argument_group("quantisation")
    meaning = "group size of MLX quantisation (default: 64)"
    group.add_argument("--group-size", type=int, choices=GROUP_SIZES, help=meaning)
    meaning = "quantise a quantised source again, instead of keeping its values"
    group.add_argument("--requantise", "--requantize", action="store_true", help=meaning)
    meaning = "calibrate mlx-intN on a text"
    group.add_argument("--calibrate", choices=[GPTQ], help=meaning)
    meaning = "text to calibrate on (default: the source code of edge)"
    shared.add_input(group, "--calibration", metavar="FILE", help=meaning)
    meaning = "llama.cpp importance matrix for GGUF quantisation"
    shared.add_input(group, "--imatrix", metavar="FILE", help=meaning)
    instead = parser.add_argument_group("instead of converting").add_mutually_exclusive_group()
    meaning = "list all artefacts and the size of their weights"
    instead.add_argument("--list", action="store_true", help=meaning)
    meaning = "check an artefact's digests, and its tensors against MODEL"
    shared.add_input(instead, "--verify", metavar="ARTEFACT", help=meaning)
    return parser


def refuse_others(args: argparse.Namespace, doing: str, *used: str) -> None:
    """Refuse options outside `used`, which would have no effect."""
    for flag in shared.given(args, parser(), set(OPTIONS) - set(used)):
        raise EdgeError(f"{flag} has no effect when {doing}; leave it out.")
