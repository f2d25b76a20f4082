"""Prompt lookup: the text so far proposes how it goes on, where its end occurred before.

Edits, quotations and code repeat what they were given; a table of the n-grams so far finds where
(Saxena 2023, "prompt lookup decoding").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edge.errors import EdgeError
from edge.generate.speculate import Pace

# An n-gram longer than this is found by its last ids. llama.cpp's lookup uses the same.
LONGEST_NGRAM = 4
# Matches are followed backwards this far, to know how much they can be trusted.
LONGEST_MATCH = 31


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
        """Add ids to the end of the text."""
        for token in ids:
            self._append(token)

    def _append(self, token: int) -> None:
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


class PromptLookup:
    """Proposes what followed the last occurrence of the text's end. A `Drafter`.

    Estimates are kept by how long the match is: one of 16 ids is right far more often than one
    of 2.

    Args:
        longest: ids in the longest n-gram that is looked for.
        pace: how many proposals are made; by default what pays.

    Raises:
        EdgeError: n-grams of no ids.
    """

    def __init__(self, longest: int = LONGEST_NGRAM, pace: Pace | None = None):
        if longest < 1:
            raise EdgeError(f"longest is {longest}; n-grams have 1 token or more.")
        self.pace = pace or Pace()
        self._longest = longest
        self._index = NgramIndex(longest)

    def begin(self, ids: Sequence[int]) -> None:
        """A generation begins after these ids; what the index has of them is not read again."""
        self.pace.begin()
        held = len(self._index.ids)
        if list(ids[:held]) != self._index.ids:
            self._index, held = NgramIndex(self._longest), 0
        self._index.extend(ids[held:])

    def extend(self, ids: Sequence[int]) -> None:
        """The text has gone on."""
        self._index.extend(ids)

    def kind(self) -> int | None:
        """Matches of 1, 2-3, 4-7, 8-15 and 16-31 ids are counted apart."""
        return self._index.match_length().bit_length() or None

    def propose(self, count: int) -> list[int]:
        """So many ids, where there is a match."""
        return self._index.continuation(count)
