"""The quality of artefacts in a process of its own, which `edge bench --quality` asks.

Question: model, corrections, artefacts {name: path}, reference, folder, threads, tokens.
Answer: by artefact, what `edge eval -o json` has in its rows, with what it depends on.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge.child import child_main
from edge.convert.checkpoint import Corrections, open_checkpoint
from edge.quality.evaluate import evaluate
from edge.quality.prepare import check_trained, tokenizer_of, windows_of
from edge.quality.subject import Subject


def answered(asked: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """See the module.

    Raises:
        EdgeError: the quality cannot be measured.
    """
    checkpoint = open_checkpoint(asked["model"], corrections=Corrections(**asked["corrections"]))
    check_trained(checkpoint)
    windows = windows_of(checkpoint, tokenizer_of(checkpoint), tokens=asked["tokens"])
    found = evaluate(
        [Subject(name, Path(path)) for name, path in asked["artefacts"].items()],
        asked["reference"],
        windows,
        checkpoint.config,
        threads=asked["threads"],
        folder=Path(asked["folder"]),
    )
    common = {
        "reference": asked["reference"],
        "corpus": windows.corpus.name,
        "corpus_sha256": windows.corpus.sha256,
        "window": windows.tokens,
    }
    return {name: {**asdict(quality), **common} for name, quality in found.quality.items()}


if __name__ == "__main__":
    sys.exit(child_main(answered))
