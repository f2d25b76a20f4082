"""The checkpoint that a command converts or measures, its output folder and progress bars."""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from edge.convert.artefacts.manifest import Corrections
from edge.convert.checkpoint import Checkpoint, open_checkpoint
from edge.formats.files import safe_name
from edge.stdout import unfiltered

BAR_WIDTH = 12  # with the longest names of rows 80 columns


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


class Update(Protocol):
    """Sets the finished share of a bar, and the seconds that are left where they are known."""

    def __call__(self, name: str, done: float, left_s: float | None = None) -> None: ...


class _Time(TimeElapsedColumn):
    """Time that has passed, or of a bar that knows its end, the time until then."""

    def render(self, task: Task) -> Text:
        if task.finished or task.fields["end_s"] is None:
            return super().render(task)
        left_s = max(round(task.fields["end_s"] - time.monotonic()), 0)
        return Text(f"~{timedelta(seconds=left_s)} left", style="progress.remaining")


@contextmanager
def progress_bars() -> Iterator[Update]:
    """A bar per name, on stderr if it is a terminal."""
    console = Console(file=unfiltered(sys.stderr))
    columns = (TextColumn("{task.description}"), BarColumn(BAR_WIDTH), TaskProgressColumn())
    with Progress(
        *columns,
        _Time(),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=False,  # what is printed meanwhile would pass unfiltered
        redirect_stderr=False,
    ) as bars:
        tasks = {}

        def update(name: str, done: float, left_s: float | None = None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=1.0, end_s=None)
            end_s = None if left_s is None else time.monotonic() + left_s
            bars.update(tasks[name], completed=done, end_s=end_s)

        yield update
