"""The rows of a profile relative to a baseline: a row, an engine, or another environment's rows."""

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


def with_ratios(profile: Profile, baseline: str | None = None) -> Profile:
    """The profile with every row's ratios to `baseline`, by default that of the run.

    A row of another environment is compared with the same row of this one.
    """
    name = baseline or profile.method.baseline
    if baseline:
        check_baseline(baseline, ((row.artefact, row.engine, row.arm) for row in profile.rows))
    confidence = CONFIDENCE if profile.method.until_percent is None else UNTIL_CONFIDENCE
    rows = [_with_ratios(row, profile.rows, name, confidence) for row in profile.rows]
    return replace(profile, rows=rows)


def check_baseline(name: str, rows: Iterable[tuple[str, str, str | None]]) -> None:
    """Refuses a name that no row can be compared with; rows are artefact, engine and arm."""
    distinct = dict.fromkeys(rows)
    peers = [a[1] for a, b in permutations(distinct, 2) if a[0] == b[0] and a[1] != b[1]]
    found = [with_peer(*row) for row in distinct if len(distinct) > 1]
    found += dict.fromkeys(peers)
    if not found:
        raise EdgeError(f"--baseline {name} needs two rows or more; add --rows or --peers.")
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
    return replace(row, baseline=base.with_peer(base.artefact), ratios=ratios)


def _baseline_of(row: Row, rows: Sequence[Row], name: str | None) -> Row | None:
    """The row of the same workload that is called `name`, or has the same artefact on `name`."""
    if name is None and row.arm is None:
        return None
    for other in rows:
        if other is row or other.workload != row.workload:
            continue
        is_same = other.artefact == row.artefact and other.arm is None
        if name is None:
            is_found = is_same and other.engine == row.engine
        else:
            is_found = name == other.with_peer(other.artefact) or (is_same and other.engine == name)
        if is_found:
            return other
    return None
