"""A comparison of two profiles as tables and lines of CSV."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from edge.bench.compare import Comparison, Difference, RowComparison
from edge.errors import printable
from edge.profile.profile import OWN_ENGINES
from edge.stats import POWER
from edge.text import NOT_MEASURED, Layout, Table, figure, percent, texts_table

HEAD = (
    *("Row", "Quantity", "A", "B", "B / A", "95 % interval", "p", "Processes"),
    *("Detectable", "Conclusion"),
)
WORDS = ("Row", "Quantity", "Conclusion")


def comparison_text(found: Comparison, names: Sequence[str], layout: Layout | None) -> str:
    """Markdown, or with a layout text with a table per workload, and the remarks under it.

    `names` are those of the two files.
    """
    sides = zip("AB", names, found.devices, strict=True)
    notes = [
        *(f"{side}: {printable(name)}, {device}" for side, name, device in sides),
        f"a difference has p < {1 - found.confidence:.2f} (Welch's test on the logarithms of the "
        f"processes' means) and {found.min_effect:.1%} or more; it includes what changed on the "
        f"machine between the runs, which one run of both (edge bench --baseline or --vs) does not",
        f"detectable: the smallest difference that such data shows {POWER:.0%} of the time; more "
        f"--rounds make it smaller",
        *found.remarks,
    ]
    if layout is None:
        drawn = _table(found.rows, with_test=True).markdown()
        return "\n".join([drawn, "", *(f"- {note}" for note in notes)])
    rows = sorted(found.rows, key=lambda row: row.workload)
    parts = [
        f"{test}\n{layout.table(_table(list(of_test), with_test=False))}"
        for test, of_test in groupby(rows, key=lambda row: row.workload)
    ]
    return "\n\n".join([*parts, layout.notes(notes)])


def csv_rows(found: Comparison) -> Iterator[dict[str, Any]]:
    for row in found.rows:
        about = {"artefact": row.artefact, "engine": row.engine, "workload": row.workload}
        for difference in row.differences:
            yield {**about, **asdict(difference)}


def _table(rows: Sequence[RowComparison], with_test: bool) -> Table:
    lines = []
    for row in rows:
        is_own = row.engine in OWN_ENGINES.values()
        name = row.artefact if is_own else f"{row.artefact} ({row.engine})"
        if with_test:
            name = f"{row.artefact} on {row.engine}, {row.workload}"
        lines += [[name, *_cells(difference)] for difference in row.differences]
    dropped = ("Processes", "p", "95 % interval", "B", "A")
    return texts_table(HEAD, lines, WORDS, dropped=dropped, cut=("Row",))


def _cells(found: Difference) -> list[str]:
    low_high, p, conclusion = found.interval, found.p, str(found.conclusion)
    if found.is_better is not None:
        size = f"{abs(found.ratio - 1):.1%}"
        conclusion = f"{size} {conclusion}: {'better' if found.is_better else 'worse'}"
    return [
        f"{found.quantity} ({found.unit})",
        figure(found.a, 4),
        figure(found.b, 4),
        f"{found.ratio:.3f}",
        f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else NOT_MEASURED,
        NOT_MEASURED if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001",
        "{} and {}".format(*found.processes),
        percent(found.detectable),
        conclusion,
    ]
