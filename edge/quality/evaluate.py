"""Measure artefacts of one checkpoint against a reference, on the same windows.

windows = make_windows(iter_texts(None), tokenizer, config.vocab_size, "bundled sample")
found = evaluate([Subject("mlx-fp16", ...), Subject("mlx-int4", ...)], "mlx-fp16", windows, config)
found.quality["mlx-int4"].kl_mean
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.device.memory import available_bytes, wired
from edge.model.config import ModelConfig
from edge.quality.divergence import Scores
from edge.quality.groups import PIECES_COMPARED, Groups, make_groups, need_bytes, piece_bytes
from edge.quality.lockstep import Job, Progress, walk
from edge.quality.records import Records
from edge.quality.scorer import Pieces
from edge.quality.subject import Subject, check_comparable, identity
from edge.quality.summary import Quality, summarise
from edge.quality.windows import Windows, digests


@dataclass(frozen=True)
class Evaluated:
    """What was found, by artefact.

    Attributes:
        quality: the figures.
        scores: what they were made of, one per window.
        notes: sentences on how it was done.
    """

    quality: Mapping[str, Quality]
    scores: Mapping[str, Sequence[Scores]]
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
    """Score every artefact on every window, unless that is on record.

    Args:
        subjects: artefacts of one checkpoint, the reference among them.
        reference: the name of one of them, or None to compare with nothing.
        windows: what to score on.
        config: the checkpoint's.
        threads: of llama.cpp.
        folder: where scores are kept while it runs and after; None keeps them nowhere.
        again: compute what is on record too.
        progress: told each artefact's share that is done.

    Raises:
        EdgeError: artefacts are of different models, have random weights, cannot be loaded or
            do not fit into memory.
    """
    check_comparable(subjects)
    by_name = {subject.name: subject for subject in subjects}
    chosen = None if reference is None else by_name[reference]
    job = Job(
        reference=chosen,
        windows=windows,
        records=_records(subjects, chosen, windows, folder, again),
        pieces=Pieces.of(windows.tokens, config.vocab_size),
        vocab_size=config.vocab_size,
        threads=threads,
        progress=progress,
    )
    groups = _groups(job, subjects, config)
    with wired(groups.most_bytes):
        for group in groups.groups:
            walk(job, job.loaded([by_name[name] for name in group]))
    return _found(job, subjects, groups.notes)


def _found(job: Job, subjects: Sequence[Subject], notes: tuple[str, ...]) -> Evaluated:
    keys = list(digests(job.windows))
    scores = {s.name: [job.records[s.name][key] for key in keys] for s in subjects}
    compared = None if job.reference is None else scores[job.reference.name]
    quality = {name: summarise(job.windows, own, compared) for name, own in scores.items()}
    return Evaluated(quality, scores, notes)


def _records(
    subjects: Sequence[Subject],
    reference: Subject | None,
    windows: Windows,
    folder: Path | None,
    again: bool,
) -> dict[str, Records]:
    records = {
        s.name: Records(folder, identity(s, reference), windows.tokens - 1) for s in subjects
    }
    if again:
        for record in records.values():
            record.forget()
    return records


def _groups(job: Job, subjects: Sequence[Subject], config: ModelConfig) -> Groups:
    """Of what is not all on record: that needs no memory."""
    lacking = job.lacking(subjects)
    if not lacking:
        return Groups((), (), 0)
    window, reference = job.windows.tokens, job.reference
    needs = {s.name: need_bytes(s, config, window, job.pieces) for s in job.loaded(lacking)}
    compared = PIECES_COMPARED * piece_bytes(config.vocab_size, job.pieces)
    for name in needs if reference is None else [reference.name]:
        needs[name] += compared
    names = [s.name for s in lacking if s != reference]
    beside = None if reference is None else reference.name
    groups = make_groups(names, needs, beside, available_bytes())
    # The reference alone, where only its own scores are missing.
    return groups if groups.groups else Groups(((),), groups.notes, groups.most_bytes)
