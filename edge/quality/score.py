"""Scores of artefacts and their reference on the same windows, computed with MLX.

A comparison needs both distributions over the vocabulary; those of a 3B model at 8192 positions
take 1.6 GB. So the reference's log-probabilities are computed for one piece of a window, compared
with each artefact's, and dropped. The divergence is exact and memory does not grow with the corpus.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np

from edge.distributed import gather, rank, ranks
from edge.errors import EdgeError
from edge.llama_cpp.session import LlamaSession
from edge.model.config import ModelConfig
from edge.model.kv_cache import make_cache
from edge.model.load import load_model
from edge.quality.corpus import Ids, Windows
from edge.quality.records import Records, Subject

# Float32 logits of a piece. About five arrays of this size exist at a time.
PIECE_BYTES = 128 << 20
# llama.cpp's largest batch, and that of our decode loop.
MOST_POSITIONS = 2048
# Short windows are batched up to this many positions. More was not faster, and results are stored
# and progress is shown only after each step.
POSITIONS_AT_ONCE, MOST_WINDOWS = 512, 8
# Nats: where log p and log q are this close, q - p is computed as p (q / p - 1), which is exact.
NEAR = 0.25

# With p the reference's distribution and q the artefact's at a position: -log q of the true next
# token; the KL divergence, the sum of p log(p / q) over the vocabulary, NaN without a reference;
# the most probable id and its log-probability.
SCORE = np.dtype(
    [("nll", np.float32), ("kl", np.float32), ("top", np.int32), ("top_log_q", np.float32)]
)
Scores = np.ndarray[Any, np.dtype[np.void]]
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Pieces:
    """Size of a scoring step: some positions of one window, or several whole windows."""

    windows: int
    positions: int


def pieces_of(window: int, vocab_size: int) -> Pieces:
    """The largest pieces whose logits fit in PIECE_BYTES."""
    room = max(1, PIECE_BYTES // (4 * vocab_size))
    positions = min(room, window - 1, MOST_POSITIONS)
    if positions < window - 1:
        return Pieces(1, positions)
    fit = min(room, POSITIONS_AT_ONCE) // positions
    return Pieces(min(max(fit, 1), MOST_WINDOWS), positions)


class MlxScorer:
    """Our network, as all other commands run it."""

    def __init__(self, path: Path):
        self._model = load_model(path)
        self.vocab_size = self._model.config.vocab_size

    def logits(self, windows: Ids, pieces: Pieces) -> Iterator[mx.array]:
        """Ids (B, W) -> float32 logits after each token but the last, in order.

        Yields pieces (n, vocab); together (B * (W - 1), vocab).
        """
        ids = mx.array(windows[:, :-1])
        if pieces.positions >= ids.shape[1]:
            yield _flat(self._model(ids))
            return
        cache = make_cache(self._model)
        for start in range(0, ids.shape[1], pieces.positions):
            yield _flat(self._model(ids[:, start : start + pieces.positions], cache))

    def close(self) -> None:
        del self._model
        mx.clear_cache()


def _flat(logits: mx.array) -> mx.array:
    return logits.reshape(-1, logits.shape[-1]).astype(mx.float32)


class LlamaCppScorer:
    """llama.cpp with its defaults, as `edge bench` runs it."""

    def __init__(self, path: Path, window: int, threads: int):
        self._session = LlamaSession(path, window, threads)
        self.vocab_size = self._session.vocab_size
        self.close = self._session.close

    def logits(self, windows: Ids, pieces: Pieces) -> Iterator[mx.array]:
        whole = []
        for window in windows[:, :-1]:
            self._session.trim(0)
            for start in range(0, len(window), pieces.positions):
                ids = [int(i) for i in window[start : start + pieces.positions]]
                whole.append(self._session.all_logits(ids))
                if pieces.windows == 1:
                    yield mx.array(whole.pop())
        if whole:
            yield mx.array(np.concatenate(whole))


Scorer = MlxScorer | LlamaCppScorer


def open_scorer(subject: Subject, window: int, threads: int) -> Scorer:
    if subject.is_mlx:
        return MlxScorer(subject.path)
    return LlamaCppScorer(subject.path, window, threads)


def score(
    scorers: Mapping[str, Scorer], reference: str | None, ids: Ids, pieces: Pieces
) -> dict[str, Scores]:
    """Scores (B, W - 1) of every scorer on windows (B, W); the reference is one of them."""
    order = sorted(scorers, key=lambda name: name != reference)  # the reference first
    streams = {name: scorers[name].logits(ids, pieces) for name in order}
    found: dict[str, list[Scores]] = {name: [] for name in order}
    targets, start = mx.array(ids[:, 1:].reshape(-1)), 0
    while start < targets.size:
        log_p: mx.array | None = None
        for name, stream in streams.items():
            log_q = log_softmax(next(stream))
            if name == reference:
                log_p = log_q
            stop = start + log_q.shape[0]
            found[name].append(scores_of(log_q, targets[start:stop], log_p))
            del log_q
        start = stop
    return {name: np.concatenate(parts).reshape(len(ids), -1) for name, parts in found.items()}


def scores_of(log_q: mx.array, targets: mx.array, log_p: mx.array | None) -> Scores:
    """Scores (n,) of log-probabilities (n, vocab) at the true next ids (n,).

    `log_p` is the reference's: the same array for the reference itself, None without one.
    """
    nll = -mx.take_along_axis(log_q, targets[:, None], axis=-1)[:, 0]
    if log_p is None:
        kl = mx.full(nll.shape, mx.nan)
    else:
        kl = mx.zeros(nll.shape) if log_p is log_q else _divergence(log_p, log_q)
    columns = nll, kl, mx.argmax(log_q, axis=-1), mx.max(log_q, axis=-1)
    mx.eval(columns)
    found = np.empty(nll.shape, SCORE)
    for name, column in zip(SCORE.names or (), columns, strict=True):
        found[name] = np.array(column)
    return found


@partial(mx.compile, shapeless=True)
def log_softmax(logits: mx.array) -> mx.array:
    """Float32 logits (n, vocab) -> log-probabilities (n, vocab)."""
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


@partial(mx.compile, shapeless=True)
def _divergence(log_p: mx.array, log_q: mx.array) -> mx.array:
    """KL divergence over the last axis.

    The terms are p log(p / q) - p + q, whose sum is the same because p and q sum to 1. None of them
    is negative, so nothing cancels. The sum of p log(p / q) has the rounding error of both
    normalisers, 1e-6 or more, which is as large as the divergence of two half precisions.
    """
    p, ratio = mx.exp(log_p), log_p - log_q
    is_near = mx.abs(ratio) < NEAR
    near = p * (ratio + mx.expm1(-mx.where(is_near, ratio, 0.0)))
    far = p * ratio - p + mx.exp(log_q)
    return mx.sum(mx.where(is_near, near, far), axis=-1)


@dataclass(frozen=True)
class GgufShape:
    """The part of a GGUF file's network that memory depends on."""

    vocab_size: int
    cache_elements: int  # of one position


@dataclass(frozen=True)
class Job:
    """The part of an evaluation that groups share; `records` are by the artefact's name."""

    reference: Subject | None
    windows: Windows
    config: ModelConfig | GgufShape
    records: Mapping[str, Records[bytes]]
    threads: int
    progress: Progress

    @cached_property
    def pieces(self) -> Pieces:
        return pieces_of(self.windows.tokens, self.config.vocab_size)

    @property
    def piece_bytes(self) -> int:
        return 4 * self.config.vocab_size * self.pieces.positions * self.pieces.windows

    def missing(self, subjects: Sequence[Subject]) -> list[Subject]:
        return [subject for subject in subjects if self.pending([subject])]

    def pending(self, subjects: Sequence[Subject]) -> list[int]:
        """Indices of the windows that one of the subjects has no scores of."""
        records = [self.records[subject.name] for subject in subjects]
        keys = enumerate(self.windows.digests)
        return [i for i, key in keys if any(key not in record for record in records)]

    def with_reference(self, subjects: Sequence[Subject]) -> list[Subject]:
        first = [] if self.reference is None else [self.reference]
        return list(dict.fromkeys([*first, *subjects]))


def score_group(job: Job, group: Sequence[Subject]) -> None:
    """Score artefacts that fit into memory together, on the windows without stored scores.

    The ranks of mlx.launch take the steps of one process in turn, and all get all scores.
    """
    missing = job.missing(group)
    pending, step = job.pending(missing), job.pieces.windows
    at_once = step * ranks()
    reference = None if job.reference is None else job.reference.name
    with ExitStack() as stack:
        scorers = {s.name: _open(job, s, stack) for s in job.with_reference(missing)}
        for start in range(0, len(pending) + at_once, at_once):
            left = max(0, len(pending) - start)
            for subject in missing:
                job.progress(subject.name, 1 - left / len(job.windows))
            if batch := pending[start : start + at_once]:
                _score_step(job, scorers, reference, batch)


def _score_step(
    job: Job, scorers: Mapping[str, Scorer], reference: str | None, windows: Sequence[int]
) -> None:
    """Score a piece of the windows on each rank and record all."""
    begin = job.pieces.windows * rank()
    own = windows[begin : begin + job.pieces.windows]
    found = score(scorers, reference, job.windows.ids[own], job.pieces) if own else {}
    scores = {name: [one.tobytes() for one in each] for name, each in found.items()}
    parts = [msgspec.msgpack.decode(part) for part in gather(msgspec.msgpack.encode(scores))]
    for name in scorers:
        of_windows = [one for part in parts for one in part.get(name, ())]
        for window, one in zip(windows, of_windows, strict=True):
            job.records[name].add(job.windows.digests[window], one)


def _open(job: Job, subject: Subject, stack: ExitStack) -> Scorer:
    scorer = open_scorer(subject, job.windows.tokens, job.threads)
    stack.callback(scorer.close)
    if scorer.vocab_size != job.config.vocab_size:
        raise EdgeError(
            f"{subject.name} has a vocabulary of {scorer.vocab_size} and the checkpoint one of "
            f"{job.config.vocab_size}; convert it again."
        )
    return scorer
