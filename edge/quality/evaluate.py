"""Measure artefacts of one checkpoint against a reference, on the same windows."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.device.memory import MemoryRoom, available_bytes, wired
from edge.errors import EdgeError
from edge.model.config import ModelConfig
from edge.model.load import compute_dtype
from edge.model.memory import FORCE, HEADROOM_BYTES, required_bytes
from edge.quality.corpus import Windows
from edge.quality.records import Records, Subject, identity
from edge.quality.score import SCORE, Job, Progress, Scores, score_group
from edge.quality.summary import Quality, summarise

# To be raised when scores come out otherwise for the same input.
SCORING = 2
# While a piece is compared: both distributions, a product of them, and logits that come in.
PIECES_COMPARED = 5
# llama.cpp's own logits, those of its graph, and our copy.
PIECES_IN_LLAMA_CPP = 3
CACHE_STEP, F16_BYTES = 256, 2


@dataclass(frozen=True)
class Evaluated:
    """Figures and scores (windows, tokens - 1) by artefact, and how they were computed."""

    quality: Mapping[str, Quality]
    scores: Mapping[str, Scores]
    notes: tuple[str, ...]


def evaluate(
    subjects: Sequence[Subject],
    reference: str | None,
    windows: Windows,
    config: ModelConfig,
    threads: int = 1,
    folder: Path | None = None,
    again: bool = False,
    progress: Progress = lambda *_: None,
) -> Evaluated:
    """Score every artefact of one checkpoint on every window, unless that is on record.

    `reference` names one of the subjects; scores are kept in `folder` if there is one, and
    computed anew where `again` is set. `threads` are llama.cpp's.

    Raises:
        EdgeError: an artefact cannot be loaded, is of another model or does not fit into memory.
    """
    chosen = next((subject for subject in subjects if subject.name == reference), None)
    beside = None if chosen is None else identity(chosen)
    common = {"scoring": SCORING, "positions": windows.tokens - 1, "reference": beside}
    records: dict[str, Records[bytes]] = {
        s.name: Records(folder, {**identity(s), **common}, bytes, again) for s in subjects
    }
    job = Job(chosen, windows, config, records, threads, progress)
    notes = _score_all(job, subjects)
    scores = {
        name: np.stack([np.frombuffer(record[key], SCORE) for key in windows.digests])
        for name, record in records.items()
    }
    compared = None if chosen is None else scores[chosen.name]
    quality = {name: summarise(windows, own, compared) for name, own in scores.items()}
    return Evaluated(quality, scores, tuple(notes))


def _score_all(job: Job, subjects: Sequence[Subject]) -> list[str]:
    """Score what is not on record, in groups that fit into memory; sentences about that."""
    missing = job.missing(subjects)
    if not missing:
        return []
    needs = {s: need_bytes(s, job) for s in job.with_reference(missing)}
    base = PIECES_COMPARED * job.piece_bytes
    room, free_bytes = available_bytes(), 0  # without a reference each goes alone
    if job.reference is not None:
        base += needs.pop(job.reference)
        free_bytes = room.bytes - base
    groups = make_groups(needs, free_bytes)
    sizes = [base + sum(needs[subject] for subject in group) for group in groups]
    largest = sizes.index(max(sizes))
    notes = _shortage(job.with_reference(groups[largest]), sizes[largest], room)
    if job.reference is not None and len(groups) > 1:
        notes.append(f"for want of memory {job.reference.name} was computed {len(groups)} times")
    with wired(sizes[largest]):
        for group in groups:
            score_group(job, job.with_reference(group))
    return notes


def make_groups(needs: Mapping[Subject, int], free_bytes: int) -> list[list[Subject]]:
    """Artefacts that together need at most so much, in their order; one alone at least."""
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
    """Memory that an artefact takes while it is scored, from its headers."""
    window, pieces, config = job.windows.tokens, job.pieces, job.config
    if subject.is_mlx:
        need = required_bytes(subject.path, config, compute_dtype(), window, None, pieces.positions)
        return need.total_bytes + (pieces.windows - 1) * need.working_bytes
    positions = -(-window // CACHE_STEP) * CACHE_STEP
    heads = config.num_hidden_layers * config.num_key_value_heads
    cache = 2 * F16_BYTES * heads * config.head_dim * positions
    logits = PIECES_IN_LLAMA_CPP * job.piece_bytes
    return subject.path.stat().st_size + cache + logits + HEADROOM_BYTES


def _shortage(group: Sequence[Subject], size: int, room: MemoryRoom) -> list[str]:
    """A warning where a group may not fit, an EdgeError where it cannot and is not forced."""
    if size <= room.bytes:
        return []
    said = (
        f"{' and '.join(subject.name for subject in group)} need {size / 1e9:.1f} GB together, "
        f"and {room.bytes / 1e9:.1f} GB of {room.what} are available"
    )
    if size > room.most_bytes and os.environ.get(FORCE, "0") in ("", "0"):
        raise EdgeError(
            f"{said}; close programs, choose a smaller --reference such as mlx-int8, a shorter "
            f"--window or --reference none, or set {FORCE}=1 to try all the same."
        )
    return [said]
