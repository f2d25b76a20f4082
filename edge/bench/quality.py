"""The quality of a row's artefact: asked of a process of its own, and judged.

Not part of the timing: it is computed once per artefact, after every round. Most wrong weights
are found by the correctness gate on 32 random tokens; this looks at thousands of real ones, so
that damage which only shows on them does not pass for speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.bench.gate import bounded
from edge.child import run_child

if TYPE_CHECKING:
    from edge.convert.checkpoint import Checkpoint

REFERENCE = "mlx-fp16"
MODULE = "edge.quality.job"
Record = dict[str, Any]
# Divergence grows with the square of the rounding, so its root is bounded. The demo, which is small
# and therefore fragile: root of the KL x 2^bits is 6 (INT8 to INT4) to 7.6 (INT2), 9 for Q8_0 in
# llama.cpp, which rounds activations too; F16 0.0014, BF16 0.0076. Unrelated predictions are 3
# nats and more apart.
ROOT_KL_BOUND, LARGEST_ROOT_KL_BOUND, FLOAT_ROOT_KL_BOUND = 14.0, 2.5, 0.05


def quality_job(
    checkpoint: Checkpoint,
    artefacts: Mapping[str, Path],
    folder: Path,
    threads: int,
    tokens: int | None = None,
    timeout_s: float = 4 * 3600,
) -> dict[str, Record]:
    """Measure the quality of artefacts of one checkpoint.

    Args:
        checkpoint: what they were made of.
        artefacts: by name, REFERENCE among them.
        folder: where scores are kept, so that the next run only reads them.
        threads: of llama.cpp.
        tokens: at most so many; None for the number that `edge eval` takes.
        timeout_s: after this long it is given up.

    Returns:
        By artefact, what a profile keeps; `reasons` has a sentence for every None.

    Raises:
        EdgeError: it cannot be measured, with the reason.
    """
    source = checkpoint.source
    asked = {
        "model": source.origin if source.path is None else str(source.path),
        "corrections": asdict(checkpoint.corrections),
        "artefacts": {name: str(path) for name, path in artefacts.items()},
        "reference": REFERENCE,
        "folder": str(folder),
        "threads": threads,
        "tokens": tokens,
    }
    found: dict[str, Record] = run_child(MODULE, asked, timeout_s, "the quality")
    return found


def quality_fault(record: Record, precision: str) -> str | None:
    """Why a row is INVALID; None where the artefact predicts as its precision lets expect.

    Args:
        record: from `quality_job`.
        precision: as tables print it.
    """
    kl = record["kl_mean"]
    if kl is None:
        broken = record["perplexity"] is None
        return "wrong predictions: its logits are no finite numbers" if broken else None
    bound = bounded(precision, ROOT_KL_BOUND, LARGEST_ROOT_KL_BOUND, FLOAT_ROOT_KL_BOUND) ** 2
    if kl <= bound:
        return None
    return (
        f"wrong predictions: {kl:.2g} nats per token from {record['reference']}, and {precision} "
        f"can account for {bound:.2g}; convert it again"
    )
