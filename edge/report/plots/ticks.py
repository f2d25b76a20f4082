"""Round numbers for logarithmic axes, written plainly."""

from __future__ import annotations

from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

# Steps within a decade, finest last: the first that give enough labels are taken.
ROUND_STEPS = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 6, 8),
    tuple(n / 2 for n in range(2, 20)),
    tuple(n / 10 for n in range(10, 100)),
)
LEAST, MOST = 3, 5
LAST_PART = 0.06


def log_ticks(low: float, high: float) -> list[float]:
    """A few round numbers between two that are above 0."""
    inside: list[float] = []
    for steps in ROUND_STEPS:
        ticks = (step * 10.0**decade for decade in range(-9, 13) for step in steps)
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= LEAST:
            break
    return inside[:: max(1, -(-len(inside) // MOST))]


def label_log(axis: Axis, low: float, high: float) -> None:
    """Give a logarithmic axis these labels and no others; none so far out that it meets another."""
    high /= (high / low) ** LAST_PART
    axis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
