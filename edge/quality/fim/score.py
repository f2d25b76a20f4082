"""Scores of filled middles, their statistics by artefact and kind, the table, and samples.

Exact match compares every character. The stripped one ignores whitespace at both ends, as the
BigCode harness does, whose figures the Stable Code report prints. Edit similarity is
1 - Levenshtein distance / length of the longer text, in characters; 1 for two empty texts.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rapidfuzz.distance import Levenshtein

from edge.quality.fim.fill import Filled
from edge.quality.fim.holes import Hole
from edge.stats import interval
from edge.text import NOT_MEASURED, Layout, texts_table

Z_95 = statistics.NormalDist().inv_cdf(0.975)
Interval = tuple[float, float]
Row = dict[str, Any]
Middles = Mapping[str, Sequence[Filled]]
HEAD = ("Artefact", "Middles", "Samples", "Exact match", "without end spaces", "Edit similarity",
        "Exact match, change", "Edit similarity, change")  # fmt: skip
WORDS = 2
# Columns that a narrow terminal does not show, the least important first.
DROPPED = ("without end spaces", "Samples", "Edit similarity, change", "Exact match, change")


class Score(NamedTuple):
    """Comparison of a middle with the expected one."""

    exact: bool
    stripped: bool
    similarity: float


def score(expected: str, got: str) -> Score:
    similarity = Levenshtein.normalized_similarity(expected, got)
    return Score(got == expected, got.strip() == expected.strip(), similarity)


def summarise(scores: Sequence[Score]) -> dict[str, Any]:
    """Shares of one or more middles with Wilson's interval, the mean similarity with Student's."""
    exact = sum(s.exact for s in scores)
    similarities = [s.similarity for s in scores]
    spread = interval(similarities)
    return {
        "samples": len(scores),
        "exact_match": exact / len(scores),
        "exact_match_ci95": wilson(exact, len(scores)),
        "exact_match_stripped": statistics.fmean(s.stripped for s in scores),
        "edit_similarity": statistics.fmean(similarities),
        "edit_similarity_ci95": spread and (max(0.0, spread[0]), min(1.0, spread[1])),
    }


def compare(scores: Sequence[Score], reference: Sequence[Score]) -> dict[str, Any]:
    """Differences of an artefact from the reference on the same one or more holes."""
    pairs = list(zip(scores, reference, strict=True))
    gained = sum(a.exact and not b.exact for a, b in pairs)
    lost = sum(b.exact and not a.exact for a, b in pairs)
    differences = [a.similarity - b.similarity for a, b in pairs]
    return {
        "gained": gained,
        "lost": lost,
        "exact_match": (gained - lost) / len(pairs),
        "exact_match_ci95": agresti_min(gained, lost, len(pairs)),
        "exact_match_p": mcnemar(gained, lost),
        "edit_similarity": statistics.fmean(differences),
        "edit_similarity_ci95": interval(differences),
    }


def wilson(successes: int, count: int) -> Interval:
    """Wilson's (1927) 95 % interval of a share, also valid for 0 and 1."""
    share, z2 = successes / count, Z_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    # The bounds of 0 and 1 are exact, without a rounding error.
    low = 0.0 if successes == 0 else middle - half
    return low, 1.0 if successes == count else middle + half


def agresti_min(gained: int, lost: int, count: int) -> Interval:
    """95 % interval of a difference of paired shares.

    Agresti and Min (2005), "Simple improved confidence intervals for comparing matched
    proportions": Wald's with half a pair more in each of the four cells.
    """
    more, fewer, n = gained + 0.5, lost + 0.5, count + 2
    difference = (more - fewer) / n
    half = Z_95 * math.sqrt(more + fewer - (more - fewer) ** 2 / n) / n
    return max(-1.0, difference - half), min(1.0, difference + half)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of the exact McNemar test that gained and lost are equally likely."""
    changed, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(changed, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << changed))


def build_rows(holes: Sequence[Hole], middles: Middles, reference: str | None) -> list[Row]:
    """A row for each artefact and kind of hole, with its change from the reference."""
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


def text(rows: Sequence[Row], layout: Layout | None) -> str:
    """The table, and counts of why middles ended; Markdown without a layout."""
    cells = [_cells(row) for row in rows]
    table = texts_table(HEAD, cells, HEAD[:WORDS], dropped=DROPPED, cut=HEAD[:WORDS])
    notes = []
    for row in rows:
        ends = ", ".join(f"{reason} {count}" for reason, count in row["stopped_by"].items())
        notes.append(f"{row['artefact']}, {row['kind']}: ended by {ends}; {row['seconds']:.1f} s")
    if layout is not None:
        return f"{layout.table(table)}\n\n{layout.notes(notes)}\n"
    return "\n".join([table.markdown(), "", *(f"- {note}" for note in notes), ""])


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
    """A share, or a difference of shares, in percent with its interval."""
    shown, bounds = f"{100 * record[name]:{pattern}}{unit}", record[f"{name}_ci95"]
    if bounds is None:
        return shown
    low, high = (format(100 * bound, pattern) for bound in bounds)
    return f"{shown} ({low} to {high})"


def samples(holes: Sequence[Hole], middles: Middles, count: int) -> list[Row]:
    """The first `count` holes of each kind with every artefact's middles."""
    shown: list[Row] = []
    seen: Counter[str] = Counter()
    for i, hole in enumerate(holes):
        seen[hole.kind] += 1
        if seen[hole.kind] <= count:
            got = {
                name: {"text": filled[i].text, "stopped_by": filled[i].stopped_by}
                for name, filled in middles.items()
            }
            expected = hole.middle
            shown.append({"name": hole.name, "kind": hole.kind, "expected": expected, "got": got})
    return shown


def samples_text(shown: Sequence[Row]) -> str:
    """Samples as text, with quoted middles and escaped control characters."""
    lines = []
    for entry in shown:
        width = max(map(len, ("expected", *entry["got"])))
        lines.append(f"{ascii(entry['name'])[1:-1]} ({entry['kind']})")
        lines.append(f"  {'expected':<{width}}  {entry['expected']!r}")
        for artefact, got in entry["got"].items():
            mark = "" if got["text"] == entry["expected"] else f"  ({got['stopped_by']})"
            lines.append(f"  {artefact:<{width}}  {got['text']!r}{mark}")
    return "\n".join(lines) + "\n"
