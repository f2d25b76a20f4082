"""Verdicts on measurements, whoever made them: spread, outliers, drift, bandwidth.

INVALID: there is no figure, or it is wrong. WARN: there is one with a warning. No value is removed.
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence

from edge.device.chips import NVIDIA_CACHE_BYTES
from edge.device.describe import Device
from edge.profile.profile import Quantity, Reason, Row, Verdict
from edge.stats import drift, interval, outliers

# pyperf's practice: a spread of 10 % is unstable.
MAX_RELATIVE_SD = 0.10
# Beyond it the median says little about the machine: another run can give half or twice as much.
INVALID_RELATIVE_SD = 0.50
MIN_TRIALS = 3
# In shorter windows the scheduler is part of the figure, whatever --min-window says.
MIN_WINDOW_S = 0.1
# A smaller trend changes no conclusion.
MIN_DRIFT = 0.02
VERDICTS: dict[str, Verdict] = {"reason": "VALID", "warning": "WARN", "error": "INVALID"}


def warning(text: str) -> Reason:
    return Reason("", "warning", text)


def worst_first(reasons: Iterable[Reason]) -> list[Reason]:
    """Errors, then warnings, then the others; each once."""
    levels = list(VERDICTS)
    return sorted(dict.fromkeys(reasons), key=lambda reason: -levels.index(reason.level))


def summarise(values: Iterable[float | None], groups: Sequence[int]) -> Quantity | None:
    """Centre and spread of all values but None; None if there are none.

    `groups` has each value's process. Values of one process share its memory layout and its
    temperature, so the interval takes each process as one observation, as pyperf does.
    """
    by_group: dict[int, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        if value is not None:
            by_group.setdefault(group, []).append(value)
    measured = [value for group in by_group.values() for value in group]
    if not measured:
        return None
    return Quantity(
        median=statistics.median(measured),
        mean=statistics.fmean(measured),
        sd=statistics.stdev(measured) if len(measured) > 1 else None,
        n=len(measured),
        ci95=interval([statistics.fmean(group) for group in by_group.values()]),
    )


def judge_spread(
    name: str, rates: Sequence[float | None], longer: str, cooler: str
) -> Iterator[Reason]:
    """Warnings about rates in order of time; `longer` and `cooler` are the options that help."""
    values = [rate for rate in rates if rate is not None]
    if len(values) < 2:
        return
    relative_sd = statistics.stdev(values) / statistics.median(values)
    if relative_sd > MAX_RELATIVE_SD:
        yield Reason(
            "",
            "error" if relative_sd > INVALID_RELATIVE_SD else "warning",
            f"{name} varies by {relative_sd:.0%} between trials: close other programs, and use "
            f"more or longer trials ({longer})",
        )
    if far := outliers(values):
        yield warning(
            f"{name}: {len(far)} of {len(values)} trials are outliers and are kept: close other "
            f"programs and run again"
        )
    change = drift(values)
    if abs(change) >= MIN_DRIFT:
        yield warning(
            f"{name} {'falls' if change < 0 else 'rises'} by {abs(change):.0%} over the trials, as "
            f"on a device that heats up or cools down: {cooler}",
        )


def judge_bandwidth(
    row: Row, device: Device, slack: float = 0.0
) -> tuple[float | None, list[Reason]]:
    """Share of the memory's bandwidth, as each token reads all weights and its cache once.

    A batch reads the weights once for all its sequences. Bytes that fit in the last-level cache
    are not read from memory again, so have no share. A share above 1 is an error from 1 + `slack`
    on.
    """
    if row.decode_tok_s is None or not row.bytes_per_token:
        return None, []  # a failed row and one without decoding have their reason already
    bandwidth, cache_bytes = row.bandwidth(device), device.cache_bytes or 0
    if bandwidth is None:
        text = "; ".join(device.remarks) or "no bandwidth is known"
        return None, [Reason("bandwidth_fraction", "reason", text)]
    if bandwidth is device.gpu_memory_bandwidth:
        cache_bytes = NVIDIA_CACHE_BYTES
    cache_bytes *= row.machines
    if row.step_bytes <= cache_bytes:
        text = (
            f"a step's {row.step_bytes / 1e6:.0f} MB fit in the cache of "
            f"{cache_bytes / 1e6:.0f} MB, so memory is no ceiling; use a larger model"
        )
        return None, [Reason("bandwidth_fraction", "reason", text)]
    read_gb_s = row.decode_tok_s.median * row.bytes_per_token / 1e9
    share = read_gb_s / bandwidth.gb_s
    if share <= 1:
        return share, []
    text = (
        f"decode reads {read_gb_s:.1f} GB/s, {share:.0%} of the {bandwidth.gb_s:.1f} GB/s of the "
        f"memory: check --bandwidth-gb-s and run again"
    )
    # A bandwidth that was measured here can be too low: other programs may have run.
    is_sure = bandwidth.kind != "measured" and share > 1 + slack
    return share, [Reason("", "error" if is_sure else "warning", text)]
