"""The checkpoint that a command was told to convert or measure."""

import argparse
import sys
from pathlib import Path

from edge.convert.checkpoint import Checkpoint, Corrections, open_checkpoint


def open_named(args: argparse.Namespace) -> Checkpoint:
    """The checkpoint that the options of `add_checkpoint` name; its warnings go to stderr."""
    corrections = Corrections(args.layers, args.rope_theta, args.context)
    checkpoint = open_checkpoint(args.model, args.revision, corrections)
    for warning in checkpoint.warnings:
        print(f"edge {args.command}: warning: {warning}", file=sys.stderr)
    return checkpoint


def output_folder(out: Path | None, name: str) -> Path:
    """`--out`, or models/NAME."""
    return out if out is not None else Path("models") / name
