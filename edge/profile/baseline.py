"""The rows of a profile relative to a baseline: a row, an engine, a batch, another environment."""

import re
from collections.abc import Iterable, Sequence
from itertools import permutations

from msgspec.structs import replace

from edge.errors import EdgeError
from edge.profile.profile import Profile, Row, with_peer
from edge.profile.ratio import Ratio, ratio_of
from edge.stats import CONFIDENCE

# What is compared, by the row's key.
RATES = ("decode_tok_s", "prefill_tok_s")
RATIOS = (*RATES, "joules_per_token")
# The interval's confidence after --until, which looks at it after every round and stops where it
# happens to be narrow: with 97 % no more than 5 % of equal rows seem to differ (docs/method.md).
UNTIL_CONFIDENCE = 0.97
# Names the same row in a batch of so many sequences.
BATCH = re.compile(r"npl([1-9]\d{0,2})", re.ASCII)


def with_ratios(profile: Profile, baseline: str | None = None) -> Profile:
    """The profile with every row's ratios to `baseline`, by default that of the run.

    A row of another environment is compared with the same row of this one.
    """
    name = baseline or profile.method.baseline
    if baseline:
        named = ((row.artefact, row.engine, row.arm) for row in profile.rows)
        check_baseline(baseline, named, (row.workload.batch for row in profile.rows))
    confidence = CONFIDENCE if profile.method.until_percent is None else UNTIL_CONFIDENCE
    rows = [_with_ratios(row, profile.rows, name, confidence) for row in profile.rows]
    return replace(profile, rows=rows)


def batch_of(name: str | None) -> int | None:
    """The sequences of a baseline such as npl1; None if it is not a batch."""
    found = BATCH.fullmatch(name or "")
    return int(found[1]) if found else None


def check_baseline(
    name: str, rows: Iterable[tuple[str, str, str | None]], batches: Iterable[int] = ()
) -> None:
    """Refuses a name that no row can be compared with; rows are artefact, engine and arm."""
    distinct, sizes = dict.fromkeys(rows), dict.fromkeys(batches)
    peers = [a[1] for a, b in permutations(distinct, 2) if a[0] == b[0] and a[1] != b[1]]
    found = [with_peer(*row) for row in distinct if len(distinct) > 1]
    found += dict.fromkeys(peers)
    found += [f"npl{size}" for size in sizes if len(sizes) > 1]
    if not found:
        raise EdgeError(f"--baseline {name} needs two rows or more; add --rows, --peers or -npl.")
    if name not in found:
        raise EdgeError(f"--baseline {name} is not a row; give one of these: {', '.join(found)}.")


def _with_ratios(row: Row, rows: Sequence[Row], name: str | None, confidence: float) -> Row:
    base = _baseline_of(row, rows, name)
    if base is None:
        return replace(row, baseline=None, ratios={})
    ratios: dict[str, Ratio] = {}
    for key in RATIOS:
        is_known = getattr(row, key) is not None and getattr(base, key) is not None
        if not is_known or (key == "joules_per_token" and row.power != base.power):
            continue  # of a row that failed the trials do not count
        if found := ratio_of(row.counted, base.counted, key, confidence):
            ratios[key] = found
    of_batch = "" if base.workload == row.workload else f" npl{base.workload.batch}"
    return replace(row, baseline=f"{base.with_peer(base.artefact)}{of_batch}", ratios=ratios)


def _baseline_of(row: Row, rows: Sequence[Row], name: str | None) -> Row | None:
    """The row of the same workload that is called `name`, or has the same artefact on `name`.

    With a batch as the name the same artefact and engine, with the workload in that batch.
    """
    if name is None and row.arm is None:
        return None
    size = batch_of(name)
    workload = row.workload if size is None else replace(row.workload, batch=size)
    for other in rows:
        if other is row or other.workload != workload:
            continue
        is_same = other.artefact == row.artefact and other.arm is None
        if name is None or size is not None:
            is_found = is_same and other.engine == row.engine
        else:
            is_found = name == other.with_peer(other.artefact) or (is_same and other.engine == name)
        if is_found:
            return other
    return None
