"""Artefacts and their reference walk the windows together.

What compares distributions needs both at once, and a distribution is as long as the vocabulary:
a 3B's over 8192 positions take 1.6 GB. So nothing is stored. The reference's log-probabilities of
a piece of a window are computed once, each artefact's are compared with them, and both are
dropped; a few numbers per position stay. The divergence is exact and memory is bounded, whatever
the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import mlx.core as mx

from edge.quality.divergence import (
    Scores,
    concatenated,
    log_probabilities,
    scores_of,
    to_numpy,
)
from edge.quality.records import Records
from edge.quality.scorer import Pieces, Scorer, check_vocabulary, open_scorer
from edge.quality.subject import Subject
from edge.quality.windows import Ids, Windows, digests, window_digest

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Job:
    """What every group has in common.

    Attributes:
        reference: what artefacts are compared with, if anything.
        windows: all of them.
        records: by artefact, the reference's included; scores are added window by window.
        pieces: computed at a time.
        vocab_size: the checkpoint's.
        threads: of llama.cpp.
        progress: told each artefact's share that is done.
    """

    reference: Subject | None
    windows: Windows
    records: Mapping[str, Records]
    pieces: Pieces
    vocab_size: int
    threads: int
    progress: Progress

    def lacking(self, subjects: Sequence[Subject]) -> list[Subject]:
        """Those with a window that is not on record."""
        return [s for s in subjects if self.pending([s])]

    def pending(self, subjects: Sequence[Subject]) -> list[int]:
        """Windows that one of them lacks."""
        books = [self.records[s.name] for s in subjects]
        keys = enumerate(digests(self.windows))
        return [i for i, key in keys if any(key not in book for book in books)]

    def loaded(self, subjects: Sequence[Subject]) -> list[Subject]:
        """Them and the reference, which comes first."""
        return list(dict.fromkeys([*([self.reference] if self.reference else []), *subjects]))


def walk(job: Job, group: Sequence[Subject]) -> None:
    """Score what is not on record yet; nothing is loaded that is not needed.

    Args:
        job: on what, against what, into what.
        group: to be loaded together; the reference may be among them.

    Raises:
        EdgeError: an artefact cannot be loaded, or is of another model.
    """
    lacking = job.lacking(group)
    pending = job.pending(lacking)
    for subject in group:
        job.progress(subject.name, 1.0 if subject not in lacking else _share(job, pending))
    if not pending:
        return
    with _opened(job, lacking) as scorers:
        step = job.pieces.windows
        for start in range(0, len(pending), step):
            _enter(job, scorers, pending[start : start + step])
            for subject in lacking:
                job.progress(subject.name, _share(job, pending[start + step :]))


def _share(job: Job, left: Sequence[int]) -> float:
    return 1 - len(left) / len(job.windows)


def _enter(job: Job, scorers: Mapping[str, Scorer], chosen: Sequence[int]) -> None:
    """Score some windows and put them on record."""
    reference = None if job.reference is None else job.reference.name
    ids = job.windows.ids[list(chosen)]
    for name, scores in score(scorers, reference, ids, job.pieces).items():
        for window, part in zip(ids, _by_window(scores, len(chosen)), strict=True):
            job.records[name].add(window_digest(window), part)


def score(
    scorers: Mapping[str, Scorer], reference: str | None, ids: Ids, pieces: Pieces
) -> dict[str, Scores]:
    """Figures of every scorer at each position but the last of some windows.

    Args:
        scorers: by name.
        reference: one of them, or None.
        ids: (B, W).
        pieces: computed at a time.
    """
    streams = {name: scorer.logits(ids, pieces) for name, scorer in scorers.items()}
    order = sorted(streams, key=lambda name: name != reference)  # the reference first
    found: dict[str, list[Scores]] = {name: [] for name in scorers}
    targets, start = mx.array(ids[:, 1:].reshape(-1)), 0
    while start < targets.size:
        log_p: mx.array | None = None
        for name in order:
            log_q = log_probabilities(next(streams[name]))
            if name == reference:
                log_p = log_q
            stop = start + log_q.shape[0]
            found[name].append(to_numpy(scores_of(log_q, targets[start:stop], log_p)))
            del log_q
        start = stop
    return {name: concatenated(parts) for name, parts in found.items()}


@contextmanager
def _opened(job: Job, lacking: Sequence[Subject]) -> Iterator[dict[str, Scorer]]:
    with ExitStack() as stack:
        scorers: dict[str, Scorer] = {}
        for subject in job.loaded(lacking):
            scorer = open_scorer(subject.path, job.windows.tokens, job.threads)
            stack.callback(scorer.close)
            check_vocabulary(scorer, subject.name, job.vocab_size)
            scorers[subject.name] = scorer
        yield scorers


def _by_window(scores: Scores, count: int) -> Iterator[Scores]:
    positions = len(scores.nll) // count
    return (scores[slice(i * positions, (i + 1) * positions)] for i in range(count))
