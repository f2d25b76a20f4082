"""A row's quality: how far its artefact's predictions are from those of a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edge.report.figure import plain
from edge.report.values import not_negative


@dataclass(frozen=True)
class Quality:
    """What was measured of it; None is not measured.

    `kl_mean` and `kl_p99` are nats per token from the reference, `top1_agreement` the share of
    positions at which both would write the same token, `tokens` how many positions there were.
    """

    perplexity: float | None = None
    perplexity_ratio: float | None = None
    kl_mean: float | None = None
    kl_p99: float | None = None
    top1_agreement: float | None = None
    tokens: int | None = None
    reference: str | None = None
    corpus: str | None = None


def quality_of(data: object) -> Quality | None:
    """A row's `quality`, of whoever wrote it; None if there is no figure in it."""
    if not isinstance(data, Mapping):
        return None
    agreement, tokens = (not_negative(data.get(name)) for name in ("top1_agreement", "tokens"))
    found = Quality(
        perplexity=not_negative(data.get("perplexity")),
        perplexity_ratio=not_negative(data.get("perplexity_ratio")),
        kl_mean=not_negative(data.get("kl_mean")),
        kl_p99=not_negative(data.get("kl_p99")),
        top1_agreement=None if agreement is None or agreement > 1 else agreement,
    )
    if found == Quality():
        return None
    return replace(
        found,
        tokens=None if tokens is None else int(tokens),
        reference=_words(data.get("reference")),
        corpus=_words(data.get("corpus")),
    )


def _words(text: object) -> str | None:
    return plain(text, 40) if isinstance(text, str) else None


def small(value: float) -> str:
    """A divergence, of which the order of magnitude matters: two significant figures."""
    return f"{value:.2g}"
