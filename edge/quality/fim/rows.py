"""What is reported of an artefact and a kind of hole: plain data, and the table of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any

from edge.quality.fim.fill import Filled
from edge.quality.fim.hole import Hole
from edge.quality.fim.score import Score, compare, endings, score, summarise
from edge.report.lines import markdown_of
from edge.report.table import NOT_MEASURED

Row = dict[str, Any]
HEAD = (
    "Artefact",
    "Middles",
    "Samples",
    "Exact match",
    "without end spaces",
    "Edit similarity",
    "Exact match, change",
    "Edit similarity, change",
)
WORDS = HEAD[:2]


@dataclass(frozen=True)
class Result:
    """One artefact's middles."""

    artefact: str
    holes: Sequence[Hole]
    filled: Sequence[Filled]

    @property
    def kind(self) -> str:
        """Of all its holes, where they are of one."""
        return self.holes[0].kind


def by_kind(result: Result) -> list[Result]:
    """One result for each kind of hole, in the order of their first ones."""
    kinds = dict.fromkeys(hole.kind for hole in result.holes)
    return [_only(result, kind) for kind in kinds]


def _only(result: Result, kind: str) -> Result:
    of_kind = [hole.kind == kind for hole in result.holes]
    return Result(
        artefact=result.artefact,
        holes=list(compress(result.holes, of_kind)),
        filled=list(compress(result.filled, of_kind)),
    )


def build_rows(results: Sequence[Result], reference: str | None) -> list[Row]:
    """A row for each result.

    Args:
        results: each of one kind, and of at least one middle.
        reference: the artefact to compare the others with; None for no comparison.
    """
    references = {result.kind: result for result in results if result.artefact == reference}
    return [_row(result, references.get(result.kind)) for result in results]


def _row(result: Result, reference: Result | None) -> Row:
    scores, change = _scores(result), None
    if reference is not None and reference is not result:
        compared = compare(scores, _scores(reference))
        change = {"reference": reference.artefact, **asdict(compared)}
    return {
        "artefact": result.artefact,
        "kind": result.kind,
        **asdict(summarise(scores)),
        "stopped_by": endings([middle.stopped_by for middle in result.filled]),
        "seconds": sum(middle.seconds for middle in result.filled),
        "change": change,
    }


def _scores(result: Result) -> list[Score]:
    pairs = zip(result.holes, result.filled, strict=True)
    return [score(hole.middle, middle.text) for hole, middle in pairs]


def markdown(rows: Sequence[Row]) -> str:
    """The table, and how the middles ended; ends with a line end."""
    numeric = [name not in WORDS for name in HEAD]
    table = markdown_of(HEAD, numeric, [_cells(row) for row in rows])
    ends = "\n".join(_ends(row) for row in rows)
    return f"{table}\n\n{ends}\n"


def _cells(row: Row) -> list[str]:
    change = row["change"] or {}
    p = f", p {change['exact_match_p']:.2g}" if change else ""
    return [
        row["artefact"],
        row["kind"],
        str(row["samples"]),
        _share(row["exact_match"], row["exact_match_ci95"]),
        f"{row['exact_match_stripped']:.1%}",
        _share(row["edit_similarity"], row["edit_similarity_ci95"]),
        _points(change, "exact_match") + p,
        _points(change, "edit_similarity"),
    ]


def _share(value: float, bounds: tuple[float, float] | None) -> str:
    if bounds is None:
        return f"{value:.1%}"
    return f"{value:.1%} [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"


def _points(change: Mapping[str, Any], name: str) -> str:
    """A difference in percentage points with its interval; none for the reference."""
    if not change:
        return NOT_MEASURED
    value, bounds = change[name], change[f"{name}_ci95"]
    text = f"{100 * value:+.1f}"
    return text if bounds is None else f"{text} [{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}]"


def _ends(row: Row) -> str:
    ends = ", ".join(f"{reason} {count}" for reason, count in row["stopped_by"].items())
    return f"- {row['artefact']}, {row['kind']}: ended by {ends}; {row['seconds']:.1f} s"


# --- samples


def samples(results: Sequence[Result], count: int) -> list[Row]:
    """The first holes of each kind with what every artefact made of them."""
    shown: dict[str, Row] = {}
    for result in results:
        for hole, middle in list(zip(result.holes, result.filled, strict=True))[:count]:
            entry = shown.setdefault(
                f"{hole.kind} {hole.name}",
                {"name": hole.name, "kind": hole.kind, "expected": hole.middle, "got": {}},
            )
            entry["got"][result.artefact] = {"text": middle.text, "stopped_by": middle.stopped_by}
    return list(shown.values())


def samples_text(shown: Sequence[Row]) -> str:
    """Samples as they are printed: texts quoted, every control character as its escape."""
    lines = []
    for entry in shown:
        width = max(map(len, ("expected", *entry["got"])))
        lines.append(f"{ascii(entry['name'])[1:-1]} ({entry['kind']})")
        lines.append(f"  {'expected':<{width}}  {entry['expected']!r}")
        for artefact, got in entry["got"].items():
            mark = "" if got["text"] == entry["expected"] else f"  ({got['stopped_by']})"
            lines.append(f"  {artefact:<{width}}  {got['text']!r}{mark}")
    return "\n".join(lines) + "\n"
