"""Rows of filled middles by artefact and kind, the table of them, and samples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from edge.quality.fim.fill import Filled
from edge.quality.fim.holes import Hole
from edge.quality.fim.score import Score, compare, score, summarise
from edge.text import NOT_MEASURED
from edge.text import markdown as markdown_table

Row = dict[str, Any]
Middles = Mapping[str, Sequence[Filled]]
HEAD = ("Artefact", "Middles", "Samples", "Exact match", "without end spaces", "Edit similarity",
        "Exact match, change", "Edit similarity, change")  # fmt: skip
WORDS = 2


def build_rows(holes: Sequence[Hole], middles: Middles, reference: str | None) -> list[Row]:
    """A row for each artefact and kind of hole; others are compared with the reference."""
    kinds = dict.fromkeys(hole.kind for hole in holes)
    return [_row(name, kind, holes, middles, reference) for name in middles for kind in kinds]


def _row(
    artefact: str, kind: str, holes: Sequence[Hole], middles: Middles, reference: str | None
) -> Row:
    places = [i for i, hole in enumerate(holes) if hole.kind == kind]

    def scores_of(name: str) -> list[Score]:
        return [score(holes[i].middle, middles[name][i].text) for i in places]

    own, scores, change = [middles[artefact][i] for i in places], scores_of(artefact), None
    if reference is not None and reference in middles and reference != artefact:
        change = {"reference": reference, **compare(scores, scores_of(reference))}
    return {
        "artefact": artefact,
        "kind": kind,
        **summarise(scores),
        "stopped_by": dict(Counter(middle.stopped_by for middle in own).most_common()),
        "seconds": sum(middle.seconds for middle in own),
        "change": change,
    }


def markdown(rows: Sequence[Row]) -> str:
    """The table, and how the middles ended; ends with a line end."""
    table = markdown_table(HEAD, [_cells(row) for row in rows], HEAD[:WORDS])
    ends = "\n".join(_ends(row) for row in rows)
    return f"{table}\n\n{ends}\n"


def _cells(row: Row) -> list[str]:
    change = row["change"]
    changes = [NOT_MEASURED, NOT_MEASURED]
    if change is not None:
        changes = [_interval(change, name, "+.1f") for name in ("exact_match", "edit_similarity")]
        changes[0] += f", p {change['exact_match_p']:.2g}"
    return [
        row["artefact"],
        row["kind"],
        str(row["samples"]),
        _interval(row, "exact_match", ".1f", "%"),
        f"{row['exact_match_stripped']:.1%}",
        _interval(row, "edit_similarity", ".1f", "%"),
        *changes,
    ]


def _interval(record: Row, name: str, pattern: str, unit: str = "") -> str:
    """A share or a difference of shares in percent, with its interval."""
    text, bounds = f"{100 * record[name]:{pattern}}{unit}", record[f"{name}_ci95"]
    if bounds is None:
        return text
    low, high = (format(100 * bound, pattern) for bound in bounds)
    return f"{text} [{low}, {high}]"


def _ends(row: Row) -> str:
    ends = ", ".join(f"{reason} {count}" for reason, count in row["stopped_by"].items())
    return f"- {row['artefact']}, {row['kind']}: ended by {ends}; {row['seconds']:.1f} s"


def samples(holes: Sequence[Hole], middles: Middles, count: int) -> list[Row]:
    """The first holes of each kind with every artefact's middles."""
    shown: list[Row] = []
    seen: Counter[str] = Counter()
    for i, hole in enumerate(holes):
        seen[hole.kind] += 1
        if seen[hole.kind] <= count:
            got = {
                name: {"text": filled[i].text, "stopped_by": filled[i].stopped_by}
                for name, filled in middles.items()
            }
            place = {"name": hole.name, "kind": hole.kind, "expected": hole.middle}
            shown.append({**place, "got": got})
    return shown


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
