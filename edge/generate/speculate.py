"""Speculative decoding: proposals are checked many at a time, and the text stays the same.

One pass over the last token and some proposals gives the logits at each of them. The sampler
goes through them as it would one by one; as long as it chooses what was proposed the next logits
count too. So the text is the one without proposals, greedy or seeded, and its distribution the
model's, whatever is proposed (Leviathan et al. 2023, with equality in place of the ratio test).

Rounding is the exception: a pass over several tokens may sum in another order than steps over
one. Greedy choices whose margin could be rounding (`sampling.certain`) are not taken from such a
pass but from a step. What its keys and values hold stays rounded as it is, as after a prefill
in other parts. On a CPU without a BLAS of its own both are equal to the last bit.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx

from edge.generate.sampling import Picker
from edge.model.stablelm import FEW_QUERIES

if TYPE_CHECKING:
    from edge.model.stablelm import Cache, Model

# A pass of at most FEW_QUERIES positions: with more a quantised cache is read in another way, and
# so is every cache on Metal, where the attention for few queries ends there.
MOST_PROPOSED = FEW_QUERIES - 1
# A pass must promise at least this much more than plain steps: estimates err.
LEAST_GAIN = 1.1
# What a further position costs, in plain steps, until it was measured so many times more than
# it is assumed here. A bold guess is soon corrected, a timid one never would be.
ASSUMED_SLOPES = (0.2, 0.2, 0.2)
# Laps that the medians are taken of, and how many plain steps come first, to compare with.
LAPS, FIRST_LAPS = 15, 3
# Acceptance is counted with this much forgetting, beginning with one hit and one miss.
MEMORY = 0.97
# Proposals that are right and cost too much are tried again after so many tokens, then after twice
# as many, and so on: the cost may have been that of a slow moment of the machine.
PROBE_LENGTH, PROBE_ACCEPTANCE = 3, 0.7
FIRST_PAUSE_TOKENS, LONGEST_PAUSE_TOKENS = 32, 512


class Pace:
    """Learns how many proposals pay: from how often they are right and what a pass takes.

    Estimates outlive a generation, so a drafter should stay with its model.

    Args:
        clock: seconds; tests bring their own.
        fixed: always as many proposals, paying or not.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, fixed: int | None = None):
        self.clock = clock
        self.drafted = self.accepted = 0
        self._fixed = fixed
        self._step_s: deque[float] = deque(maxlen=LAPS)
        self._slopes: deque[float] = deque(ASSUMED_SLOPES, maxlen=LAPS)
        self._counts: dict[int, tuple[float, float]] = defaultdict(lambda: (1.0, 1.0))
        self._idle, self._pause = 0, FIRST_PAUSE_TOKENS

    def begin(self) -> None:
        """A generation begins: its own count of tokens drafted and accepted."""
        self.drafted = self.accepted = 0

    def saw_step(self, seconds: float | None) -> None:
        """One token came without proposals, in so many seconds if that is known."""
        self._idle += 1
        if seconds is not None:
            self._step_s.append(seconds)

    def saw_pass(self, proposals: int, seconds: float | None) -> None:
        """Proposals were made and checked, in so many seconds if that is known."""
        self._idle = 0
        if seconds is not None and self._step_s:
            ratio = seconds / statistics.median(self._step_s)
            self._slopes.append(max(ratio - 1, 0.0) / proposals)

    def saw_proposals(self, kind: int, hits: int, misses: int) -> None:
        """So many proposals of a kind were right, one after another, and then so many wrong."""
        right, wrong = self._counts[kind]
        fade = MEMORY ** (hits + misses)
        self._counts[kind] = (right * fade + hits, wrong * fade + misses)

    def acceptance(self, kind: int) -> float:
        """The estimated probability that a proposal is right after right ones."""
        right, wrong = self._counts[kind]
        return (right + 1e-3) / (right + wrong + 2e-3)

    def pass_cost(self, proposals: int) -> float:
        """The estimated time of a pass with so many proposals, in plain steps."""
        return 1 + statistics.median(self._slopes) * proposals

    def length(self, kind: int, most: int) -> int:
        """How many proposals of a kind to check now; 0 where a plain step is better.

        Where acceptance is high, so that only the cost speaks against a pass, one is tried now
        and then.

        Args:
            kind: of proposals, as the drafter tells them apart.
            most: never more.
        """
        if self._fixed is not None:
            return min(self._fixed, most)
        if len(self._step_s) < FIRST_LAPS:
            return 0
        best = max(range(min(most, MOST_PROPOSED) + 1), key=lambda n: self._gain(kind, n))
        if best > 0:
            return best
        if self.acceptance(kind) > PROBE_ACCEPTANCE and self._idle >= self._pause:
            self._pause = min(2 * self._pause, LONGEST_PAUSE_TOKENS)
            return min(PROBE_LENGTH, most)
        return 0

    def _gain(self, kind: int, proposals: int) -> float:
        """Tokens per time, in those of plain steps."""
        if proposals == 0:
            return LEAST_GAIN
        p = self.acceptance(kind)
        return sum(p**n for n in range(proposals + 1)) / self.pass_cost(proposals)


class Drafter(Protocol):
    """Proposes how a text goes on; for one generation at a time.

    Proposals cost next to nothing: they are also made only to be counted.

    Attributes:
        pace: what was learnt about its proposals, and how many there were.
    """

    pace: Pace

    def begin(self, ids: Sequence[int]) -> None:
        """A generation begins after these ids."""

    def extend(self, ids: Sequence[int]) -> None:
        """The text has gone on."""

    def kind(self) -> int | None:
        """Which of the classes of proposals that are counted apart is next; None for none."""

    def propose(self, count: int) -> list[int]:
        """So many ids, where `kind` gives one."""


def can_speculate(cache: Sequence[Cache]) -> bool:
    """Whether a cache can take positions back; one that rotates forgets what they replaced."""
    return all(getattr(layer, "max_size", None) is None and layer.is_trimmable() for layer in cache)


def level(cache: Sequence[Cache], most: int | None = None) -> None:
    """Bring all layers to the same length, `most` at most.

    An interrupt may come between two layers, and the end of a text within proposals.
    """
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
        draft: Drafter,
        clear_after: int,
    ):
        self._model, self._cache, self._pick, self._draft = model, cache, pick, draft
        self._pace = draft.pace
        self._count, self._clear_after = count, clear_after
        self._begin = int(cache[0].offset)
        self._made = 0
        self._away_s = 0.0
        self._uncertain = False

    def run(self, first: mx.array) -> Generator[int, None, None]:
        """Give `count` ids, of which the first was submitted.

        On leaving, the cache holds the prompt and what was given, the last of `count` excepted.
        """
        try:
            # Always the id that is read but neither fed nor given.
            known = self._learn(first)
            while self._made < self._count - 1:
                proposals = self._proposals()
                if proposals:
                    known = yield from self._pass(known, *proposals)
                else:
                    known = yield from self._steps(known)
            yield from self._give(known)
        finally:
            level(self._cache, self._begin + self._made)

    def _steps(self, known: int) -> Generator[int, None, int]:
        """Plain steps, one ahead, until proposals pay or one token is left."""
        self._uncertain = False
        token = self._step(mx.array([known]))
        yield from self._give(known)
        since_s = None
        while self._made < self._count - 1 and not self._length():
            ahead = self._step(token)
            known = self._learn(token)
            now_s = self._pace.clock()
            self._pace.saw_step(self._lap(since_s, now_s))
            since_s, self._away_s = now_s, 0.0
            yield from self._give(known)
            token = ahead
        return self._learn(token)

    def _pass(self, known: int, kind: int, count: int) -> Generator[int, None, int]:
        """One pass over the known id and proposals; gives all but the last id it leads to."""
        begin_s, self._away_s = self._pace.clock(), 0.0
        proposed = self._draft.propose(count)
        before = self._pick.state()
        hidden = self._model.model(mx.array([[known, *proposed]]), self._cache)
        chosen, sure, states = self._pick.several(self._model.head(hidden)[0])
        mx.async_eval(chosen, sure)  # type: ignore[no-untyped-call]
        left = self._pick.state()
        yield from self._give(known)
        found = agreed(chosen.tolist(), sure.tolist(), proposed)  # type: ignore[arg-type]
        self._pace.saw_pass(count, self._lap(begin_s, self._pace.clock()))
        for layer in self._cache:
            layer.trim(1 + count - len(found))
        self._pick.restore([before, *states][len(found)], left)
        self._count_pass(kind, proposed, found)
        if not found:
            self._uncertain = False
            return self._learn(self._step(mx.array([known])))
        self._draft.extend(found)
        for token in found[:-1]:
            self._pace.accepted += 1
            yield from self._give(token)
        return found[-1]

    def _count_pass(self, kind: int, proposed: list[int], found: list[int]) -> None:
        """Count what was right; say whether the next id has to come from a step."""
        hits = sum(a == b for a, b in zip(found, proposed, strict=False))
        missed = hits < len(found) and hits < len(proposed)
        self._uncertain = hits == len(found)
        self._pace.drafted += len(proposed)
        self._pace.saw_proposals(kind, hits, int(missed))

    def _proposals(self) -> tuple[int, int] | None:
        """Kind and number of the proposals to check now."""
        count = 0 if self._uncertain else self._length()
        kind = self._draft.kind()
        return None if kind is None or not count else (kind, count)

    def _length(self) -> int:
        """How many proposals pay now; the last token that is wanted is not fed."""
        kind = self._draft.kind()
        if kind is None:
            return 0
        return self._pace.length(kind, self._count - self._made - 2)

    def _step(self, token: mx.array) -> mx.array:
        """Submit the step that follows a token (1,)."""
        logits = self._model.head(self._model.model(token[None], self._cache))[:, -1]
        ahead = self._pick(logits)
        mx.async_eval(ahead)  # type: ignore[no-untyped-call]
        return ahead

    def _learn(self, token: mx.array) -> int:
        """Wait for a step's id, and see whether it would have been proposed."""
        known = int(token.item())  # type: ignore[arg-type]  # an integer array's item is an int
        kind = self._draft.kind()
        if kind is not None:
            hit = self._draft.propose(1) == [known]
            self._pace.saw_proposals(kind, int(hit), int(not hit))
        self._draft.extend([known])
        return known

    def _give(self, token: int) -> Generator[int, None, None]:
        self._made += 1
        if self._made % self._clear_after == 0:
            mx.clear_cache()
        begin_s = self._pace.clock()
        yield token
        self._away_s += self._pace.clock() - begin_s

    def _lap(self, begin_s: float | None, end_s: float) -> float | None:
        """Seconds between, unless the caller took more than half of them."""
        if begin_s is None or self._away_s > (end_s - begin_s) / 2:
            return None
        return end_s - begin_s


def agreed(chosen: Sequence[int], sure: Sequence[bool], proposed: Sequence[int]) -> list[int]:
    """The ids that a pass settles: those proposed, as far as they were chosen, and one more.

    Ends before the first that is not sure; the id after the last proposal needs no agreement.
    """
    found: list[int] = []
    for place, token in enumerate(chosen):
        if not sure[place]:
            break
        found.append(token)
        if place < len(proposed) and token != proposed[place]:
            break
    return found
