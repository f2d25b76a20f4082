"""Comparison of two profiles of one model.

One process is one observation, because its values share a memory layout and a temperature. Welch's
test compares the logarithms of the processes' means. The exponential of the difference's interval
is that of the ratio of geometric means, so that test and interval always agree.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge.bench.engines.engine import SERVER
from edge.errors import EdgeError
from edge.profile.profile import Profile, Row, Workload
from edge.stats import CONFIDENCE, detectable, t_quantile, welch
from edge.text import plain

# Two processes give an interval, but a single outlier makes it useless.
MIN_PROCESSES = 3
MODEL_KEYS = ("name", "revision", "parameters", "synthetic")
METHOD_KEYS = ("decode_rate", "excluded")  # settings that define a rate
FACTS = ("device", "compute_dtype", "kv_dtype", "threads", "build")
# A request generates behind its prompt; -p and -n of an engine here are tests of their own.
SERVED_HINT = " (beside a server's -p P -n N: -pg P,N)"
Key = tuple[str, str, Workload]
Conclusion = Literal[
    "higher", "lower", "no significant difference", "below the minimum effect", "too few processes"
]


@dataclass(frozen=True)
class Compared:
    """A quantity: field `key` of a trial, or of what `within` names."""

    name: str
    unit: str
    better: Literal["higher", "lower"]
    key: str
    within: Literal["trial", "decode_energy", "process"] = "trial"
    scale: float = 1.0


@dataclass(frozen=True)
class Difference:
    """One quantity of one row, B against A.

    `a` and `b` are geometric means over `processes` processes each; `interval`, `p` and
    `detectable`, the smallest relative difference that such data shows with the probability
    POWER, are None where a side has fewer than two. `is_better` is None unless there is a
    difference.
    """

    quantity: str
    unit: str
    a: float
    b: float
    processes: tuple[int, int]
    ratio: float
    interval: tuple[float, float] | None
    p: float | None
    detectable: float | None
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
    """The whole comparison; `remarks` are other differences, and rows that were left out."""

    model: str
    devices: tuple[str, str]
    min_effect: float
    confidence: float
    rows: list[RowComparison]
    remarks: list[str]


def compare(a: Profile, b: Profile, min_effect: float) -> Comparison:
    """Compares `b` with `a`; `min_effect` is the smallest relative difference that counts.

    An EdgeError if models or methods differ, or no valid row is in both. A server's rows may be
    compared with another engine's and another server's; then a remark has the differences.
    """
    is_served = _is_served(a) or _is_served(b)
    if not is_served:
        _refuse_different("models", MODEL_KEYS, a.model, b.model)
        _refuse_different("methods", METHOD_KEYS, a.method, b.method)
    names = _common_names(a, b) if is_served else {}
    rows_a, rows_b = _by_key(a, "A", names), _by_key(b, "B", names)
    left_out = {key: _left_out(key, rows_a, rows_b) for key in {**rows_a, **rows_b}}
    usable = [key for key, reason in left_out.items() if reason is None]
    if not usable:
        reasons = "; ".join(map(str, left_out.values()))
        raise EdgeError(
            f"The profiles have no valid row in common ({reasons}); measure both with the same "
            f"--rows, -p, -n, -d and -pg{SERVED_HINT if is_served else ''}."
        )
    return Comparison(
        model=plain(a.model.name),
        devices=(plain(a.device.name), plain(b.device.name)),
        min_effect=min_effect,
        confidence=CONFIDENCE,
        rows=[_compare_row(key, rows_a[key], rows_b[key], min_effect) for key in usable],
        remarks=[
            *(_served_remarks(a, b) if is_served else ()),
            *_remarks(a, b),
            *filter(None, left_out.values()),
            *(r for key in usable for r in _row_remarks(_label(key), rows_a[key], rows_b[key])),
        ],
    )


def difference(quantity: Compared, a: list[float], b: list[float], min_effect: float) -> Difference:
    """Compares positive values, one per process."""
    logs_a, logs_b = ([math.log(value) for value in side] for side in (a, b))
    shift = statistics.fmean(logs_b) - statistics.fmean(logs_a)
    interval, p, smallest = None, None, None
    if (test := welch(logs_b, logs_a)) is not None:
        half = t_quantile(0.5 + CONFIDENCE / 2, test.degrees) * test.error
        interval, p = (math.exp(shift - half), math.exp(shift + half)), test.p
        smallest = math.expm1(detectable(half, test.degrees))
    conclusion = _conclude(shift, p, min(len(a), len(b)), min_effect)
    return Difference(
        quantity=quantity.name,
        unit=quantity.unit,
        a=math.exp(statistics.fmean(logs_a)),
        b=math.exp(statistics.fmean(logs_b)),
        processes=(len(a), len(b)),
        ratio=math.exp(shift),
        interval=interval,
        p=p,
        detectable=smallest,
        conclusion=conclusion,
        is_better=conclusion == quantity.better if conclusion in ("higher", "lower") else None,
    )


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
        if quantity.within == "decode_energy" and _meter(a) != _meter(b):
            continue
        values_a, values_b = _values(quantity, a), _values(quantity, b)
        if values_a and values_b:
            found.append(difference(quantity, values_a, values_b, min_effect))
    return RowComparison(plain(key[0]), plain(key[1]), str(key[2]), found)


def _values(quantity: Compared, row: Row) -> list[float]:
    """The mean of each process's values; empty where a value is missing or not above 0.

    Older profiles have one process per row, and one peak of the memory.
    """
    parts: list[Any] = row.counted
    if quantity.within == "process":
        parts = [*row.processes] or [row]
    groups: dict[int, list[float]] = {}
    for part in parts:
        source = part.decode_energy if quantity.within == "decode_energy" else part
        value = getattr(source, quantity.key, None)
        if value is None or not value > 0:
            return []
        groups.setdefault(getattr(part, "round", 0), []).append(value * quantity.scale)
    return [statistics.fmean(values) for values in groups.values()]


QUANTITIES = (
    Compared("decode", "tok/s", "higher", "decode_tok_s"),
    Compared("prefill", "tok/s", "higher", "prefill_tok_s"),
    Compared("power", "W", "lower", "power_w", "decode_energy"),
    Compared("energy", "J/token", "lower", "joules_per_token", "decode_energy"),
    Compared("memory", "MB", "lower", "peak_memory_bytes", "process", 1e-6),
)


def _refuse_different(what: str, keys: Sequence[str], a: object, b: object) -> None:
    for key in keys:
        for found in _different(key, getattr(a, key), getattr(b, key)):
            raise EdgeError(
                f"The profiles have different {what} ({found}); measure one model twice with one "
                f"version of edge."
            )


def _is_served(profile: Profile) -> bool:
    return any(row.engine == SERVER for row in profile.rows)


def _common_names(a: Profile, b: Profile) -> dict[tuple[str, str], tuple[str, str]]:
    """Artefact and engine -> what both profiles call them, as one of them is a server's.

    A server has names of its own: where each profile has one artefact, it is taken for the same.
    """
    found = [list(dict.fromkeys((row.artefact, row.engine) for row in p.rows)) for p in (a, b)]
    every = [pair for pairs in found for pair in pairs]
    if any(len(pairs) != 1 for pairs in found):
        return {pair: (pair[0], "both engines") for pair in every}
    (name, engine_a), (_, engine_b) = every
    engines = engine_a if engine_a == engine_b else f"{engine_a} (A) and {engine_b} (B)"
    return dict.fromkeys(every, (name, engines))


def _served_remarks(a: Profile, b: Profile) -> Iterator[str]:
    """What a comparison with a server cannot know, and times that mean something else."""
    for name, profile in (("A", a), ("B", b)):
        kind = "through HTTP" if _is_served(profile) else "in the process of the engine"
        yield f"{name} was measured {kind}"
    if _is_served(a) != _is_served(b):
        yield (
            "times through HTTP include tokenising, sampling, detokenising and the way to the "
            "server and back; the others do not"
        )
    yield from _different("models that may differ", a.model.name, b.model.name)


def _by_key(
    profile: Profile, name: str, names: Mapping[tuple[str, str], tuple[str, str]]
) -> dict[Key, Row]:
    """Rows by artefact, engine and workload; `names` replaces the first two."""
    rows: dict[Key, Row] = {}
    for row in profile.rows:
        pair = (row.artefact, row.engine)
        artefact, engine = names.get(pair, pair)
        key = (f"{artefact} ({row.arm})" if row.arm else artefact, engine, row.workload)
        if key in rows:
            raise EdgeError(
                f"Profile {name} has {_label(key)} twice; compare profiles with one row of each."
            )
        rows[key] = row
    return rows


def _left_out(key: Key, a: Mapping[Key, Row], b: Mapping[Key, Row]) -> str | None:
    """Why a row is not compared."""
    if key not in a or key not in b:
        return f"{_label(key)} is only in {'A' if key in a else 'B'}"
    for found in _different("models", _model_of(a[key]), _model_of(b[key])):
        return f"not compared: {_label(key)} has different {found}"
    for name, row in (("A", a[key]), ("B", b[key])):
        if row.verdict == "INVALID":
            return f"not compared: {_label(key)} is INVALID in {name} ({_first_reason(row)})"
    return None


def _model_of(row: Row) -> str:
    """A row's model, which differs from the profile's where that has several."""
    return (
        "the profile's"
        if row.model is None
        else f"{row.model.name}, {row.model.parameters} parameters"
    )


def _remarks(a: Profile, b: Profile) -> Iterator[str]:
    yield from _different("different devices", a.device.name, b.device.name)
    for package in sorted({*a.software, *b.software}):
        yield from _different(plain(package), a.software.get(package), b.software.get(package))


def _row_remarks(label: str, a: Row, b: Row) -> Iterator[str]:
    for name, row in (("A", a), ("B", b)):
        if row.verdict == "WARN":
            yield f"{label} is WARN in {name}: {_first_reason(row)}"
    for fact in FACTS:
        ours, theirs = (getattr(row.engine_facts, fact, None) for row in (a, b))
        yield from _different(f"{label}, {fact}", ours, theirs)
    if a.power and b.power:
        yield from _different(f"{label}: power and energy not compared", _meter(a), _meter(b))


def _different(what: str, ours: object, theirs: object) -> Iterator[str]:
    if ours != theirs:
        yield f"{what}: {plain(str(ours))} in A, {plain(str(theirs))} in B"


def _meter(row: Row) -> str | None:
    """Source and boundary, with which joules are comparable."""
    return f"{row.power.source} ({row.power.boundary})" if row.power else None


def _first_reason(row: Row) -> str:
    return plain(row.reasons[0], 300) if row.reasons else "no reason given"


def _label(key: Key) -> str:
    return f"{plain(key[0])} on {plain(key[1])} ({key[2]})"
