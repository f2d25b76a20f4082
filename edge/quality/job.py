"""Quality of artefacts in a process of its own, for `edge bench --quality`.

Its memory is free before anything else is measured.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge.child import child_main, run_child
from edge.convert.checkpoint import Checkpoint, Corrections, open_checkpoint
from edge.quality.corpus import check_trained, tokenizer_of, windows_of
from edge.quality.evaluate import evaluate
from edge.quality.records import Subject

TIMEOUT_S = 4 * 3600


def quality_job(
    checkpoint: Checkpoint,
    artefacts: Mapping[str, Path],
    reference: str,
    folder: Path,
    threads: int,
    tokens: int,
) -> dict[str, dict[str, Any]]:
    """The fields of a profile's `Quality` by the artefact's name, from a child process.

    `reference` names the one that the others are compared with; scores are kept in `folder`.

    Raises:
        EdgeError: it failed, with the reason.
    """
    source = checkpoint.source
    question = {
        "model": source.origin if source.path is None else str(source.path),
        "corrections": asdict(checkpoint.corrections),
        "artefacts": {name: str(path) for name, path in artefacts.items()},
        "reference": reference,
        "folder": str(folder),
        "threads": threads,
        "tokens": tokens,
    }
    found: dict[str, dict[str, Any]] = run_child(
        "edge.quality.job", question, TIMEOUT_S, "the quality"
    )
    return found


def compute(question: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The answer to a question."""
    corrections = Corrections(**question["corrections"])
    checkpoint = open_checkpoint(question["model"], corrections=corrections)
    check_trained(checkpoint)
    windows = windows_of(checkpoint, tokenizer_of(checkpoint), tokens=question["tokens"])
    found = evaluate(
        [Subject(name, Path(path)) for name, path in question["artefacts"].items()],
        question["reference"],
        windows,
        checkpoint.config,
        threads=question["threads"],
        folder=Path(question["folder"]),
    )
    common = {
        "reference": question["reference"],
        "corpus": windows.corpus.name,
        "corpus_sha256": windows.corpus.sha256,
        "window": windows.tokens,
    }
    return {name: {**asdict(quality), **common} for name, quality in found.quality.items()}


if __name__ == "__main__":
    sys.exit(child_main(compute))
