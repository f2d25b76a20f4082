"""The correctness gate: compares an engine's logits with those of the checkpoint.

After its trials a worker feeds a short seeded prompt through the timed calls, half at once and
half token by token, and reports some of the logits. Rounding to four bits changes logits as much
as some errors do, so there are two steps (`edge.bench.reference` computes the expected values):

- conversion: the artefact's settings and weights against the checkpoint's, tensor by tensor and
  as logits of the same float32 network, within a bound that depends on its bits;
- engine: its logits against those of the artefact's own weights in float32, within a bound that
  does not depend on bits.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge.bench.engines.engine import LLAMA_CPP, Engine, Logits
from edge.convert.artefacts.recipes import rounding_bound
from edge.profile.profile import Quality

PREFILLED, STEPPED = 16, 16
POSITIONS = PREFILLED + STEPPED
# Ids per position, for every position from PREFILLED - 1 on: 17 kB of JSON.
SAMPLED_IDS = 128
SEED = 11
Digest = dict[str, Any]
# Bounds of an engine's relative error at the worst position. Measured on Linux CPUs, not yet on
# Metal or CUDA. On the demo: our network and mlx-lm's in float32 0.000, in float16 0.017, llama.cpp
# 0.001 (F16) to 0.039 (Q4_K_M: activations are rounded to 8 bits); an 8-bit cache adds 0.017, a
# 4-bit one 0.24.
MLX_BOUND, LLAMA_CPP_BOUND, FOUR_BIT_CACHE_BOUND = 0.05, 0.1, 0.6
# From FAR positions on MLX's decode attention on a GPU has two passes, which one chip computed
# wrongly (mlx issue 4022). A prefill of NEAR tokens uses another kernel.
FAR, NEAR = 1024, 9
# Factor, largest and float bound of logits over all positions. The demo: 3.8 / 2^bits (INT8 0.013,
# INT6 0.055, INT4 0.23, INT3 0.44, INT2 0.78); untrained weights twice that (INT4 0.39 with 2
# layers, 0.49 with 12). Unrelated logits differ by 1.4.
LOGITS_BOUND = (16.0, 1.2, 0.03)
# KL grows with the square of the rounding error, so its root is bounded. The demo: root of the
# KL x 2^bits is 6 (INT8 to INT4) to 7.6 (INT2), 9 for Q8_0 in llama.cpp, which rounds activations
# too; F16 0.0014, BF16 0.0076. Unrelated predictions differ by 3 nats and more.
ROOT_KL_BOUND = (14.0, 2.5, 0.05)
CHECKPOINT = ""


def gate_tokens(vocab_size: int, count: int = POSITIONS) -> list[int]:
    """Random ids, the same for every engine."""
    rng = random.Random(SEED)
    return [rng.randrange(vocab_size) for _ in range(count)]


def logits_digest(engine: Engine, vocab_size: int, context_tokens: int = POSITIONS) -> Digest:
    """An engine's logits over the prompt; its cache is empty afterwards.

    Where the row's workload goes beyond FAR, a token is decoded there too.
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
    """Error of the logits of a token decoded at FAR; expected is the same token in a prefill."""
    ids = gate_tokens(vocab_size, FAR + 1)
    engine.prefill(ids[: FAR + 1 - NEAR])
    engine.prefill(ids[FAR + 1 - NEAR :])
    wanted = engine.last_logits()[None]
    engine.trim(FAR)
    engine.decode(ids[FAR:], lambda: None)
    found = engine.last_logits()[None]
    engine.trim(0)
    return rounded(_errors(wanted, found)[0])


def make_digest(rows: Sequence[Logits], vocab_size: int) -> Digest:
    width = min(len(row) for row in rows)
    if width != vocab_size:
        return {"logits_per_position": width, "logits": []}
    sampled = random.Random(SEED).sample(range(vocab_size), min(SAMPLED_IDS, vocab_size))
    logits = [[rounded(row[i]) for i in sampled] for row in rows]
    return {"logits_per_position": vocab_size, "logits": logits}


def rounded(value: float) -> float | None:
    """Five significant digits; None for NaN and infinity, which JSON cannot hold."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _errors(wanted: Any, found: Any) -> tuple[float, float]:
    """Relative errors of logits (positions, ids): over all positions, and at the worst one.

    The root mean square of the difference over that of `wanted`, each row less its mean, as
    softmax ignores that. Infinite where a logit is not finite.
    """
    wanted, found = (np.array(logits, dtype=np.float64) for logits in (wanted, found))
    if not np.isfinite(found).all():
        return math.inf, math.inf
    wanted, found = (x - x.mean(axis=1, keepdims=True) for x in (wanted, found))
    squares, scale = np.square(found - wanted).mean(axis=1), np.square(wanted).mean()
    return math.sqrt(squares.mean() / scale), math.sqrt(squares.max() / scale)


def logits_error(
    reference: Mapping[str, Digest],
    path: str,
    digest: Digest,
    precision: str,
    engine: str,
    kv_bits: int | None = None,
) -> str | None:
    """The error of a row with wrong logits; None where they are right.

    `reference` is from `edge.bench.reference`, `digest` from the worker.
    """
    checkpoint, own = reference[CHECKPOINT], reference[path]
    bound = LLAMA_CPP_BOUND if engine == LLAMA_CPP else MLX_BOUND
    if kv_bits == 4:
        bound = FOUR_BIT_CACHE_BOUND
    return _conversion_error(checkpoint, own, precision) or _engine_error(own, digest, bound)


def _conversion_error(checkpoint: Digest, own: Digest, precision: str) -> str | None:
    if own["settings"]:
        return f"wrong settings: the artefact has {', '.join(own['settings'])}; convert it again"
    found, _ = _errors(checkpoint["logits"], own["logits"])
    for what, error, bound in (
        (f"tensor {own['tensor']} is", own["tensor_error"], rounding_bound(precision)),
        ("the artefact's logits are", found, rounding_bound(precision, *LOGITS_BOUND)),
    ):
        if error is None or error > bound:
            return (
                f"wrong weights: {what} {_size(error)} off the checkpoint's, {precision} explains "
                f"up to {bound:.2g}; convert it again"
            )
    return None


def _engine_error(own: Digest, digest: Digest, bound: float) -> str | None:
    if own["logits_per_position"] != digest["logits_per_position"]:
        return (
            f"wrong vocabulary: the engine gives {digest['logits_per_position']} logits per "
            f"token, the checkpoint {own['logits_per_position']}; convert it again"
        )
    far = digest.get("far_error", 0.0)
    if far is None or far > bound:
        return (
            f"wrong logits: at position {FAR} a token decoded alone is {_size(far)} off the same "
            f"token in a prompt, rounding explains up to {bound:.2g}; update the engine, or "
            f"measure up to a depth of {FAR} only"
        )
    _, worst = _errors(own["logits"], digest["logits"])
    if worst <= bound:
        return None
    return (
        f"wrong logits: the engine's are {_size(worst)} off those of the artefact's weights, "
        f"rounding explains up to {bound:.2g}; check its rope base, norm and cache, or convert it "
        f"again"
    )


def _size(error: float | None) -> str:
    return "infinitely far" if error is None or not math.isfinite(error) else f"{error:.2g}"


def quality_error(quality: Quality, precision: str) -> str | None:
    """The error of a row with wrong predictions; None within the bound of its precision."""
    kl = quality.kl_mean
    if kl is None:
        broken = quality.perplexity is None
        return "wrong predictions: its logits are not finite" if broken else None
    bound = rounding_bound(precision, *ROOT_KL_BOUND) ** 2
    if kl <= bound:
        return None
    return (
        f"wrong predictions: {kl:.2g} nats per token from {quality.reference}, {precision} "
        f"explains up to {bound:.2g}; convert it again"
    )
