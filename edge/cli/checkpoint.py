"""The checkpoint that a command converts or measures, its output folder and progress bars."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from edge.convert.artefacts.manifest import Corrections
from edge.convert.checkpoint import Checkpoint, open_checkpoint
from edge.formats.files import safe_name
from edge.stdout import unfiltered


def open_named(args: argparse.Namespace) -> Checkpoint:
    """Open the checkpoint of the options of `add_checkpoint`; its warnings go to stderr."""
    corrections = Corrections(args.layers, args.rope_theta, args.context)
    checkpoint = open_checkpoint(args.model, args.revision, corrections)
    for warning in checkpoint.warnings:
        print(f"edge {args.command}: warning: {warning}", file=sys.stderr)
    return checkpoint


def output_folder(out: Path | None, name: str) -> Path:
    """`--out`, or models/NAME."""
    return out if out is not None else Path("models") / safe_name(name)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, float], None]]:
    """Yields update(name, finished fraction): a bar per name, on stderr if it is a terminal."""
    console = Console(file=unfiltered(sys.stderr))
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=False,  # what is printed meanwhile would pass unfiltered
        redirect_stderr=False,
    ) as bars:
        tasks = {}

        def update(name: str, done: float) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=1.0)
            bars.update(tasks[name], completed=done)

        yield update
