"""The correctness gate: compares an engine's logits with those of the checkpoint.

After its trials a worker feeds a short seeded prompt through the timed calls, half at once and
half token by token, and reports some of the logits. Rounding to four bits changes logits as much
as some errors do, so there are several steps (`edge.bench.reference` computes the expected values):

- conversion: the artefact's settings and weights against the checkpoint's, tensor by tensor and
  as logits of the same float32 network, within a bound that depends on its bits;
- engine: its logits against those of the artefact's own weights in float32, within a bound that
  does not depend on bits;
- shapes: some kernels are wrong for many rows or far positions only. So tokens of the row's own
  prompt length and depth are computed by the timed calls and in small pieces, within the same
  bound. This needs no reference, which would have to be as long;
- batch: every sequence's logits, as they are timed and from unequal lengths, against those of the
  same tokens computed alone, which the other steps check.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from msgspec import UNSET
from msgspec.structs import replace

from edge.bench.engines.engine import LLAMA_CPP, Engine, Ids, Logits
from edge.convert.artefacts.recipes import rounding_bound
from edge.profile.gate import Gate
from edge.profile.profile import Quality, Workload

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
# The same between tokens that one engine computes as they are timed and in pieces, where both are
# rounded. The demo: float32 0.000, float16 0.006, llama.cpp 0.004 (F16) to 0.042 (Q5_K_M), which
# is 0.10 with 30 layers. Of other networks bfloat16 rounds eight times as coarsely, and rounding
# can change the choice of an expert. Unrelated logits differ by 1.4.
LLAMA_CPP_PIECES_BOUND, ANY_NETWORK_BOUND = 0.3, 0.6
# Rows of a piece: more than MLX's attention takes for decoding (8), and no more than edge computes
# without splitting off the last one. Very long prompts have larger pieces, so that there are at
# most MOST_PIECES: each takes about as long as a token.
FEWEST_ROWS, MOST_ROWS, MOST_PIECES = 9, 16, 256
# Places of a prompt at which a token is decoded behind what was computed at once.
PLACES = 8
# Factor, largest and float bound of logits over all positions. The demo: 6 / 2^bits (INT8 0.024,
# INT6 0.096, INT4 0.37, INT3 0.80, INT2 1.27); untrained weights INT4 0.39 with 2 layers, 0.49 with
# 12. Unrelated logits differ by 1.4, so that 2 bits are left to the tensors' check.
LOGITS_BOUND = (16.0, 1.35, 0.03)
# KL grows with the square of the rounding error, so its root is bounded. The demo: root of the
# KL x 2^bits is 6 (INT8 to INT4) to 7.6 (INT2), 9 for Q8_0 in llama.cpp, which rounds activations
# too; F16 0.0014, BF16 0.0076. Unrelated predictions differ by 3 nats and more.
ROOT_KL_BOUND = (14.0, 2.5, 0.05)
# Of a batch with sequences of unequal lengths: the positions of the longest, the difference between
# two, and the steps behind them.
MOST_UNEQUAL, APART, UNEQUAL_STEPS = 64, 11, 4
CHECKPOINT = ""
# A call of an engine, with the positions of every sequence.
Call = tuple[str, list[slice]]


def gate_tokens(vocab_size: int, count: int = POSITIONS, row: int = 0) -> list[int]:
    """Random ids, the same for every engine; of a batch others for each row."""
    rng = random.Random(SEED + row)
    return [rng.randrange(vocab_size) for _ in range(count)]


def logits_digest(engine: Engine, vocab_size: int) -> Digest:
    """An engine's logits over the prompt; its cache is empty afterwards."""
    ids = gate_tokens(vocab_size)
    engine.trim(0)
    engine.prefill(ids[:PREFILLED])
    rows = [engine.last_logits()]
    for token in ids[PREFILLED:]:
        engine.decode([token], lambda: None)
        rows.append(engine.last_logits())
    engine.trim(0)
    return make_digest(rows, vocab_size)


def check_shapes(
    engine: Engine, workload: Workload, vocab_size: int, longest: int, bound: float
) -> Gate:
    """Compares tokens computed as they are timed with the same in pieces; empties the cache.

    On a GPU the prompt is longer than the workload's where the model's context, `longest`, allows.
    For a prompt of P tokens the cost is two prefills of P, P / 16 of 16, and about 27 steps.
    """
    depth, rows = workload.depth, workload.prompt
    if rows:
        rows = max(rows, min(engine.least_rows(), longest - depth))
    ids = gate_tokens(vocab_size, max(depth + rows, workload.context_tokens))
    last = range(len(ids) - 1, len(ids))
    decoded = _decoded(workload, rows)
    prefilled = [depth + rows - 1] if rows else []
    wanted = _in_pieces(engine, ids, [part[-1] for part in (*decoded, last)] + prefilled)
    found = [(last[0], _step(engine, ids, last))]
    engine.trim(0)
    if depth:
        engine.prefill(ids[:depth])
    # Other tokens first, as in every pass of a trial: they must leave no trace.
    engine.prefill(ids[depth : depth + max(rows, STEPPED)][::-1])
    engine.trim(depth)
    if rows:
        engine.prefill(ids[depth : depth + rows])
        found.append((prefilled[0], engine.last_logits()))
    found += [(part[-1], _step(engine, ids, part)) for part in decoded]
    engine.trim(0)
    errors = _row_errors([wanted[at] for at, _ in found], [logits for _, logits in found])
    worst = int(np.argmax(errors))
    return Gate(
        prompt_tokens=rows,
        depth=depth,
        positions=len(found),
        worst_position=found[worst][0],
        worst_error=rounded(errors[worst]),
        bound=bound,
    )


def check_batch(
    engine: Engine, alone: Engine, workload: Workload, vocab_size: int, gate: Gate
) -> Gate:
    """Compares each sequence of a batch with the same tokens computed alone; empties the caches.

    `alone` has the same weights and the result `gate`, which is returned with this one. The cost is
    two prefills of all sequences by the engine and one by `alone`, and about 40 steps.
    """
    calls = _batch_calls(workload)
    count = max(part.stop for _, parts in calls for part in parts)
    rows = [gate_tokens(vocab_size, count, row) for row in range(workload.batch)]
    of_rows = [[(kind, [parts[row]]) for kind, parts in calls] for row in range(len(rows))]
    wanted = [list(_answers(alone, own, [ids])) for own, ids in zip(of_rows, rows, strict=True)]
    engine.trim(0)
    # Other tokens first, as in every pass of a trial: they must leave no trace.
    engine.prefill([row[::-1] for row in rows])
    found = _answers(engine, calls, rows)
    by_call = zip(zip(*wanted, strict=True), found, strict=True)
    errors = np.stack([_row_errors(*logits) for logits in by_call])
    call, row = np.unravel_index(np.argmax(errors), errors.shape)
    gate = replace(gate, positions=gate.positions + errors.size)
    worst = replace(
        gate,
        worst_position=calls[call][1][row].stop - 1,
        worst_error=rounded(errors[call, row]),
        worst_sequence=int(row),
    )
    return max(gate, worst, key=lambda each: each.share)


def _batch_calls(workload: Workload) -> list[Call]:
    """A pass as it is timed, then one that begins at unequal lengths, as answers are served.

    At equal ones a position that all sequences share would be right.
    """
    depth, start = workload.depth, workload.decode_depth
    room = min(max(workload.context_tokens, POSITIONS), MOST_UNEQUAL) - UNEQUAL_STEPS
    lengths = [room - APART * row % room for row in range(workload.batch)]
    calls = [
        ("prefill", [slice(0, depth)] * workload.batch),
        ("prefill", [slice(depth, depth + workload.prompt)] * workload.batch),
        ("decode", [slice(start, start + min(workload.generate, STEPPED))] * workload.batch),
        ("prefill", [slice(0, length) for length in lengths]),
        ("decode", [slice(length, length + UNEQUAL_STEPS) for length in lengths]),
    ]
    return [(kind, parts) for kind, parts in calls if parts[0].start < parts[0].stop]


def _answers(
    engine: Engine, calls: Sequence[Call], rows: Sequence[Sequence[int]]
) -> Iterator[Logits]:
    """The logits after each call with the ids of a batch, or of one row; empties the cache."""
    for kind, parts in calls:
        if len({part.start for part in parts}) == 1:
            engine.trim(parts[0].start)
        ids: Ids = [row[part] for row, part in zip(rows, parts, strict=True)]
        ids = ids if len(rows) > 1 else ids[0]
        if kind == "prefill":
            engine.prefill(ids)
        else:
            engine.decode(ids, lambda: None)
        yield engine.last_logits()
    engine.trim(0)


def _decoded(workload: Workload, rows: int) -> list[range]:
    """Positions to decode behind a prompt that was computed at once, the last ones first.

    One token at some places of the prompt, the first of the timed generation alone, and its first
    few in one call.
    """
    depth, start = workload.depth, workload.decode_depth
    count = min(PLACES, rows // MOST_ROWS)
    places = {depth + rows * i // count for i in range(count)} - {0}
    steps = min(workload.generate, STEPPED)
    parts = [range(at, at + 1) for at in ({*places, start} if steps else places)]
    parts += [range(start, start + steps)] if steps > 1 else []
    return sorted(parts, key=lambda part: part[0], reverse=True)


def _step(engine: Engine, ids: Sequence[int], positions: range) -> Logits:
    """Logits after the ids at `positions`, decoded behind those before them in the cache."""
    engine.trim(positions.start)
    engine.decode(ids[positions.start : positions.stop], lambda: None)
    return engine.last_logits()


def _in_pieces(engine: Engine, ids: Sequence[int], ends: Sequence[int]) -> dict[int, Logits]:
    """Logits at each of `ends`; all ids up to the last are computed in pieces of a few rows.

    A piece that would be shorter begins before the end of the one before: the rows of one that
    begins where a timed call does could be wrong in the same way.
    """
    engine.trim(0)
    most = max(MOST_ROWS, -(-len(ids) // MOST_PIECES))
    found, held = {}, 0
    for stop in sorted({end + 1 for end in ends}):
        if held > stop - FEWEST_ROWS:
            held = max(stop - FEWEST_ROWS, 0)
            engine.trim(held)
        count = -(-(stop - held) // most)
        cuts = [held + (stop - held) * i // count for i in range(count + 1)]
        for begin, end in pairwise(cuts):
            engine.prefill(ids[begin:end])
        found[stop - 1], held = engine.last_logits(), stop
    return found


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


def _row_errors(wanted: Any, found: Any) -> Any:
    """Relative error of the logits (positions, ids) at each position; infinite if not finite.

    The root mean square of the difference over that of all of `wanted`, each row less its mean,
    as softmax ignores that.
    """
    wanted, found = (np.array(logits, dtype=np.float64) for logits in (wanted, found))
    with np.errstate(invalid="ignore", divide="ignore"):
        wanted, found = (x - x.mean(axis=1, keepdims=True) for x in (wanted, found))
        errors = np.sqrt(np.square(found - wanted).mean(axis=1) / np.square(wanted).mean())
    return np.where(np.isfinite(errors), errors, np.inf)


def pieces_bound(engine: str, kv_bits: int | None, as_is: bool) -> float:
    """What rounding explains of the difference between timed calls and pieces."""
    if as_is:
        return ANY_NETWORK_BOUND
    if kv_bits == 4:
        return FOUR_BIT_CACHE_BOUND
    return LLAMA_CPP_PIECES_BOUND if engine == LLAMA_CPP else MLX_BOUND


def with_reference(
    gate: Gate, own: Digest, digest: Digest, engine: str, kv_bits: int | None
) -> Gate:
    """Adds the error of a worker's logits against those of the artefact's own weights."""
    if own["logits_per_position"] != digest["logits_per_position"]:
        return gate
    worst = rounded(_row_errors(own["logits"], digest["logits"]).max())
    bound = LLAMA_CPP_BOUND if engine == LLAMA_CPP else MLX_BOUND
    bound = FOUR_BIT_CACHE_BOUND if kv_bits == 4 else bound
    return replace(gate, reference_error=worst, reference_bound=bound)


def shapes_error(gate: Gate) -> str | None:
    """The error of a row whose logits depend on how its tokens are passed; else None."""
    if gate.share <= 1:
        return None
    if gate.worst_sequence is not UNSET:
        return (
            f"wrong logits: sequence {gate.worst_sequence + 1} of the batch has others than alone, "
            f"at position {gate.worst_position} {_size(gate.worst_error)} off, rounding explains "
            f"up to {gate.bound:.2g}; update the engine, or use a smaller -npl"
        )
    return (
        f"wrong logits: at position {gate.worst_position} the timed calls' are "
        f"{_size(gate.worst_error)} off those of the same tokens in small pieces, rounding "
        f"explains up to {gate.bound:.2g}; update the engine, or use a smaller -p or -d"
    )


def logits_error(
    reference: Mapping[str, Digest], path: str, digest: Digest, precision: str, gate: Gate
) -> str | None:
    """The error of a row with wrong weights or logits; None where they are right.

    `reference` is from `edge.bench.reference`, `digest` from the worker, `gate` has its error.
    """
    checkpoint, own = reference[CHECKPOINT], reference[path]
    return _conversion_error(checkpoint, own, precision) or _engine_error(own, digest, gate)


def _conversion_error(checkpoint: Digest, own: Digest, precision: str) -> str | None:
    if own["settings"]:
        return f"wrong settings: the artefact has {', '.join(own['settings'])}; convert it again"
    errors = _row_errors(checkpoint["logits"], own["logits"])
    found = float(np.sqrt(np.square(errors).mean()))
    for what, error, bound in (
        (f"tensor {own['tensor']} is", own["tensor_error"], rounding_bound(precision)),
        ("the artefact's logits are", found, rounding_bound(precision, *LOGITS_BOUND)),
    ):
        if not _is_within(error, bound):
            return (
                f"wrong weights: {what} {_size(error)} off the checkpoint's, {precision} explains "
                f"up to {bound:.2g}; convert it again"
            )
    return None


def _engine_error(own: Digest, digest: Digest, gate: Gate) -> str | None:
    if own["logits_per_position"] != digest["logits_per_position"]:
        return (
            f"wrong vocabulary: the engine gives {digest['logits_per_position']} logits per "
            f"token, the checkpoint {own['logits_per_position']}; convert it again"
        )
    bound = gate.reference_bound or 0.0
    if _is_within(gate.reference_error, bound):
        return None
    return (
        f"wrong logits: the engine's are {_size(gate.reference_error)} off those of the artefact's "
        f"weights, rounding explains up to {bound:.2g}; check its rope base, norm and cache, or "
        f"convert it again"
    )


def _is_within(error: float | None, bound: float) -> bool:
    return error is not None and error <= bound


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
