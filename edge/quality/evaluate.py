"""Quality of the artefacts of one checkpoint, all scored on the same windows.

`evaluate` runs here, `evaluate_in_child` in a process of its own, whose memory is free before
anything else is measured.

Tokens of one window share their context, so their errors are not independent. The window is
therefore the unit of every standard error (cluster-robust, for the ratio of two sums over windows),
and an artefact is compared with the reference by the differences of each window.
"""

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import structs

from edge.child import child_main, run_child
from edge.convert.artefacts.manifest import origin_digest
from edge.convert.checkpoint import Checkpoint, reopened
from edge.convert.targets import file_bytes
from edge.device.memory import available_bytes, wired
from edge.device.software import compared_versions
from edge.distributed import broadcast, check_same, gather, rank, ranks
from edge.errors import EdgeError
from edge.model.config import ModelConfig
from edge.model.load import compute_dtype
from edge.model.memory import HEADROOM_BYTES, check_room, required_bytes
from edge.profile.profile import QualityFigures
from edge.quality.corpus import Windows, check_trained, windows_of
from edge.quality.records import Records, Subject, identity
from edge.quality.score import SCORE, GgufShape, Job, Progress, Scores, score_group
from edge.stats import interval

# Version of the scores, to be raised when the same input gives other scores.
SCORING = 2
# Arrays of a piece's size during a comparison: both distributions, a product, incoming logits.
PIECES_COMPARED = 5
# llama.cpp's own logits, those of its graph, and our copy.
PIECES_IN_LLAMA_CPP = 3
CACHE_STEP, F16_BYTES = 256, 2
CHILD_TIMEOUT_S = 4 * 3600
SMALLER = "choose a smaller --reference such as mlx-int8, a shorter --window or --reference none"
# exp of it is finite, also times a standard error.
MOST_NATS = 500.0
Interval = tuple[float, float]
NO_REFERENCE = "there is no reference, so KL divergence and top-1 agreement are missing"
ONE_WINDOW = "one window gives no standard error and no interval; use more tokens"
NOT_FINITE = "the logits are not finite: the artefact is broken; convert it again"


class Summary(QualityFigures, frozen=True, kw_only=True):
    """Figures of one artefact; `reasons` say why those that are None could not be computed.

    Perplexity is exp of the mean of -log q in nats; a ratio to the reference's above 1 is worse.
    """

    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """Figures and scores (windows, tokens - 1) by artefact; `notes` on how they were computed."""

    quality: Mapping[str, Summary]
    scores: Mapping[str, Scores]
    notes: tuple[str, ...]


def evaluate(
    subjects: Sequence[Subject],
    reference: str | None,
    windows: Windows,
    config: ModelConfig | GgufShape,
    folder: Path,
    threads: int,
    again: bool = False,
    progress: Progress = lambda *_: None,
) -> Evaluated:
    """Score every artefact on every window whose scores are not stored in `folder`.

    `reference` names one of the subjects; `threads` are llama.cpp's; `again` ignores and replaces
    stored scores. Under mlx.launch the ranks share the windows, and rank 0 stores the scores. An
    EdgeError if an artefact is of another model or does not fit into memory.
    """
    if (last := int(windows.ids.max())) >= config.vocab_size:
        raise EdgeError(
            f"the texts have the token {last} and the model's vocabulary ends at "
            f"{config.vocab_size - 1}; leave that token's text out of the corpus."
        )
    chosen = next((subject for subject in subjects if subject.name == reference), None)
    beside = None if chosen is None else identity(chosen)
    common = {"scoring": SCORING, "positions": windows.tokens - 1, "reference": beside}
    if ranks() > 1:
        _check_ranks(subjects, windows)
    stored = folder if rank() == 0 else None
    records: dict[str, Records[bytes]] = {
        s.name: Records(stored, {**identity(s), **common}, bytes, again) for s in subjects
    }
    if ranks() > 1:
        _share(records, windows)
    job = Job(chosen, windows, config, records, threads, progress)
    notes = _score_all(job, subjects)
    scores = {
        name: np.stack([np.frombuffer(record[key], SCORE) for key in windows.digests])
        for name, record in records.items()
    }
    compared = None if chosen is None else scores[chosen.name]
    quality = {name: summarise(windows, own, compared) for name, own in scores.items()}
    return Evaluated(quality, scores, tuple(notes))


def evaluate_in_child(
    checkpoint: Checkpoint,
    artefacts: Mapping[str, Path],
    reference: str,
    folder: Path,
    threads: int,
    tokens: int,
) -> dict[str, dict[str, Any]]:
    """Fields of a profile's `Quality`, and `reasons`, by the names of the artefacts."""
    question = {
        **checkpoint.question(),
        "artefacts": {name: str(path) for name, path in artefacts.items()},
        "reference": reference,
        "folder": str(folder),
        "threads": threads,
        "tokens": tokens,
    }
    found: dict[str, dict[str, Any]] = run_child(
        "edge.quality.evaluate", question, CHILD_TIMEOUT_S, "the quality"
    )
    return found


def _answer(question: dict[str, Any]) -> dict[str, dict[str, Any]]:
    checkpoint = reopened(question)
    check_trained(checkpoint)
    limit = checkpoint.config.max_position_embeddings
    windows = windows_of(limit, checkpoint.tokenizer, tokens=question["tokens"])
    found = evaluate(
        [Subject(name, Path(path)) for name, path in question["artefacts"].items()],
        question["reference"],
        windows,
        checkpoint.config,
        Path(question["folder"]),
        question["threads"],
    )
    common = {
        "reference": question["reference"],
        "corpus": windows.corpus.name,
        "corpus_sha256": windows.corpus.sha256,
        "window": windows.tokens,
    }
    return {name: {**structs.asdict(one), **common} for name, one in found.quality.items()}


def _score_all(job: Job, subjects: Sequence[Subject]) -> list[str]:
    """Score what is not stored, in groups that fit into memory; notes about that."""
    missing = job.missing(subjects)
    if not missing:
        return []
    needs = {s: need_bytes(s, job) for s in job.with_reference(missing)}
    base = PIECES_COMPARED * job.piece_bytes
    room, free_bytes = available_bytes(), 0  # without a reference each goes alone
    if job.reference is not None:
        base += needs.pop(job.reference)
        # The same groups on all ranks, which score them together.
        free_bytes = min(int(each) for each in gather(str(room.bytes - base).encode()))
    groups = make_groups(needs, free_bytes)
    sizes = [base + sum(needs[subject] for subject in group) for group in groups]
    largest = sizes.index(max(sizes))
    names = " and ".join(subject.name for subject in job.with_reference(groups[largest]))
    what = f"{names} need {sizes[largest] / 1e9:.1f} GB together"
    shortage = check_room(sizes[largest], room, what, SMALLER)
    notes = [] if shortage is None else [shortage]
    if job.reference is not None and len(groups) > 1:
        notes.append(f"{job.reference.name} was computed {len(groups)} times to save memory")
    with wired(sizes[largest]):
        for group in groups:
            score_group(job, job.with_reference(group))
    return notes


def _check_ranks(subjects: Sequence[Subject], windows: Windows) -> None:
    """An EdgeError on every rank if one would compute other scores."""
    facts = compared_versions() | {
        "corpus": windows.corpus.sha256[:12],
        "windows": str(len(windows)),
    }
    for subject in subjects:
        known = identity(subject)
        how = f"{known['compute_dtype']} on the {known['device']}"
        facts[subject.name] = f"{origin_digest(subject.path)} in {how}"
    check_same(facts)


def _share(records: Mapping[str, Records[bytes]], windows: Windows) -> None:
    """Gives rank 0's stored scores of the windows to every rank."""
    wanted = set(windows.digests)
    stored = {
        name: {key: value for key, value in record.items() if key in wanted}
        for name, record in records.items()
    }
    for name, scores in msgspec.msgpack.decode(broadcast(msgspec.msgpack.encode(stored))).items():
        records[name].update(scores)


def make_groups(needs: Mapping[Subject, int], free_bytes: int) -> list[list[Subject]]:
    """Artefacts in their order, grouped so that each group needs at most `free_bytes` or is one."""
    groups: list[list[Subject]] = []
    left = -1
    for subject, need in needs.items():
        if need > left:
            groups.append([])
            left = free_bytes
        groups[-1].append(subject)
        left -= need
    return groups or [[]]


def need_bytes(subject: Subject, job: Job) -> int:
    window, pieces, config = job.windows.tokens, job.pieces, job.config
    if subject.is_mlx:
        assert isinstance(config, ModelConfig)
        need = required_bytes(subject.path, config, compute_dtype(), window, None, pieces.positions)
        return need.total_bytes + (pieces.windows - 1) * need.working_bytes
    positions = -(-window // CACHE_STEP) * CACHE_STEP
    if isinstance(config, ModelConfig):
        heads = config.num_hidden_layers * config.num_key_value_heads
        elements = 2 * heads * config.head_dim
    else:
        elements = config.cache_elements
    logits = PIECES_IN_LLAMA_CPP * job.piece_bytes
    return file_bytes(subject.path) + F16_BYTES * elements * positions + logits + HEADROOM_BYTES


def summarise(windows: Windows, own: Scores, reference: Scores | None) -> Summary:
    """Figures of one artefact from its and the reference's scores, each (windows, tokens - 1)."""
    used = int(windows.scored.any(axis=1).sum())
    figures: dict[str, Any] = {"tokens": int(windows.scored.sum()), "windows": used}
    columns = ("nll",) if reference is None else ("nll", "kl")
    if not all(np.isfinite(own[column][windows.scored]).all() for column in columns):
        return Summary(**figures, reasons=(NOT_FINITE,))
    reasons: tuple[str, ...] = ()
    figures |= _perplexity(own, windows)
    if reference is None:
        reasons = (NO_REFERENCE,)
    else:
        figures |= _compared(own, reference, windows)
    if used < 2:
        reasons += (ONE_WINDOW,)
    return Summary(**figures, reasons=reasons)


def _perplexity(own: Scores, windows: Windows) -> dict[str, Any]:
    nll, nll_of_windows = _mean(own["nll"], windows)
    perplexity, size, n = _exp(nll), int(windows.bytes.sum()), len(nll_of_windows)
    bits = nll * int(windows.scored.sum()) / math.log(2)
    error = statistics.stdev(nll_of_windows) / math.sqrt(n) if n > 1 else None
    return {
        "perplexity": perplexity,
        "perplexity_se": None if error is None else perplexity * error,
        "bits_per_byte": bits / size if size else None,
    }


def _compared(own: Scores, reference: Scores, windows: Windows) -> dict[str, Any]:
    change, changes = _mean(own["nll"].astype(np.float64) - reference["nll"], windows)
    kl, kl_of_windows = _mean(own["kl"], windows)
    same, same_of_windows = _mean(own["top"] == reference["top"], windows)
    kl_scored = own["kl"][windows.scored].astype(np.float64)
    between = interval(changes)
    return {
        "perplexity_ratio": _exp(change),
        "perplexity_ratio_ci95": between and (_exp(between[0]), _exp(between[1])),
        "kl_mean": kl,
        "kl_mean_ci95": _interval(kl_of_windows, math.inf),
        "kl_p99": float(np.quantile(kl_scored, 0.99)),
        "kl_max": float(kl_scored.max()),
        "top1_agreement": same,
        "top1_agreement_ci95": _interval(same_of_windows, 1.0),
    }


def _interval(values: list[float], most: float) -> Interval | None:
    """Student's interval of the mean, cut to 0 and `most`."""
    found = interval(values)
    return found and (max(0.0, found[0]), min(most, found[1]))


def _exp(nats: float) -> float:
    """Finite also for a broken artefact, whose -log q can be huge."""
    return math.exp(min(nats, MOST_NATS))


def _mean(values: np.ndarray, windows: Windows) -> tuple[float, list[float]]:
    """Mean over the scored positions of values (windows, tokens - 1), and a value per window.

    The spread of these gives the cluster-robust standard error of the mean (Cochran, Sampling
    Techniques, ch. 6); where counts are equal they are the windows' own means.
    """
    scored = windows.scored
    table = np.where(scored, values.astype(np.float64), 0.0)
    used = scored.any(axis=1)
    sums, counts = table.sum(axis=1)[used], scored.sum(axis=1)[used]
    mean = float(sums.sum() / counts.sum())
    return mean, list(mean + (sums - mean * counts) / counts.mean())


if __name__ == "__main__":
    sys.exit(child_main(_answer))
