"""Convert a StableLM checkpoint to MLX and GGUF; list, verify, or fix a GGUF file."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from edge.cli.checkpoint import open_named, output_folder, progress_bars
from edge.cli.options.convert import OF_CHECKPOINT, refuse_others
from edge.cli.options.shared import TABLE_11_RECIPES
from edge.convert.artefacts.manifest import Corrections
from edge.convert.artefacts.recipes import GPTQ, MENDED
from edge.convert.convert import Artefact, convert
from edge.convert.fix_gguf import fix_gguf
from edge.convert.targets import Options, file_bytes, list_artefacts
from edge.convert.verify import Verification, find_origin, verify
from edge.errors import EdgeError, printable


def run(args: argparse.Namespace) -> int:
    """Convert, list, verify or fix; progress and warnings go to stderr, the result to stdout."""
    if args.verify is not None:
        return _verify(args)
    if args.model is None:
        _notice("MODEL is missing; give demo, a directory, a GGUF file or a Hugging Face id.")
        return 2
    if args.list:
        return _list(args)
    args.to = args.to or TABLE_11_RECIPES
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
        raise EdgeError(f"{MENDED.name} is made alone; run edge convert again for the others.")
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
    if args.output == "json":
        rows = [
            {
                "artefact": made.recipe.name,
                "path": str(made.path),
                "kept": made.kept,
                "file_bytes": file_bytes(made.path),
                "notes": made.notes,
                "warnings": warnings,
            }
            for made in artefacts
        ]
        print(json.dumps(rows, indent=2))
        return 0
    for made in artefacts:
        megabytes = file_bytes(made.path) / 1e6
        print(f"{'kept' if made.kept else 'made'} {made.path} ({megabytes:.1f} MB)")
        for note in made.notes:
            print(f"  {printable(note)}")
    return 0


def _list(args: argparse.Namespace) -> int:
    refuse_others(args, "listing", *OF_CHECKPOINT, "group_size")
    listed = list_artefacts(open_named(args), args.group_size)
    if args.output == "json":
        print(json.dumps([asdict(item) for item in listed], indent=2))
        return 0
    print(f"{'artefact':<16} {'bits/weight':>11} {'weights (MB)':>15}")
    for item in listed:
        exact = "  keeps the source's values" if item.exact else ""
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
    lines = [
        f"{artefact}: {manifest.artefact} of {manifest.source}, {manifest.bits_per_weight:.2f} "
        f"bits per weight",
        f"{found.hashed_files} files hashed, {found.compared_tensors} tensors compared",
    ]
    if any(error.relative for error in found.worst):
        lines += ["largest relative errors:"]
        lines += [f"  {error.relative:.3g}  {error.name}" for error in found.worst]
    lines += [f"not checked: {note}" for note in found.notes]
    lines += [f"PROBLEM: {problem}" for problem in found.problems]
    print(*map(printable, lines), sep="\n")  # names are those of an untrusted file
    print("the artefact is wrong" if found.problems else "the artefact is correct")
