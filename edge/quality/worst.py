"""The positions where an artefact is furthest from the reference, in their context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge.errors import printable
from edge.quality.divergence import Scores
from edge.quality.windows import Windows
from edge.tokenizer.tokenizer import Tokenizer

CONTEXT_TOKENS = 48
CONTEXT_CHARACTERS = 60


@dataclass(frozen=True)
class Guess:
    """What one of them had on top there, and what it gave to what came."""

    token: str
    probability: float
    probability_of_next: float


@dataclass(frozen=True)
class Worst:
    """A position; texts are one line each, control characters shown as escapes.

    Attributes:
        kl: nats.
        window: counted from 0.
        position: of the token that came, in its window.
        before: the end of the text before it.
        next: the token that came.
        reference: the reference's guess.
        artefact: the artefact's.
    """

    kl: float
    window: int
    position: int
    before: str
    next: str
    reference: Guess
    artefact: Guess


def worst(
    windows: Windows,
    scores: Sequence[Scores],
    reference: Sequence[Scores],
    tokenizer: Tokenizer,
    count: int,
) -> list[Worst]:
    """The scored positions of the largest divergence, the largest first.

    Args:
        windows: what was scored.
        scores: the artefact's, one per window.
        reference: the reference's.
        tokenizer: the checkpoint's.
        count: how many at most.
    """
    table = np.stack([s.kl for s in scores])
    order = np.argsort(np.where(windows.scored, -table, np.inf), axis=None, kind="stable")
    places = (divmod(int(i), table.shape[1]) for i in order[:count])
    return [
        _at(windows, scores[w], reference[w], tokenizer, w, i)
        for w, i in places
        if windows.scored[w, i]
    ]


def worst_text(name: str, found: Sequence[Worst]) -> str:
    """A heading and two lines per position."""
    lines = [f"{name}: where it is furthest from the reference", ""]
    for place in found:
        lines += [
            f"- KL {place.kl:.3g} nats, window {place.window}, token {place.position}: "
            f"{place.before}⟦{place.next}⟧",
            f"  - reference {_guess(place.reference)}; {name} {_guess(place.artefact)}",
        ]
    return "\n".join(lines)


def _guess(guess: Guess) -> str:
    given = f"{guess.probability:.0%}, and {guess.probability_of_next:.1%} for what came"
    return f"had ⟦{guess.token}⟧ ({given})"


def _at(
    windows: Windows, own: Scores, other: Scores, tokenizer: Tokenizer, window: int, i: int
) -> Worst:
    ids = [int(token) for token in windows.ids[window]]
    before = tokenizer.decode(ids[max(0, i + 1 - CONTEXT_TOKENS) : i + 1])

    def guess(scores: Scores) -> Guess:
        likely, nll = float(scores.top_log_probability[i]), float(scores.nll[i])
        return Guess(_shown(tokenizer, int(scores.top[i])), math.exp(likely), math.exp(-nll))

    return Worst(
        kl=float(own.kl[i]),
        window=window,
        position=i + 1,
        before=printable(before)[-CONTEXT_CHARACTERS:],
        next=_shown(tokenizer, ids[i + 1]),
        reference=guess(other),
        artefact=guess(own),
    )


def _shown(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as text; by its number where the tokenizer has none for it."""
    return printable(tokenizer.decode([token_id])) or f"token {token_id}"
