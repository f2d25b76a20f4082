"""A profile's rows as plots want them: text cleaned, numbers checked, nothing assumed.

`read_profile` checks what a table needs; the rest of a stranger's file may hold anything. What
is not a number here counts as not measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.report.figure import plain
from edge.report.quality import Quality, quality_of
from edge.report.table import listed, with_peer
from edge.report.values import number, numbers, objects

# What stands before a reason's colon where it is a list of keys, and no part of the sentence.
KEYS = re.compile(r"\w+(?:, \w+)*(?: and (?:\w+|their like))?")
UNKNOWN = "the profile does not say why"
FRAMEWORKS = ("MLX", "GGUF")


@dataclass(frozen=True)
class Spread:
    """A measured quantity: median, an interval, n.

    `kind` says what the interval is: "ci95" of the mean over processes, "sd" one standard
    deviation either side of the mean, None if there is none; then low and high are the median.
    """

    median: float
    low: float
    high: float
    n: int
    kind: str | None


@dataclass(frozen=True)
class RowView:
    """One row; `data` is the row itself, for what only one plot needs.

    `name` is the artefact's, with the engine of a peer; `label` has the workload too, where there
    are several.
    """

    label: str
    name: str
    engine: str
    framework: str
    artefact: str
    bits: float
    workload: str
    depth: int
    verdict: str
    reasons: tuple[str, ...]
    data: Mapping[str, Any] = field(repr=False)

    @property
    def counts(self) -> bool:
        """Whether its figures may be held against others."""
        return self.verdict != "INVALID"

    @property
    def heading(self) -> str:
        """Its label, with the verdict where there is a doubt."""
        return self.label if self.verdict == "VALID" else f"{self.label} {plain(self.verdict, 12)}"

    def number(self, name: str) -> float | None:
        """A plain number of the row."""
        return number(self.data.get(name))

    def spread(self, name: str) -> Spread | None:
        """A measured quantity of the row; None if it was not measured."""
        return spread(self.data.get(name))

    @property
    def quality(self) -> Quality | None:
        """Of its artefact; None if it was not measured."""
        return quality_of(self.data.get("quality"))

    def counted_trials(self) -> list[Mapping[str, Any]]:
        """Those that are no warm-up, in the order of time."""
        return [trial for trial in self.trials() if not trial.get("warmup")]

    def trials(self) -> list[Mapping[str, Any]]:
        """All, in the order of time; a profile lists them round by round already."""
        return [trial for trial in objects(self.data.get("trials")) if trial]

    def why_not(self, *about: str) -> str:
        """Why something is missing: the reason that names it, else the row's first."""
        for word in about:
            for reason in self.reasons:
                head, _, tail = reason.partition(": ")
                if word in reason:
                    return tail if tail and KEYS.fullmatch(head) else reason
        failed = self.verdict == "INVALID" and self.reasons
        return self.reasons[0] if failed else UNKNOWN


def view(profile: Mapping[str, Any]) -> list[RowView]:
    """Every row, in the profile's order."""
    rows = objects(profile.get("rows"))
    several = len({workload_of(row) for row in rows}) > 1
    return [_row_view(row, several) for row in rows]


def side_by_side(rows: Sequence[RowView]) -> list[RowView]:
    """Workload by workload, from many bits to few, MLX beside the GGUF of the same bits."""
    places = {name: place for place, name in enumerate(dict.fromkeys(r.workload for r in rows))}
    return sorted(rows, key=lambda r: (places[r.workload], -round(r.bits), _framework_place(r)))


def absences(rows: Sequence[RowView], *about: str) -> list[str]:
    """Sentences for under a plot that does not show these rows, one for each reason."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        if not row.counts and row.spread("decode_tok_s") is not None:
            why = f"INVALID: {(*row.reasons, UNKNOWN)[0]}"
        else:
            why = f"not measured: {row.why_not(*about)}"
        labels.setdefault(why, []).append(row.label)
    return [f"{listed(found)} {why}." for why, found in labels.items()]


def main_workload(rows: Sequence[RowView], name: str) -> str | None:
    """The workload under which most rows have the quantity; None if none has."""
    counts: dict[str, int] = {}
    for row in rows:
        if row.spread(name) is not None:
            counts[row.workload] = counts.get(row.workload, 0) + 1
    return max(counts, key=lambda workload: counts[workload], default=None)


def spread(quantity: Any) -> Spread | None:
    """A quantity as the profile writes it."""
    if not isinstance(quantity, Mapping):
        return None
    median, mean = number(quantity.get("median")), number(quantity.get("mean"))
    if median is None or mean is None or median < 0:
        return None
    n = int(number(quantity.get("n")) or 0)
    interval = numbers(quantity.get("ci95"))
    if len(interval) == 2:
        return Spread(median, interval[0], interval[1], n, "ci95")
    sd = number(quantity.get("sd"))
    if sd is None:
        return Spread(median, median, median, n, None)
    return Spread(median, mean - sd, mean + sd, n, "sd")


def workload_of(row: Mapping[str, Any]) -> str:
    """As llama-bench spells it: pp512, tg128 @ d4096."""
    workload = row.get("workload")
    counts = workload if isinstance(workload, Mapping) else {}
    kinds = [("pp", counts.get("prompt")), ("tg", counts.get("generate"))]
    tests = [f"{kind}{int(n)}" for kind, given in kinds if (n := number(given))]
    name = ("+" if counts.get("joint") is True else ", ").join(tests)
    depth = number(counts.get("depth"))
    return f"{name} @ d{int(depth)}" if depth else name


def _row_view(row: Mapping[str, Any], several: bool) -> RowView:
    engine = str(row.get("engine"))
    artefact, workload = plain(row.get("artefact"), 48), workload_of(row)
    name = with_peer(artefact, plain(engine, 30))
    given = row.get("workload")
    depth = number(given.get("depth")) if isinstance(given, Mapping) else None
    reasons = row.get("reasons")
    return RowView(
        label=f"{name} {workload}" if several else name,
        name=name,
        engine=engine,
        framework=plain(row.get("framework"), 30),
        artefact=artefact,
        bits=number(row.get("bits_per_weight")) or 0.0,
        workload=workload,
        depth=int(depth or 0),
        verdict=str(row.get("verdict")),
        reasons=tuple(plain(r, 300) for r in reasons) if isinstance(reasons, list) else (),
        data=row,
    )


def _framework_place(row: RowView) -> int:
    return FRAMEWORKS.index(row.framework) if row.framework in FRAMEWORKS else len(FRAMEWORKS)
