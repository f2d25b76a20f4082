"""Convert a StableLM checkpoint to MLX and GGUF; list, verify, or fix a GGUF file."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge.cli.checkpoint import open_named, output_folder
from edge.cli.options.convert import OF_CHECKPOINT, refuse_others
from edge.cli.options.shared import table_11
from edge.cli.progress import progress_bars
from edge.convert.artefacts.recipes import GPTQ, MENDED
from edge.convert.artefacts.sizes import file_bytes
from edge.convert.checkpoint import Corrections
from edge.convert.convert import Artefact, convert
from edge.convert.fix_gguf import fix_gguf
from edge.convert.targets import Options, list_artefacts
from edge.convert.verify import Verification, find_origin, verify
from edge.errors import EdgeError


def run(args: argparse.Namespace) -> int:
    """Progress on stderr, the result on stdout."""
    if args.verify is not None:
        return _verify(args)
    if args.model is None:
        _notice("MODEL is missing: name demo, a directory, a GGUF file or a hub id.")
        return 2
    if args.list:
        return _list(args)
    args.to = args.to or table_11()
    return _fix(args) if MENDED in args.to else _convert(args)


def _notice(sentence: str) -> None:
    print(f"edge convert: {sentence}", file=sys.stderr)


def _convert(args: argparse.Namespace) -> int:
    options = Options(
        force=args.force,
        group_size=args.group_size,
        requantise=args.requantise,
        learned=args.calibrate == GPTQ,
        calibration=args.calibration,
        imatrix=args.imatrix,
    )
    checkpoint = open_named(args)
    out = output_folder(args.out, checkpoint.source.name)
    with progress_bars() as progress:
        artefacts = convert(checkpoint, args.to, out, progress, options, _notice)
    return _print_made(args, artefacts, checkpoint.warnings)


def _fix(args: argparse.Namespace) -> int:
    refuse_others(args, "fixing a GGUF file", "to", "out", "force", "rope_theta", "context")
    if len(args.to) > 1:
        raise EdgeError(
            f"{MENDED.name} copies a GGUF file; ask for other artefacts in a second call."
        )
    warnings: list[str] = []

    def notice(sentence: str) -> None:
        _notice(sentence)
        warnings.append(sentence.removeprefix("warning: "))

    out = output_folder(args.out, Path(args.model).stem)
    corrections = Corrections(rope_theta=args.rope_theta, context=args.context)
    with progress_bars() as progress:
        made = fix_gguf(args.model, out, corrections, args.force, progress, notice)
    return _print_made(args, [made], warnings)


def _print_made(
    args: argparse.Namespace, artefacts: Sequence[Artefact], warnings: Sequence[str]
) -> int:
    rows: list[dict[str, Any]] = [
        {
            "artefact": artefact.recipe.name,
            "path": str(artefact.path),
            "kept": artefact.kept,
            "file_bytes": file_bytes(artefact.path),
            "notes": list(artefact.notes),
            "warnings": list(warnings),
        }
        for artefact in artefacts
    ]
    if args.output == "json":
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        done = "kept" if row["kept"] else "made"
        print(f"{done} {row['path']} ({row['file_bytes'] / 1e6:.1f} MB)")
        for note in row["notes"]:
            print(f"  {note}")
    return 0


def _list(args: argparse.Namespace) -> int:
    refuse_others(args, "listing", *OF_CHECKPOINT, "group_size")
    listed = list_artefacts(open_named(args), args.group_size)
    if args.output == "json":
        print(json.dumps([asdict(item) for item in listed], indent=2))
        return 0
    print(f"{'artefact':<16} {'bits/weight':>11} {'size (MB)':>15}")
    for item in listed:
        exact = "  keeps the source's own values" if item.exact else ""
        size = f"{'about ' if item.estimated else ''}{item.weight_bytes / 1e6:,.1f}"
        print(f"{item.artefact:<16} {item.bits_per_weight:>11.2f} {size:>15}{exact}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    refuse_others(args, "verifying")
    checkpoint = find_origin(args.verify, args.model)
    with progress_bars() as progress:
        found = verify(args.verify, checkpoint, lambda done: progress("comparing", done))
    if args.output == "json":
        print(json.dumps(asdict(found), indent=2))
    else:
        _print_verification(args.verify, found)
    return 1 if found.problems else 0


def _print_verification(artefact: Path, found: Verification) -> None:
    manifest = found.manifest
    print(
        f"{artefact}: {manifest.artefact} of {manifest.source}, {manifest.bits_per_weight:.2f} "
        f"bits per weight"
    )
    print(f"{found.hashed_files} files hashed, {found.compared_tensors} tensors compared")
    if any(error.relative for error in found.worst):
        print("largest relative errors:")
        for error in found.worst:
            print(f"  {error.relative:.3g}  {error.name}")
    for remark in found.remarks:
        print(f"not checked: {remark}")
    for problem in found.problems:
        print(f"PROBLEM: {problem}")
    print("not what it should be" if found.problems else "as it should be")
