"""Fill holes with one artefact."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import edge
from edge.generate import fim, fim_prompt, fim_stop
from edge.generate.fim import Infiller
from edge.generate.fim_prompt import Order
from edge.quality.fim.hole import Hole
from edge.quality.fim.journal import Journal

# What a prompt and its middle may take together at most: about what editors send. Of a short
# context half, because most of a sample's time goes into its prompt.
WINDOW_TOKENS, WINDOW_SHARE = 2048, 1 / 2
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Settings:
    """How middles are made, for all artefacts alike.

    Attributes:
        order: of the prompt.
        max_tokens: a middle's, at most.
        window_tokens: of prompt and middle together.
    """

    order: Order
    max_tokens: int
    window_tokens: int


@dataclass(frozen=True)
class Filled:
    """One hole's middle.

    Attributes:
        text: the middle.
        stopped_by: as in `Completion`.
        prompt_tokens: of the whole prompt, as much as the window had room for.
        generated_tokens: what was cut off included.
        seconds: from the call to the end.
    """

    text: str
    stopped_by: str
    prompt_tokens: int
    generated_tokens: int
    seconds: float


def window_tokens(context_tokens: int) -> int:
    """The window for a model with so many positions."""
    return min(WINDOW_TOKENS, int(context_tokens * WINDOW_SHARE))


def rules_version() -> str:
    """Changes with the prompt and the stop rules."""
    files = [Path(m.__file__ or "").read_bytes() for m in (fim, fim_prompt, fim_stop)]
    return hashlib.sha256(b"".join(files)).hexdigest()[:16]


def fill_key(computed: Mapping[str, object], settings: Settings) -> dict[str, object]:
    """What a middle depends on, beside its hole, for a `Journal`.

    Args:
        computed: from `edge.quality.subject`: the artefact, and what computes on it.
        settings: how middles are made.
    """
    return {
        **computed,
        "edge": edge.__version__,
        "rules": rules_version(),
        **asdict(settings),
    }


def fill_all(
    opened: Callable[[], AbstractContextManager[Infiller]],
    holes: Sequence[Hole],
    settings: Settings,
    journal: Journal,
    progress: Progress,
) -> list[Filled]:
    """Middles of all holes, in their order; those in the journal are not made again.

    Args:
        opened: opens the artefact; not called where the journal has everything.
        holes: what to fill.
        settings: how.
        journal: keeps each middle as soon as it is there.
        progress: told the share that is done.
    """
    missing = [hole for hole in holes if journal.get(hole) is None]
    if missing:
        with opened() as infiller:
            for done, hole in enumerate(missing, start=len(holes) - len(missing)):
                progress(done / len(holes))
                journal.add(hole, asdict(_fill(infiller, hole, settings)))
    progress(1.0)
    return [Filled(**(journal.get(hole) or {})) for hole in holes]


def _fill(infiller: Infiller, hole: Hole, settings: Settings) -> Filled:
    # What another hole left in the cache would be right, but rounded otherwise.
    infiller.forget()
    done = infiller.complete(
        hole.prefix, hole.suffix, order=settings.order, max_tokens=settings.max_tokens
    )
    return Filled(
        text=done.text,
        stopped_by=done.stopped_by,
        prompt_tokens=done.prompt_tokens,
        generated_tokens=done.generated_tokens,
        seconds=done.total_s,
    )
