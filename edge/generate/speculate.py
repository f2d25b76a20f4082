"""Speculative decoding: one pass checks several proposed tokens, and the text stays the same.

A pass over the last token and some proposals gives the logits at each of them. The sampler
chooses at one position after another for as long as it chooses the proposals (Leviathan et al.
2023, with equality in place of the ratio test). Proposals are the tokens after an earlier
occurrence of the text's end (Saxena 2023, "prompt lookup decoding").

A pass over several tokens may sum in another order than single steps. Greedy choices whose margin
could be rounding (`sampling.argmax_is_clear`) are therefore left to a single step.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Sequence

import mlx.core as mx

from edge.generate.sampling import Picker
from edge.model.stablelm import FEW_QUERIES, Cache, Model

# Buffers of outgrown KV arrays are freed this often. Without it MLX held 22.8 GB instead of 4.0 GB
# in ml-explore/mlx-examples#1081; it costs 1 % of speed.
TOKENS_BETWEEN_CLEARS = 256
# As in llama.cpp's lookup.
LONGEST_NGRAM = 4
# Matches are extended backwards this far; longer ones are more often right.
LONGEST_MATCH = 31
# With more than FEW_QUERIES positions attention takes another path, which rounds differently.
MOST_PROPOSED = FEW_QUERIES - 1
# The least estimated gain over plain steps for a pass, a margin for errors of the estimate.
LEAST_GAIN = 1.1
# Assumed costs of a further position, in plain steps, before there are measurements. A guess that
# is too low is soon corrected; one that is too high would never be tested.
ASSUMED_SLOPES = (0.2, 0.2, 0.2)
# After this many plain steps in a row, then twice as many and so on, the cost is assumed again:
# the measured one may be of a slow moment.
RETRY_TOKENS = 256
# Number of times that a median is taken of, and of plain steps measured before the first pass.
LAPS, FIRST_LAPS = 15, 3
# Decay of the acceptance counts, which begin with one hit and one miss.
MEMORY = 0.97


def can_speculate(cache: Sequence[Cache]) -> bool:
    """True unless the cache rotates: a rotating cache cannot be trimmed."""
    return all(getattr(layer, "max_size", None) is None and layer.is_trimmable() for layer in cache)


def trim_to_shortest(cache: Sequence[Cache], most: int | None = None) -> None:
    """Trims all layers to the same length: an interrupt may have come between two of them."""
    length = min(layer.offset for layer in cache)
    length = length if most is None else min(length, most)
    for layer in cache:
        if layer.offset > length and layer.is_trimmable():
            layer.trim(layer.offset - length)


class Speculation:
    """The decode loop with a drafter: passes over proposals where they pay, else plain steps."""

    def __init__(
        self, model: Model, cache: Sequence[Cache], pick: Picker, count: int, draft: PromptLookup
    ):
        self._model, self._cache, self._pick, self._draft = model, cache, pick, draft
        self._count, self._made = count, 0
        self._begin = int(cache[0].offset)
        self._needs_step = False  # the next id was within rounding, so no pass may choose it

    def run(self, first: mx.array) -> Generator[int, None, None]:
        """Yields `count` ids; the first was submitted already."""
        try:
            # The id that was read but neither fed to the model nor yielded.
            known = self._read(first)
            while self._made < self._count - 1:
                proposals = 0 if self._needs_step else self._proposals()
                if proposals:
                    known = yield from self._pass(known, proposals)
                else:
                    known = yield from self._steps(known)
            yield from self._emit(known)
        finally:
            trim_to_shortest(self._cache, self._begin + self._made)

    def _steps(self, known: int) -> Generator[int, None, int]:
        """Plain steps, one ahead, until proposals pay or one id is left, which is returned."""
        self._needs_step = False
        token = self._step(mx.array([known]))
        yield from self._emit(known)
        since_s: float | None = None
        while self._made < self._count - 1 and not self._proposals():
            ahead = self._step(token)
            known = self._read(token)
            now_s = time.monotonic()
            self._draft.length.add_step(since_s and now_s - since_s)
            since_s = now_s
            yield from self._emit(known)
            token = ahead
        return self._read(token)

    def _pass(self, known: int, count: int) -> Generator[int, None, int]:
        """One pass over the known id and proposals; yields all ids but the last, and returns it."""
        begin_s = time.monotonic()
        proposed, kind, before = self._draft.propose(count), self._draft.kind(), self._pick.state
        hidden = self._model.model(mx.array([[known, *proposed]]), self._cache)
        chosen, clear, states = self._pick.pick_many(self._model.head(hidden)[0])
        mx.async_eval(chosen, clear)  # type: ignore[no-untyped-call]
        yield from self._emit(known)
        found = accepted_ids(chosen.tolist(), clear.tolist(), proposed)  # type: ignore[arg-type]
        self._draft.length.add_pass(count, time.monotonic() - begin_s)
        for layer in self._cache:
            layer.trim(1 + count - len(found))
        self._pick.state = [before, *states][len(found)]
        self._needs_step = found == proposed[: len(found)]
        self._draft.count_checked(kind, proposed, found)
        if not found:
            self._needs_step = False
            return self._read(self._step(mx.array([known])))
        self._draft.extend(found)
        for token in found[:-1]:
            self._draft.accepted += 1
            yield from self._emit(token)
        return found[-1]

    def _proposals(self) -> int:
        """Number of proposals to check now; the last id is never fed to the model."""
        return self._draft.length.best((self._draft.kind(), self._count - self._made - 2))

    def _step(self, token: mx.array) -> mx.array:
        hidden = self._model.model(token[None], self._cache)
        return self._pick(self._model.head(hidden)[:, -1])

    def _read(self, token: mx.array) -> int:
        """Waits for a step's id."""
        known = int(token.item())  # type: ignore[arg-type]  # an integer array's item is an int
        self._draft.observe(known)
        return known

    def _emit(self, token: int) -> Generator[int, None, None]:
        self._made += 1
        if self._made % TOKENS_BETWEEN_CLEARS == 0:
            mx.clear_cache()
        yield token


def accepted_ids(
    chosen: Sequence[int], clear: Sequence[bool], proposed: Sequence[int]
) -> list[int]:
    """The ids that a pass decides: proposals that were chosen, and the first other choice."""
    found: list[int] = []
    for place, token in enumerate(chosen):
        if not clear[place]:
            break
        found.append(token)
        if place < len(proposed) and token != proposed[place]:
            break
    return found


class DraftLength:
    """Estimates how many proposals pay, from their acceptance and the time of a pass.

    The estimates outlive a generation, so a drafter should stay with its model.
    """

    def __init__(self) -> None:
        self._step_s: deque[float] = deque(maxlen=LAPS)
        self._slopes: deque[float] = deque(ASSUMED_SLOPES, maxlen=LAPS)
        self._counts: dict[int, tuple[float, float]] = defaultdict(lambda: (1.0, 1.0))
        self._steps_since_pass, self._pause_tokens = 0, RETRY_TOKENS

    def add_step(self, seconds: float | None) -> None:
        """Counts a plain step and its time, if known."""
        if seconds is not None:
            self._step_s.append(seconds)
        self._steps_since_pass += 1
        if self._steps_since_pass == self._pause_tokens:
            self._pause_tokens *= 2
            self._slopes = deque(ASSUMED_SLOPES[:1], maxlen=LAPS)

    def add_pass(self, proposals: int, seconds: float) -> None:
        """Counts a pass over proposals and its time."""
        self._steps_since_pass = 0
        if self._step_s:
            ratio = seconds / statistics.median(self._step_s)
            self._slopes.append(max(ratio - 1, 0.0) / proposals)

    def add_proposals(self, kind: int, hits: int, misses: int) -> None:
        """Counts proposals of a kind that were right, and those that were wrong."""
        right, wrong = self._counts[kind]
        fade = MEMORY ** (hits + misses)
        self._counts[kind] = (right * fade + hits, wrong * fade + misses)

    def best(self, *kinds_and_most: tuple[int, int]) -> int:
        """Number of proposals to check now in each sequence of a pass; 0 for a plain step.

        For each sequence: the kind of its proposals, and how many it can take.
        """
        able = [(kind, min(most, MOST_PROPOSED)) for kind, most in kinds_and_most if kind]
        if not able or len(self._step_s) < FIRST_LAPS:
            return 0
        others = len(kinds_and_most) - len(able)
        longest = max(most for _, most in able)
        return max(range(longest + 1), key=lambda count: self._gain(able, others, count))

    def _gain(self, able: Sequence[tuple[int, int]], others: int, proposals: int) -> float:
        """Expected tokens per time of a plain step."""
        if proposals == 0:
            return LEAST_GAIN * (len(able) + others)
        pass_cost = 1 + statistics.median(self._slopes) * proposals
        return (others + sum(self._tokens(k, min(proposals, n)) for k, n in able)) / pass_cost

    def _tokens(self, kind: int, proposals: int) -> float:
        """Expected tokens of one sequence in a pass."""
        right, wrong = self._counts[kind]
        accepted = (right + 1e-3) / (right + wrong + 2e-3)
        return sum(accepted**n for n in range(proposals + 1))


class PromptLookup:
    """Proposes the ids after the last occurrence of the text's end.

    For one generation at a time: `drafted` counts proposals that were checked in it, `accepted`
    those that the model chose too.
    """

    def __init__(self, length: DraftLength | None = None) -> None:
        self.length = length or DraftLength()
        self._clear()

    def _clear(self) -> None:
        self._ids: list[int] = []
        # For n-grams of 1 id, 2 ids, ...: the place after the last occurrence.
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in range(LONGEST_NGRAM)]
        self._source: int | None = None  # the place that proposals are read from

    def begin(self, ids: Sequence[int]) -> None:
        """Begins a generation after these ids; ids that are indexed already are skipped."""
        if list(ids[: len(self._ids)]) != self._ids:
            self._clear()
        self.drafted = self.accepted = 0
        self.extend(ids[len(self._ids) :])

    def extend(self, ids: Iterable[int]) -> None:
        """Appends ids to the text, in constant time per id."""
        for token in ids:
            self._ids.append(token)
            here, self._source = len(self._ids), None
            for size, table in enumerate(self._after[:here], 1):
                ngram = tuple(self._ids[-size:])
                self._source = table.get(ngram, self._source)
                table[ngram] = here

    def observe(self, token: int) -> None:
        """Appends an id of a plain step, and counts whether it would have been proposed."""
        if kind := self.kind():
            hit = self.propose(1) == [token]
            self.length.add_proposals(kind, int(hit), int(not hit))
        self.extend([token])

    def count_checked(self, kind: int, proposed: Sequence[int], found: Sequence[int]) -> None:
        """Counts the proposals of a pass that decided on the ids `found`."""
        hits = sum(ours == theirs for ours, theirs in zip(found, proposed, strict=False))
        self.drafted += len(proposed)
        self.length.add_proposals(kind, hits, int(hits < min(len(found), len(proposed))))

    def match_length(self) -> int:
        """Number of ids before the source that equal those at the text's end; 0 without one."""
        if self._source is None:
            return 0
        length, ids, source = 1, self._ids, self._source
        most = min(LONGEST_MATCH, source)
        while length < most and ids[source - 1 - length] == ids[-1 - length]:
            length += 1
        return length

    def kind(self) -> int:
        """The class of the next proposals: 0 without any, 1 to 5 by the match's length in bits."""
        return self.match_length().bit_length()

    def propose(self, count: int) -> list[int]:
        """`count` ids after the last occurrence of the text's end; none if its last id is new.

        Where the source reaches the text's end the proposals continue periodically.
        """
        if self._source is None:
            return []
        period = len(self._ids) - self._source
        found = self._ids[self._source : self._source + count]
        while len(found) < count:
            found.append(found[-period])
        return found
