"""Shared by the plots: spread, order and labels of rows, reasons for gaps, log scales."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from edge.profile.profile import Quantity, Row
from edge.report.table import has_tests, listed, row_label
from edge.text import plain

# What every bracket, band and error bar means.
SPREAD = "median ± 1 standard deviation of the trials"
NO_ROWS = "the profile has no rows"
# Rows or reasons that a caption names.
MOST_NAMED = 8
T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """A quantity's median and SPREAD; one trial has none."""

    median: float
    sd: float | None
    n: int

    @property
    def low(self) -> float:
        return max(self.median - (self.sd or 0.0), 0.0)

    @property
    def high(self) -> float:
        return self.median + (self.sd or 0.0)

    @property
    def errors(self) -> list[list[float]] | None:
        """Lengths of an error bar."""
        return None if self.sd is None else [[self.median - self.low], [self.sd]]


def spread(quantity: Quantity | None) -> Spread | None:
    if quantity is None:
        return None
    return Spread(quantity.median, quantity.sd, quantity.n)


def spread_meaning(spreads: Iterable[Spread]) -> str:
    return SPREAD if any(found.sd is not None for found in spreads) else "none, as of one trial"


def counts(numbers: Iterable[int]) -> str:
    """The distinct numbers, such as "3 or 5"."""
    return " or ".join(map(str, sorted(set(numbers)))) or "0"


def heading(row: Row, rows: Sequence[Row]) -> str:
    label = row_label(row, has_tests(rows))
    return label if row.verdict == "VALID" else f"{label} {row.verdict}"


def absences(
    rows: Sequence[Row], shown: Sequence[Row], every: Sequence[Row], about: str
) -> list[str]:
    """Sentences that say why a plot does not show some of its rows."""
    labels: dict[str, list[str]] = {}
    drawn, with_test = {id(row) for row in shown}, has_tests(every)
    for row in rows:
        if id(row) in drawn:
            continue
        why = f"not measured: {row.why_not(about)}"
        if not row.counts and row.decode_tok_s is not None:
            why = f"INVALID: {row.why_not()}"
        labels.setdefault(plain(why, 320), []).append(row_label(row, with_test))
    sentences = [f"{listed(few(found))} {why}." for why, found in labels.items()]
    return few(sentences)


def few(texts: Sequence[str]) -> list[str]:
    """The first texts and the number of the others."""
    more = len(texts) - MOST_NAMED
    return [*texts[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])]


def first(found: Sequence[T], most: int) -> tuple[Sequence[T], list[str]]:
    """As many rows as a plot can show, and a sentence about the others."""
    if len(found) <= most:
        return found, []
    return found[:most], [f"Shown: {most} of {len(found)} rows; the table has all."]


def label_log(axis: Axis, low: float, high: float) -> None:
    """Label a logarithmic axis with a few round numbers in plain notation."""
    locator: Locator = MaxNLocator(4)
    if (ratio := high / low) > 10:
        steps = (1.0, 2.0, 5.0) if ratio < 50 else (1.0, 3.0) if ratio < 1e4 else (1.0,)
        locator = LogLocator(subs=steps, numticks=6)
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
