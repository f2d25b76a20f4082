"""The correctness gate: does an engine compute on an artefact what its checkpoint says?

A fast wrong model is no result. After its trials a worker feeds a short seeded prompt through
the calls that were timed, half at once and half token by token, and reports some of the logits.
Rounding to four bits changes logits as much as some mistakes do, so the way from the checkpoint
is judged in two steps (`edge.bench.reference` computes both ends of the first):

- conversion: the artefact's settings against the checkpoint's, and its weights, tensor by tensor
  and as logits of the same float32 network, within what its bits may cost;
- engine: what it computed against what the artefact's own weights give, within a bound that has
  nothing to do with bits.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.bench.engines.engine import Engine, Logits
from edge.bench.software import TF32
from edge.child import run_child

if TYPE_CHECKING:
    from edge.convert.checkpoint import Checkpoint

PREFILLED, STEPPED = 16, 16
POSITIONS = PREFILLED + STEPPED
# Of the vocabulary, at every position from PREFILLED - 1 on: 17 kB of JSON.
SAMPLED_IDS = 128
SEED = 11
Digest = dict[str, Any]
# What an engine's arithmetic may change, at the worst position. All of it was measured on Linux
# CPUs, none on Metal or CUDA: a Mac's figures go here. On the demo: our network and mlx-lm's in
# float32 0.000, in the files' float16 0.017, llama.cpp 0.001 (F16) to 0.039 (Q4_K_M: it rounds
# activations to 8 bits); an 8-bit cache adds 0.017, a 4-bit one 0.24.
ENGINE_BOUNDS = {"mlx": 0.05, "llama.cpp": 0.1, "4-bit cache": 0.6}
# From so many positions on MLX's decode attention on a GPU works in two passes, which one chip
# computed wrongly (mlx issue 4022). A pass of so many tokens is computed by another kernel.
FAR, BESIDE = 1024, 9
# Logits of an artefact's weights over all positions. The demo: 3.8 / 2^bits (INT8 0.013, INT6
# 0.055, INT4 0.23, INT3 0.44, INT2 0.78); random weights, which no training made robust, twice
# that (INT4 0.39 with 2 layers, 0.49 with 12). Unrelated logits differ by 1.4.
LOGITS_BOUND, LARGEST_LOGITS_BOUND, FLOAT_LOGITS_BOUND = 16.0, 1.2, 0.03
# A tensor's rounding is 1.5 / 2^bits of its size; two unrelated tensors differ by 1.4.
TENSOR_BOUND, LARGEST_TENSOR_BOUND, FLOAT_TENSOR_BOUND = 8.0, 0.9, 0.01
BITS = re.compile(r"^(?:INT|MIXED_|Q|MXFP|NVFP)(\d)")
FLOATS = ("FP32", "FP16", "BF16")
CHECKPOINT = ""
REFERENCE = "edge.bench.reference"


def gate_tokens(vocab_size: int) -> list[int]:
    """The prompt: POSITIONS random ids, the same for every engine."""
    rng = random.Random(SEED)
    return [rng.randrange(vocab_size) for _ in range(POSITIONS)]


def logits_digest(engine: Engine, vocab_size: int, context_tokens: int = POSITIONS) -> Digest:
    """What an engine computes over the prompt; its cache is empty before and forgotten after.

    Args:
        engine: with room for POSITIONS.
        vocab_size: the checkpoint's.
        context_tokens: how far the row's workload goes; beyond FAR a token there is decoded too.
    """
    ids = gate_tokens(vocab_size)
    engine.trim(0)
    engine.prefill(ids[:PREFILLED])
    rows = [engine.last_logits()]
    for token in ids[PREFILLED:]:
        engine.decode([token], lambda: None)
        rows.append(engine.last_logits())
    engine.trim(0)
    far = {"far_error": _far_error(engine, vocab_size)} if context_tokens > FAR else {}
    return {**make_digest(rows, vocab_size), **far}


def _far_error(engine: Engine, vocab_size: int) -> float | None:
    """How far a token decoded at position FAR is from the same token as one of several.

    Relative, as in `errors`; None where a logit is not a number.
    """
    rng = random.Random(SEED)
    ids = [rng.randrange(vocab_size) for _ in range(FAR + 1)]
    engine.prefill(ids[: FAR + 1 - BESIDE])
    engine.prefill(ids[FAR + 1 - BESIDE :])
    wanted = engine.last_logits().astype(np.float64)
    engine.trim(FAR)
    engine.decode(ids[FAR:], lambda: None)
    found = engine.last_logits().astype(np.float64)
    engine.trim(0)
    wanted, found = wanted - wanted.mean(), found - found.mean()
    return _rounded(math.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean()))


def make_digest(rows: Sequence[Logits], vocab_size: int) -> Digest:
    """Logits (vocab,) after each position from PREFILLED - 1 on -> plain JSON data."""
    sampled = random.Random(SEED).sample(range(vocab_size), min(SAMPLED_IDS, vocab_size))
    widths = {len(row) for row in rows}
    if widths != {vocab_size}:
        return {"logits_per_position": min(widths), "logits": [], "top": []}
    return {
        "logits_per_position": vocab_size,
        "logits": [[_rounded(row[i]) for i in sampled] for row in rows],
        "top": [int(np.argmax(row)) for row in rows],
    }


def _rounded(value: float) -> float | None:
    """Five significant digits; None where it is no number, which JSON cannot hold."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def errors(reference: Digest, digest: Digest) -> tuple[float, float]:
    """How far logits are from the reference's: over all positions, and at the worst one.

    Both relative: the root mean square of the difference over that of the reference, each row
    without its mean, which no probability depends on. Infinite where a logit is no number.
    """
    wanted, found = (np.array(d["logits"], dtype=np.float64) for d in (reference, digest))
    if not np.isfinite(found).all():
        return math.inf, math.inf
    wanted, found = (x - x.mean(axis=1, keepdims=True) for x in (wanted, found))
    squares, scale = np.square(found - wanted).mean(axis=1), np.square(wanted).mean()
    return math.sqrt(squares.mean() / scale), math.sqrt(squares.max() / scale)


def judge(
    reference: Mapping[str, Digest],
    path: str,
    digest: Digest,
    precision: str,
    engine: str = "mlx",
    kv_bits: int | None = None,
) -> str | None:
    """Why a row is INVALID; None where the logits are what they should be.

    Args:
        reference: from `reference_job`.
        path: the artefact's, as it was given there.
        digest: from the worker.
        precision: as tables print it; decides how much rounding may change.
        engine: by its name; decides how much its arithmetic may.
        kv_bits: of the cache.
    """
    checkpoint, own = reference[CHECKPOINT], reference[path]
    return _conversion_fault(checkpoint, own, precision) or _engine_fault(
        own, digest, _engine_bound(engine, kv_bits)
    )


def _conversion_fault(checkpoint: Digest, own: Digest, precision: str) -> str | None:
    if own["settings"]:
        return f"wrong settings: the artefact has {', '.join(own['settings'])}; convert it again"
    bound = bounded(precision, TENSOR_BOUND, LARGEST_TENSOR_BOUND, FLOAT_TENSOR_BOUND)
    if own["tensor_error"] is None or own["tensor_error"] > bound:
        return (
            f"wrong weights: tensor {own['tensor']} is {_size(own['tensor_error'])} off the "
            f"checkpoint's, and {precision} can account for {bound:.2g}; convert it again"
        )
    bound = bounded(precision, LOGITS_BOUND, LARGEST_LOGITS_BOUND, FLOAT_LOGITS_BOUND)
    found, _ = errors(checkpoint, own)
    if found <= bound:
        return None
    return (
        f"wrong weights: the artefact's logits are {_size(found)} off the checkpoint's, and "
        f"{precision} can account for {bound:.2g}; convert it again"
    )


def _engine_bound(engine: str, kv_bits: int | None) -> float:
    if kv_bits == 4:
        return ENGINE_BOUNDS["4-bit cache"]
    return ENGINE_BOUNDS["llama.cpp" if engine == "llama.cpp" else "mlx"]


def _engine_fault(own: Digest, digest: Digest, bound: float) -> str | None:
    if own["logits_per_position"] != digest["logits_per_position"]:
        return (
            f"wrong vocabulary: the engine gives {digest['logits_per_position']} logits per "
            f"token, the checkpoint {own['logits_per_position']}; convert it again"
        )
    far = digest.get("far_error", 0.0)
    if far is None or far > bound:
        return (
            f"wrong logits: at position {FAR} a token decoded alone is {_size(far)} off the same "
            f"token in a prompt, and the engine's arithmetic can account for {bound:.2g}; update "
            f"the engine, or measure up to a depth of {FAR} only"
        )
    _, worst = errors(own, digest)
    if worst <= bound:
        return None
    return (
        f"wrong logits: the engine's are {_size(worst)} off what the artefact's weights give, "
        f"and its arithmetic can account for {bound:.2g}; look at its rope base, norm and cache, "
        f"or convert it again"
    )


def _size(error: float | None) -> str:
    return "infinitely far" if error is None or not math.isfinite(error) else f"{error:.2g}"


def bounded(precision: str, factor: float, largest: float, floats: float) -> float:
    """The factor / 2^bits of a precision; `largest` where nothing tells the bits."""
    if precision in FLOATS:
        return floats
    bits = BITS.match(precision)
    return min(largest, factor / 2 ** int(bits[1])) if bits else largest


def reference_job(
    checkpoint: Checkpoint, artefacts: Sequence[Path], timeout_s: float = 1800
) -> dict[str, Digest]:
    """Compute what `judge` compares with, in a process of its own.

    Args:
        checkpoint: what the artefacts were made of.
        artefacts: finished.
        timeout_s: after this long it is given up.

    Returns:
        Digests by the artefact's path; the checkpoint's own under CHECKPOINT.

    Raises:
        EdgeError: it failed, with the reason.
    """
    source = checkpoint.source
    asked = {
        "model": source.origin if source.path is None else str(source.path),
        "corrections": asdict(checkpoint.corrections),
        "artefacts": [str(path) for path in artefacts],
    }
    exact = {TF32: "0"}  # on M5 float32 products are rounded otherwise
    found: dict[str, Digest] = run_child(REFERENCE, asked, timeout_s, "the reference logits", exact)
    return found
