"""Prompt lookup: the text so far proposes how it goes on, where its end occurred before.

Edits, quotations and code repeat what they were given; a table of the n-grams so far finds where
(Saxena 2023, "prompt lookup decoding").
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence

from edge.errors import EdgeError
from edge.model.stablelm import FEW_QUERIES

# An n-gram longer than this is found by its last ids. llama.cpp's lookup uses the same.
LONGEST_NGRAM = 4
# Matches are followed backwards this far, to know how much they can be trusted.
LONGEST_MATCH = 31
# A pass of at most FEW_QUERIES positions: with more a quantised cache is read in another way, and
# so is every cache on Metal, where the attention for few queries ends there.
MOST_PROPOSED = FEW_QUERIES - 1
# A pass must promise at least this much more than plain steps: estimates err.
LEAST_GAIN = 1.1
# What a further position costs, in plain steps, until it was measured so many times more than
# it is assumed here. A bold guess is soon corrected, a timid one never would be.
ASSUMED_SLOPES = (0.2, 0.2, 0.2)
# After so many plain steps the guess is made again: the cost may have been that of a slow moment.
RETRY_TOKENS = 256
# Laps that the medians are taken of, and how many plain steps come first, to compare with.
LAPS, FIRST_LAPS = 15, 3
# Acceptance is counted with this much forgetting, beginning with one hit and one miss.
MEMORY = 0.97


class NgramIndex:
    """Where each n-gram of a growing text last occurred; constant time per id.

    Args:
        longest: ids in the longest n-gram that is looked for; all shorter ones are as well.
    """

    def __init__(self, longest: int = LONGEST_NGRAM):
        self.ids: list[int] = []
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in range(longest)]
        self._source: int | None = None

    def extend(self, ids: Iterable[int]) -> None:
        """Adds ids to the end of the text."""
        for token in ids:
            self.ids.append(token)
            here, self._source = len(self.ids), None
            for size, table in enumerate(self._after[:here], 1):
                ngram = tuple(self.ids[-size:])
                self._source = table.get(ngram, self._source)
                table[ngram] = here

    def match_length(self) -> int:
        """How many ids before the end are those before the place that is continued.

        0 where the last id is new; at most LONGEST_MATCH.
        """
        if self._source is None:
            return 0
        length, ids, source = 1, self.ids, self._source
        most = min(LONGEST_MATCH, source)
        while length < most and ids[source - 1 - length] == ids[-1 - length]:
            length += 1
        return length

    def continuation(self, count: int) -> list[int]:
        """What followed the last occurrence of the longest n-gram that ends the text.

        Where that reaches the end it goes on with itself, so that a short period is repeated.

        Returns:
            `count` ids, or none where the last id is new.
        """
        if self._source is None:
            return []
        period = len(self.ids) - self._source
        found = self.ids[self._source : self._source + count]
        while len(found) < count:
            found.append(found[-period])
        return found


class DraftLength:
    """Learns how many proposals pay: from how often they are right and what a pass takes.

    Estimates outlive a generation, so a drafter should stay with its model.

    Args:
        clock: seconds; tests bring their own.
        fixed: always as many proposals, paying or not.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, fixed: int | None = None):
        self.clock = clock
        self._fixed = fixed
        self._step_s: deque[float] = deque(maxlen=LAPS)
        self._slopes: deque[float] = deque(ASSUMED_SLOPES, maxlen=LAPS)
        self._counts: dict[int, tuple[float, float]] = defaultdict(lambda: (1.0, 1.0))
        self._steps_since_pass = 0

    def saw_step(self, seconds: float | None) -> None:
        """One token came without proposals, in so many seconds if that is known."""
        if seconds is not None:
            self._step_s.append(seconds)
        self._steps_since_pass += 1
        if self._steps_since_pass % RETRY_TOKENS == 0:
            self._slopes = deque(ASSUMED_SLOPES, maxlen=LAPS)

    def saw_pass(self, proposals: int, seconds: float | None) -> None:
        """Proposals were made and checked, in so many seconds if that is known."""
        self._steps_since_pass = 0
        if seconds is not None and self._step_s:
            ratio = seconds / statistics.median(self._step_s)
            self._slopes.append(max(ratio - 1, 0.0) / proposals)

    def saw_proposals(self, kind: int, hits: int, misses: int) -> None:
        """So many proposals of a kind were right, one after another, and then so many wrong."""
        right, wrong = self._counts[kind]
        fade = MEMORY ** (hits + misses)
        self._counts[kind] = (right * fade + hits, wrong * fade + misses)

    def pass_cost(self, proposals: int) -> float:
        """The estimated time of a pass with so many proposals, in plain steps."""
        return 1 + statistics.median(self._slopes) * proposals

    def best(self, kind: int, most: int) -> int:
        """How many proposals of a kind to check now, at most `most`; 0 for a plain step."""
        if self._fixed is not None:
            return min(self._fixed, most)
        if len(self._step_s) < FIRST_LAPS:
            return 0
        return max(range(min(most, MOST_PROPOSED) + 1), key=lambda count: self._gain(kind, count))

    def _gain(self, kind: int, proposals: int) -> float:
        """Tokens per time, in those of plain steps."""
        if proposals == 0:
            return LEAST_GAIN
        right, wrong = self._counts[kind]
        accepted = (right + 1e-3) / (right + wrong + 2e-3)
        return sum(accepted**n for n in range(proposals + 1)) / self.pass_cost(proposals)


class PromptLookup:
    """Proposes what followed the last occurrence of the text's end; for one generation at a time.

    Estimates are kept by how long the match is: one of 16 ids is right far more often than one
    of 2.

    Args:
        longest: ids in the longest n-gram that is looked for.
        length: decides how many proposals are made; by default what pays.

    Attributes:
        drafted: proposals that were checked in this generation.
        accepted: those of them that the model chose too.

    Raises:
        EdgeError: n-grams of no ids.
    """

    def __init__(self, longest: int = LONGEST_NGRAM, length: DraftLength | None = None):
        if longest < 1:
            raise EdgeError(f"longest is {longest}; n-grams have 1 token or more.")
        self.length = length or DraftLength()
        self.drafted = self.accepted = 0
        self._longest = longest
        self._index = NgramIndex(longest)

    def begin(self, ids: Sequence[int]) -> None:
        """A generation begins after these ids; what the index has of them is not read again."""
        self.drafted = self.accepted = 0
        held = len(self._index.ids)
        if list(ids[:held]) != self._index.ids:
            self._index, held = NgramIndex(self._longest), 0
        self._index.extend(ids[held:])

    def extend(self, ids: Sequence[int]) -> None:
        """The text has gone on."""
        self._index.extend(ids)

    def kind(self) -> int | None:
        """The class of the next proposals, None if there are none.

        Matches of 1, 2-3, 4-7, 8-15 and 16-31 ids are counted apart.
        """
        return self._index.match_length().bit_length() or None

    def propose(self, count: int) -> list[int]:
        """So many ids, where `kind` gives a class."""
        return self._index.continuation(count)
