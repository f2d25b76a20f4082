"""Convert a StableLM checkpoint to MLX and GGUF."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from edge.cli.checkpoint import open_named, output_folder
from edge.cli.options.convert import OF_CHECKPOINT, refuse_others
from edge.cli.options.shared import table_11
from edge.cli.progress import progress_bars
from edge.convert.artefacts.manifest import read_manifest
from edge.convert.artefacts.recipes import GPTQ, MENDED
from edge.convert.artefacts.sizes import file_bytes
from edge.convert.convert import Artefact, convert
from edge.convert.listing import list_artefacts
from edge.convert.mend import mend_gguf
from edge.convert.targets import Options
from edge.convert.verify import Verification, find_origin, verify
from edge.errors import EdgeError

# Options by the names that argparse gives them.


def run(args: argparse.Namespace) -> int:
    """Convert, list, verify or mend: progress on stderr, the result on stdout."""
    if args.verify is not None:
        return _verify(args)
    if args.model is None:
        _notice("MODEL is missing: name demo, a directory, a GGUF file or a hub id.")
        return 2
    if args.list:
        return _list(args)
    args.to = args.to or table_11()
    return _mend(args) if MENDED in args.to else _convert(args)


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
    _print_made(args, artefacts, checkpoint.warnings)
    return 0


def _notice(sentence: str) -> None:
    print(f"edge convert: {sentence}", file=sys.stderr)


def _print_made(
    args: argparse.Namespace, artefacts: Sequence[Artefact], warnings: Sequence[str]
) -> None:
    if args.output == "json":
        print(json.dumps([_as_json(a, warnings) for a in artefacts], indent=2))
        return
    for a in artefacts:
        print(f"{'kept' if a.kept else 'made'} {a.path} ({file_bytes(a.path) / 1e6:.1f} MB)")
        for note in a.notes:
            print(f"  {note}")


def _as_json(a: Artefact, warnings: Sequence[str]) -> dict[str, object]:
    return {
        "artefact": a.recipe.name,
        "path": str(a.path),
        "kept": a.kept,
        "file_bytes": file_bytes(a.path),
        "notes": list(a.notes),
        "warnings": list(warnings),
    }


def _list(args: argparse.Namespace) -> int:
    refuse_others(args, "listing", *OF_CHECKPOINT, "group_size")
    checkpoint = open_named(args)
    listed = list_artefacts(checkpoint, args.group_size)
    if args.output == "json":
        rows = [
            {
                "artefact": item.recipe.name,
                "bits_per_weight": item.bits_per_weight,
                "weight_bytes": item.weight_bytes,
                "exact": item.exact,
                "estimated": item.estimated,
            }
            for item in listed
        ]
        print(json.dumps(rows, indent=2))
        return 0
    print(f"{'artefact':<16} {'bits/weight':>11} {'size (MB)':>15}")
    for item in listed:
        exact = "  keeps the source's own values" if item.exact else ""
        size = f"{'about ' if item.estimated else ''}{item.weight_bytes / 1e6:,.1f}"
        print(f"{item.recipe.name:<16} {item.bits_per_weight:>11.2f} {size:>15}{exact}")
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


def _mend(args: argparse.Namespace) -> int:
    refuse_others(args, "mending a GGUF file", "to", "out", "force", "rope_theta", "context")
    if len(args.to) > 1:
        raise EdgeError(
            f"{MENDED.name} copies a GGUF file; ask for other artefacts in a second call."
        )
    warnings: list[str] = []

    def notice(sentence: str) -> None:
        _notice(sentence)
        warnings.append(sentence.removeprefix("warning: "))

    out = output_folder(args.out, Path(args.model).stem)
    with progress_bars() as progress:
        made = mend_gguf(
            args.model,
            out,
            args.rope_theta,
            args.force,
            lambda done: progress(MENDED.name, done),
            notice,
            args.context,
        )
    manifest = read_manifest(made)
    _print_made(args, [Artefact(MENDED, made, False, manifest.notes if manifest else ())], warnings)
    return 0
