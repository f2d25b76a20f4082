"""Convert a StableLM checkpoint to MLX and GGUF."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli.arguments import add_artefacts, output_folder
from edge.cli.progress import progress_bars

if TYPE_CHECKING:
    from edge.checkpoints.convert import Artefact


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "model", metavar="MODEL", help="demo, a checkpoint's directory, or a hub id"
    )
    add_artefacts(parser, "--to", "what to make")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder for the artefacts (default: models/NAME)"
    )
    parser.add_argument("--force", action="store_true", help="replace artefacts that are there")
    parser.add_argument(
        "-o", "--output", choices=["text", "json"], default="text", help="how to print the result"
    )


def run(args: argparse.Namespace) -> int:
    """Convert, show progress on stderr, print what was made on stdout."""
    from edge.checkpoints.artefacts.sizes import file_bytes
    from edge.checkpoints.checkpoint import open_checkpoint
    from edge.checkpoints.convert import convert

    checkpoint = open_checkpoint(args.model)
    out = output_folder(args.out, checkpoint.source.name)
    with progress_bars() as progress:
        artefacts = convert(checkpoint, args.to, out, args.force, progress)
    if args.output == "json":
        print(json.dumps([_as_json(a) for a in artefacts], indent=2))
    else:
        for a in artefacts:
            print(f"{'kept' if a.kept else 'made'} {a.path} ({file_bytes(a.path) / 1e6:.1f} MB)")
    return 0


def _as_json(a: Artefact) -> dict[str, object]:
    from edge.checkpoints.artefacts.sizes import file_bytes

    return {
        "artefact": a.recipe.name,
        "path": str(a.path),
        "kept": a.kept,
        "file_bytes": file_bytes(a.path),
    }
