"""`bench.py --compare A B`: what two profiles of one model say of each other."""

from __future__ import annotations

import argparse
import json

from edge.bench.compare import Comparison, Difference, compare
from edge.profile.reading import read_profile

HEAD = ("Row", "Quantity", "A", "B", "B / A", "95 % interval", "p", "Processes", "Conclusion")
TEXT_COLUMNS = (0, 1, 8)


def run_compare(args: argparse.Namespace) -> int:
    """Read both, compare, print.

    Returns:
        0 whatever the difference; what cannot be compared is an EdgeError, which exits with 1.

    Raises:
        EdgeError: a profile cannot be read, or the two are of different things.
    """
    a, b = (read_profile(path) for path in args.compare)
    found = compare(a, b, args.min_effect / 100)
    if args.output == "json":
        print(json.dumps(found.to_dict(), indent=1, allow_nan=False))
    else:
        print(markdown(found, [path.name for path in args.compare]))
    return 0


def markdown(found: Comparison, names: list[str]) -> str:
    """Table and remarks."""
    lines = [list(HEAD)]
    for row in found.rows:
        label = f"{row.artefact} on {row.engine}, {row.workload}"
        lines += [_cells(label, difference) for difference in row.differences]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    rule = [
        "-" * width if i in TEXT_COLUMNS else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    head, *body = lines
    table = [_line(cells, widths) for cells in (head, rule, *body)]
    notes = [
        f"A: {names[0]}, {found.devices[0]}",
        f"B: {names[1]}, {found.devices[1]}",
        f"a difference has p < {1 - found.confidence:.2f} (Welch's test on the logarithms of the "
        f"processes' means) and {found.min_effect:.1%} or more",
        *found.remarks,
    ]
    return "\n".join([*table, "", *(f"- {note}" for note in notes)])


def _cells(label: str, found: Difference) -> list[str]:
    low_high = found.interval
    return [
        label,
        f"{found.quantity} ({found.unit})",
        _number(found.a),
        _number(found.b),
        f"{found.ratio:.3f}",
        f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else "—",
        "—" if found.p is None else f"{found.p:.3f}" if found.p >= 0.001 else "< 0.001",
        "{} and {}".format(*found.processes),
        _conclusion(found),
    ]


def _conclusion(found: Difference) -> str:
    if found.is_better is None:
        return found.conclusion
    size = abs(found.ratio - 1)
    return f"{size:.1%} {found.conclusion}: {'better' if found.is_better else 'worse'}"


def _number(value: float) -> str:
    """Four significant figures, none of them in an exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _line(cells: list[str], widths: list[int]) -> str:
    padded = [
        cell.ljust(width) if i in TEXT_COLUMNS else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"
