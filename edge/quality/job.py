"""Quality of artefacts in a process of its own, for `edge bench --quality`.

Started by `edge.child.run_child("edge.quality.job", question, ...)`, so that its memory is gone
before anything else is measured.

    question  {"model", "corrections": {}, "artefacts": {name: path}, "reference", "folder",
              "threads", "tokens"}
    answer    {name: the fields of `Quality`, "reference", "corpus", "corpus_sha256", "window"}
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge.child import child_main
from edge.convert.checkpoint import Corrections, open_checkpoint
from edge.quality.corpus import check_trained, tokenizer_of, windows_of
from edge.quality.evaluate import evaluate
from edge.quality.records import Subject


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
