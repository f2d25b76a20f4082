"""Speculative decoding: proposals are checked many at a time, and the text stays the same.

One pass over the last token and some proposals gives the logits at each of them. The sampler
goes through them as it would one by one; as long as it chooses what was proposed the next logits
count too. So the text is the one without proposals, greedy or seeded, and its distribution the
model's, whatever is proposed (Leviathan et al. 2023, with equality in place of the ratio test).

Rounding is the exception: a pass over several tokens may sum in another order than steps over
one. Greedy choices whose margin could be rounding (`sampling.argmax_is_clear`) are not taken from
such a pass but from a step. What its keys and values hold stays rounded as it is, as after a
prefill in other parts. On a CPU without a BLAS of its own both are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from edge.generate.lookup import PromptLookup
from edge.generate.sampling import Picker

if TYPE_CHECKING:
    from edge.model.stablelm import Cache, Model


def can_speculate(cache: Sequence[Cache]) -> bool:
    """A cache can take positions back unless it rotates, which forgets what they replaced."""
    return all(getattr(layer, "max_size", None) is None and layer.is_trimmable() for layer in cache)


def trim_to_shortest(cache: Sequence[Cache], most: int | None = None) -> None:
    """Brings all layers to the same length: an interrupt may have come between two of them."""
    length = min(layer.offset for layer in cache)
    length = length if most is None else min(length, most)
    for layer in cache:
        if layer.offset > length and layer.is_trimmable():
            layer.trim(layer.offset - length)


class Speculation:
    """The decode loop with a drafter: passes over proposals that pay, plain steps between.

    Plain steps stay one ahead. A proposal that turns up while a step is under way waits for
    it, so nothing that was computed is thrown away.

    Args:
        model: the network.
        cache: holds the prompt.
        pick: chooses the ids; has chosen the first.
        count: tokens to give.
        draft: has begun with the text so far.
        clear_after: tokens after which MLX's buffers are given back, again and again.
    """

    def __init__(
        self,
        model: Model,
        cache: Sequence[Cache],
        pick: Picker,
        count: int,
        draft: PromptLookup,
        clear_after: int,
    ):
        self._model, self._cache, self._pick, self._draft = model, cache, pick, draft
        self._count, self._clear_after = count, clear_after
        self._begin = int(cache[0].offset)
        self._made = 0
        self._away_s = 0.0
        self._needs_step = False  # the next id was within rounding, so no pass may choose it

    def run(self, first: mx.array) -> Generator[int, None, None]:
        """Yields `count` ids, of which the first was submitted.

        On leaving, the cache holds the prompt and what was given, the last of `count` excepted.
        """
        try:
            # Always the id that is read but neither fed nor given.
            known = self._read(first)
            while self._made < self._count - 1:
                proposals = 0 if self._needs_step else self._proposals()
                if proposals:
                    known = yield from self._pass(known, proposals)
                else:
                    known = yield from self._steps(known)
            yield from self._give(known)
        finally:
            trim_to_shortest(self._cache, self._begin + self._made)

    def _steps(self, known: int) -> Generator[int, None, int]:
        """Plain steps, one ahead, until proposals pay or one token is left."""
        self._needs_step = False
        token = self._step(mx.array([known]))
        yield from self._give(known)
        since_s = None
        while self._made < self._count - 1 and not self._proposals():
            ahead = self._step(token)
            known = self._read(token)
            now_s = self._draft.length.clock()
            self._draft.length.saw_step(self._lap(since_s, now_s))
            since_s, self._away_s = now_s, 0.0
            yield from self._give(known)
            token = ahead
        return self._read(token)

    def _pass(self, known: int, count: int) -> Generator[int, None, int]:
        """One pass over the known id and proposals; gives all but the last id it leads to."""
        begin_s, self._away_s = self._draft.length.clock(), 0.0
        proposed = self._draft.propose(count)
        before = self._pick.state
        hidden = self._model.model(mx.array([[known, *proposed]]), self._cache)
        chosen, clear, states = self._pick.pick_many(self._model.head(hidden)[0])
        mx.async_eval(chosen, clear)  # type: ignore[no-untyped-call]
        yield from self._give(known)
        found = agreed(chosen.tolist(), clear.tolist(), proposed)  # type: ignore[arg-type]
        self._draft.length.saw_pass(count, self._lap(begin_s, self._draft.length.clock()))
        for layer in self._cache:
            layer.trim(1 + count - len(found))
        self._pick.state = [before, *states][len(found)]
        self._count_pass(proposed, found)
        if not found:
            self._needs_step = False
            return self._read(self._step(mx.array([known])))
        self._draft.extend(found)
        for token in found[:-1]:
            self._draft.accepted += 1
            yield from self._give(token)
        return found[-1]

    def _count_pass(self, proposed: list[int], found: list[int]) -> None:
        """Counts what was right, and notes when the next id has to come from a step."""
        hits = sum(ours == theirs for ours, theirs in zip(found, proposed, strict=False))
        missed = hits < len(found) and hits < len(proposed)
        self._needs_step = hits == len(found)
        self._draft.drafted += len(proposed)
        kind = self._draft.kind()
        assert kind is not None  # something was proposed
        self._draft.length.saw_proposals(kind, hits, int(missed))

    def _proposals(self) -> int:
        """How many proposals to check now; the last token that is wanted is not fed."""
        kind = self._draft.kind()
        return 0 if kind is None else self._draft.length.best(kind, self._count - self._made - 2)

    def _step(self, token: mx.array) -> mx.array:
        """Submits the step that follows a token (1,)."""
        hidden = self._model.model(token[None], self._cache)
        return self._pick(self._model.head(hidden)[:, -1])

    def _read(self, token: mx.array) -> int:
        """Waits for a step's id, and counts if it would have been proposed."""
        known = int(token.item())  # type: ignore[arg-type]  # an integer array's item is an int
        kind = self._draft.kind()
        if kind is not None:
            hit = self._draft.propose(1) == [known]
            self._draft.length.saw_proposals(kind, int(hit), int(not hit))
        self._draft.extend([known])
        return known

    def _give(self, token: int) -> Generator[int, None, None]:
        self._made += 1
        if self._made % self._clear_after == 0:
            mx.clear_cache()
        begin_s = self._draft.length.clock()
        yield token
        self._away_s += self._draft.length.clock() - begin_s

    def _lap(self, begin_s: float | None, end_s: float) -> float | None:
        """Seconds between, unless the caller took more than half of them."""
        if begin_s is None or self._away_s > (end_s - begin_s) / 2:
            return None
        return end_s - begin_s


def agreed(chosen: Sequence[int], clear: Sequence[bool], proposed: Sequence[int]) -> list[int]:
    """The ids that a pass settles: those proposed, as far as they were chosen, and one more.

    Ends before the first that is not clear of rounding; the id after the last proposal needs no
    agreement.
    """
    found: list[int] = []
    for place, token in enumerate(chosen):
        if not clear[place]:
            break
        found.append(token)
        if place < len(proposed) and token != proposed[place]:
            break
    return found
