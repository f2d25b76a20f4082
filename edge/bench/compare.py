"""Two profiles of one model: what differs, by how much, and whether that is more than noise.

One process is one observation: values of one process share its memory layout and its heat.
Compared are the logarithms of the processes' means, by Welch's test (1947) with Satterthwaite's
degrees of freedom (1946). The interval of the difference, raised to the power of e, is that of
the ratio of geometric means; as test and interval are the same statistic they never disagree, as
Fieller's interval and a test of the difference may.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edge.bench.workload import Workload
from edge.errors import EdgeError
from edge.stats import CONFIDENCE, t_quantile, welch

MIN_EFFECT = 0.02
# Two processes give an interval, but one that a single odd value stretches without bound.
MIN_PROCESSES = 3
Profile = Mapping[str, Any]
Row = Mapping[str, Any]
Key = tuple[str, str, Workload]
Conclusion = Literal[
    "higher", "lower", "no significant difference", "below the minimum effect", "too few processes"
]


@dataclass(frozen=True)
class Quantity:
    """What is compared: `values` gives one per process; `better` says which way is."""

    name: str
    unit: str
    better: Literal["higher", "lower"]
    values: Callable[[Row], list[float]]
    needs_meter: bool = False


@dataclass(frozen=True)
class Difference:
    """One quantity of one row, B against A.

    `a` and `b` are geometric means over `processes` processes each; `interval` is None where a
    side has fewer than two, `p` too. `is_better` is None unless there is a difference.
    """

    quantity: str
    unit: str
    a: float
    b: float
    processes: tuple[int, int]
    ratio: float
    interval: tuple[float, float] | None
    p: float | None
    conclusion: Conclusion
    is_better: bool | None


@dataclass(frozen=True)
class RowComparison:
    """One row of both profiles."""

    artefact: str
    engine: str
    workload: str
    differences: list[Difference]


@dataclass(frozen=True)
class Comparison:
    """All of it; `remarks` are sentences on what differs around the figures or was left out."""

    model: str
    devices: tuple[str, str]
    min_effect: float
    confidence: float
    rows: list[RowComparison]
    remarks: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def compare(a: Profile, b: Profile, min_effect: float = MIN_EFFECT) -> Comparison:
    """Compare what two profiles have in common.

    Args:
        a: the base.
        b: what is compared with it.
        min_effect: relative differences below this are not called one.

    Raises:
        EdgeError: models, methods or workloads are not the same, or no valid row is in both.
    """
    _refuse_different_models(a, b)
    _refuse_different_methods(a, b)
    rows_a, rows_b = _by_key(a, "A"), _by_key(b, "B")
    shared = [key for key in rows_a if key in rows_b]
    if not shared:
        raise EdgeError(_nothing_in_common(rows_a, rows_b))
    usable = [key for key in shared if not _invalid(key, rows_a, rows_b)]
    if not usable:
        raise EdgeError(
            f"Nothing to compare: {_invalid(shared[0], rows_a, rows_b)}; measure again."
        )
    compared = [_compare_row(key, rows_a[key], rows_b[key], min_effect) for key in usable]
    return Comparison(
        model=a["model"]["name"],
        devices=(a["device"]["name"], b["device"]["name"]),
        min_effect=min_effect,
        confidence=CONFIDENCE,
        rows=compared,
        remarks=list(_remarks(a, b, rows_a, rows_b)),
    )


def difference(
    quantity: Quantity, a: list[float], b: list[float], min_effect: float = MIN_EFFECT
) -> Difference:
    """Compare one value per process on either side, all above 0."""
    logs_a, logs_b = ([math.log(value) for value in side] for side in (a, b))
    shift = statistics.fmean(logs_b) - statistics.fmean(logs_a)
    interval, p = _interval(logs_a, logs_b, shift)
    conclusion = _conclude(shift, p, min(len(a), len(b)), min_effect)
    decided = conclusion in ("higher", "lower")
    return Difference(
        quantity=quantity.name,
        unit=quantity.unit,
        a=math.exp(statistics.fmean(logs_a)),
        b=math.exp(statistics.fmean(logs_b)),
        processes=(len(a), len(b)),
        ratio=math.exp(shift),
        interval=interval,
        p=p,
        conclusion=conclusion,
        is_better=conclusion == quantity.better if decided else None,
    )


def _interval(
    a: list[float], b: list[float], shift: float
) -> tuple[tuple[float, float] | None, float | None]:
    test = welch(b, a)
    if test is None:
        return None, None
    error = abs(shift / test.t) if test.t and math.isfinite(test.t) else _standard_error(a, b)
    half = t_quantile(0.5 + CONFIDENCE / 2, test.degrees) * error
    return (math.exp(shift - half), math.exp(shift + half)), test.p


def _standard_error(a: list[float], b: list[float]) -> float:
    return math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))


def _conclude(shift: float, p: float | None, processes: int, min_effect: float) -> Conclusion:
    if p is None or processes < MIN_PROCESSES:
        return "too few processes"
    if p >= 1 - CONFIDENCE:
        return "no significant difference"
    if abs(math.expm1(shift)) < min_effect:
        return "below the minimum effect"
    return "higher" if shift > 0 else "lower"


def _compare_row(key: Key, a: Row, b: Row, min_effect: float) -> RowComparison:
    found = []
    for quantity in QUANTITIES:
        if quantity.needs_meter and _meter(a) != _meter(b):
            continue
        values_a, values_b = quantity.values(a), quantity.values(b)
        if values_a and values_b:
            found.append(difference(quantity, values_a, values_b, min_effect))
    return RowComparison(key[0], key[1], str(key[2]), found)


def _means(pairs: Iterable[tuple[int, float | None]]) -> list[float]:
    """The mean of each process's values; none where one value is not above 0 or missing."""
    groups: dict[int, list[float]] = {}
    for group, value in pairs:
        if value is None or not value > 0:
            return []
        groups.setdefault(group, []).append(value)
    return [statistics.fmean(values) for values in groups.values()]


def _trials(value: Callable[[Row], float | None]) -> Callable[[Row], list[float]]:
    """Over the trials that count. Older profiles had one process per row and no rounds."""

    def values(row: Row) -> list[float]:
        counted = [trial for trial in row["trials"] if not trial["warmup"]]
        return _means((trial.get("round", 0), value(trial)) for trial in counted)

    return values


def _decode_joules_per(key: str) -> Callable[[Row], float | None]:
    """Of a trial's decode window, per second or token; None where there is no total."""

    def value(trial: Row) -> float | None:
        energy = trial.get("decode_energy") or {}
        joules, coverage, amount = (energy.get(name) for name in ("joules", "coverage", key))
        if not joules or not coverage or not amount or energy.get("missing") is not None:
            return None
        return float(sum(joules.values()) / coverage / amount)

    return value


def _peak_mb(row: Row) -> list[float]:
    peaks = [p.get("peak_memory_bytes") for p in row.get("processes") or [row]]
    return _means((i, peak / 1e6 if peak else None) for i, peak in enumerate(peaks))


QUANTITIES = (
    Quantity("decode", "tok/s", "higher", _trials(lambda trial: trial.get("decode_tok_s"))),
    Quantity("prefill", "tok/s", "higher", _trials(lambda trial: trial.get("prefill_tok_s"))),
    Quantity("power", "W", "lower", _trials(_decode_joules_per("window_s")), needs_meter=True),
    Quantity("energy", "J/token", "lower", _trials(_decode_joules_per("tokens")), needs_meter=True),
    Quantity("memory", "MB", "lower", _peak_mb),
)


def _refuse_different_models(a: Profile, b: Profile) -> None:
    for key in ("name", "revision", "parameters", "synthetic"):
        ours, theirs = a["model"].get(key), b["model"].get(key)
        if ours != theirs:
            raise EdgeError(
                f"The profiles are of different models ({key}: {ours} in A, {theirs} in B); "
                f"compare two runs of one model."
            )


def _refuse_different_methods(a: Profile, b: Profile) -> None:
    """Settings that change what a rate means."""
    for key in ("decode_rate", "excluded"):
        ours, theirs = a["method"].get(key), b["method"].get(key)
        if ours != theirs:
            raise EdgeError(
                f"The profiles were measured in different ways ({key}: {ours} in A, {theirs} in "
                f"B); measure one of them again with this version."
            )


def _by_key(profile: Profile, name: str) -> dict[Key, Row]:
    rows: dict[Key, Row] = {}
    for row in profile["rows"]:
        key = (row["artefact"], row["engine"], _workload(row))
        if key in rows:
            raise EdgeError(
                f"Profile {name} has {row['artefact']} on {row['engine']} twice with {key[2]}; "
                f"compare profiles with one row of each."
            )
        rows[key] = row
    return rows


def _workload(row: Row) -> Workload:
    given = row["workload"]
    return Workload(
        prompt=given.get("prompt", 0),
        generate=given.get("generate", 0),
        depth=given.get("depth", 0),
        joint=given.get("joint", False),
    )


def _nothing_in_common(a: Mapping[Key, Row], b: Mapping[Key, Row]) -> str:
    for (artefact, engine, ours), (other, other_engine, theirs) in ((x, y) for x in a for y in b):
        if (artefact, engine) == (other, other_engine):
            return (
                f"The profiles have different workloads ({artefact} on {engine}: {ours} in A, "
                f"{theirs} in B); measure both with the same -p, -n, -d and -pg."
            )
    listed = " and ".join(", ".join(f"{key[0]} on {key[1]}" for key in rows) for rows in (a, b))
    return f"The profiles have no row in common ({listed}); measure both with the same --rows."


def _invalid(key: Key, a: Mapping[Key, Row], b: Mapping[Key, Row]) -> str | None:
    for name, rows in (("A", a), ("B", b)):
        row = rows[key]
        if row["verdict"] == "INVALID":
            why = row["reasons"][0] if row["reasons"] else "no reason given"
            return f"{_label(key)} is INVALID in {name} ({why})"
    return None


def _remarks(
    a: Profile, b: Profile, rows_a: Mapping[Key, Row], rows_b: Mapping[Key, Row]
) -> Iterable[str]:
    if a["device"]["name"] != b["device"]["name"]:
        yield f"different devices: {a['device']['name']} in A, {b['device']['name']} in B"
    for package in sorted({*a["software"], *b["software"]}):
        ours, theirs = a["software"].get(package), b["software"].get(package)
        if ours != theirs:
            yield f"{package}: {ours} in A, {theirs} in B"
    for key in {**rows_a, **rows_b}:
        if key not in rows_b or key not in rows_a:
            yield f"{_label(key)} is only in {'A' if key in rows_a else 'B'}"
        elif fault := _invalid(key, rows_a, rows_b):
            yield f"not compared: {fault}"
        else:
            yield from _row_remarks(key, rows_a[key], rows_b[key])


def _row_remarks(key: Key, a: Row, b: Row) -> Iterable[str]:
    for name, row in (("A", a), ("B", b)):
        if row["verdict"] == "WARN":
            yield f"{_label(key)} is WARN in {name}: {'; '.join(row['reasons'][:1])}"
    facts_a, facts_b = a.get("engine_facts") or {}, b.get("engine_facts") or {}
    for fact in ("device", "compute_dtype", "kv_dtype", "threads", "build"):
        if facts_a.get(fact) != facts_b.get(fact):
            yield f"{_label(key)}, {fact}: {facts_a.get(fact)} in A, {facts_b.get(fact)} in B"
    ours, theirs = _meter(a), _meter(b)
    if ours and theirs and ours != theirs:
        yield f"{_label(key)}: power and energy not compared: {ours} in A, {theirs} in B"


def _meter(row: Row) -> str | None:
    """Source and boundary: joules of other rails are other joules."""
    power = row.get("power")
    return f"{power.get('source')} ({power.get('boundary')})" if power else None


def _label(key: Key) -> str:
    return f"{key[0]} on {key[1]} ({key[2]})"
