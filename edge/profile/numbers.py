"""Numbers of a row that contradict each other, as pairs of a place in the row and an error."""

import math
import statistics
from collections.abc import Iterator
from itertools import chain, pairwise

from edge.device.chips import APPLE_CACHE_BYTES, NVIDIA_CACHE_BYTES, find_chip
from edge.device.describe import Bandwidth, Device
from edge.profile.profile import Quantity, Row
from edge.profile.trial import Trial

Findings = Iterator[tuple[str, str]]
# Relative: of sums in another order, and of a share of a rounded bandwidth.
TOLERANCE, ROUNDED = 1e-6, 1e-2
# The stamps of a pass are rounded to whole microseconds.
ROUNDING_NS = 1000
DISORDER = "has stamps that do not pair or that run backwards."
RATES = ("decode_tok_s", "prefill_tok_s", "ttft_s")
# Trials may lack their energy; older files also lack the prefill's quantities.
ENERGIES = ("power_w", "joules_per_token", "prefill_power_w", "prefill_joules_per_token")


def row_findings(row: Row, device: Device | None) -> Findings:
    """Everything in a row that contradicts the rest of it; the roofline only with a device."""
    for name in (*RATES, *ENERGIES):
        values = [v for trial in row.counted if (v := _trial_value(trial, name)) is not None]
        yield from _quantity_findings(name, row, values)
    gross, net = row.joules_per_token, row.joules_per_token_net
    if gross is not None and net is not None and net.median > gross.median:
        what = f"is {net.median}, but net of idle power it cannot exceed the gross {gross.median}."
        yield "joules_per_token_net.median", what
    latency_ms = row.token_latency_ms or {}
    percentiles = [latency_ms[name] for name in ("p50", "p90", "p99") if name in latency_ms]
    if percentiles != sorted(percentiles):
        yield "token_latency_ms", "has percentiles that do not rise from p50 to p99."
    for index, trial in enumerate(row.trials):
        for place, what in _trial_findings(trial, max(row.workload.generate - 1, 0)):
            yield f"trials[{index}].{place}", what
    if device is not None:
        yield from _roofline_findings(row, device)


def _trial_value(trial: Trial, name: str) -> float | None:
    if name in RATES:
        value: float | None = getattr(trial, name)
        return value
    window = trial.prefill_energy if name.startswith("prefill_") else trial.decode_energy
    return None if window is None else getattr(window, name.removeprefix("prefill_"))


def _quantity_findings(name: str, row: Row, values: list[float]) -> Findings:
    quantity: Quantity | None = getattr(row, name)
    has = f"{len(values)} {'trial has' if len(values) == 1 else 'trials have'} a value"
    if quantity is None:
        # An INVALID row may withhold what its trials have.
        if values and row.counts and not name.startswith("prefill_p"):
            yield name, f"is null, but {has} for it."
        return
    if name in ENERGIES:
        if quantity.median <= 0:
            yield f"{name}.median", "must be above 0."
        if not values:
            return
    if quantity.n != len(values):
        yield f"{name}.n", f"is {quantity.n}, but {has} (warm-ups do not count)."
        return
    expected = {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        # Older files have 0 as the sd of one value.
        "sd": statistics.stdev(values) if len(values) > 1 else quantity.sd and 0.0,
    }
    for part, value in expected.items():
        if not _close(given := getattr(quantity, part), value):
            yield f"{name}.{part}", f"is {given}, but the trials' values give {value}."
    if quantity.ci95 is not None and quantity.ci95[0] > quantity.ci95[1]:
        yield f"{name}.ci95", "has its limits in the wrong order."


def _trial_findings(trial: Trial, steps_per_pass: int) -> Findings:
    prefills, passes = trial.prefills, trial.passes
    if len(trial.prefill_ns) % 2 or _runs_backwards(prefills):
        yield "prefill_ns", DISORDER
        return
    if len(trial.pass_begin_ns) != len(trial.pass_end_ns) or _runs_backwards(passes):
        yield "pass_end_ns", DISORDER
        return
    steps = len(passes) * steps_per_pass
    if isinstance(trial.token_ns, list):
        steps = max(len(trial.token_ns) - 1, 0)
    decode_s, prefill_s = (sum(end - begin for begin, end in w) / 1e9 for w in (passes, prefills))
    ttft_s = prefill_s / len(prefills) if prefills else None
    expected = {
        "decode_tok_s": steps / decode_s if steps and decode_s else None,
        "ttft_s": ttft_s,
        "prefill_tok_s": trial.prompt_tokens / ttft_s if ttft_s else None,
    }
    for key, value in expected.items():
        if not _close(given := getattr(trial, key), value):
            yield key, f"is {given}, but its stamps give {value}."
    for index, (times, (begin, end)) in enumerate(zip(trial.token_us, passes, strict=False)):
        if len(times) != steps_per_pass:
            what = f"has {len(times)} times, but the workload has {steps_per_pass} in every pass."
            yield f"token_us[{index}]", what
        elif abs(sum(times) * 1000 - (end - begin)) > ROUNDING_NS:
            yield f"token_us[{index}]", "does not add up to the time from begin to end."


def _runs_backwards(windows: list[tuple[int, int]]) -> bool:
    return any(b < a for a, b in pairwise(chain.from_iterable(windows)))


def _roofline_findings(row: Row, device: Device) -> Findings:
    """A rate above the memory's bandwidth, and a share that does not follow from the rate."""
    if row.decode_tok_s is None or not row.bytes_per_token or row.decode_tok_s.median <= 0:
        return
    read_gb_s = row.decode_tok_s.median * row.bytes_per_token / 1e9
    stated, share = row.bandwidth(device), row.bandwidth_fraction
    if stated is not None and share is not None:
        expected = read_gb_s / stated.gb_s
        if not _close(share, expected, ROUNDED):
            what = f"is {share}, but rate, bytes per token and bandwidth give {expected:.4g}."
            yield "bandwidth_fraction", what
    limit_gb_s = _limit_gb_s(device, stated)
    is_cached = row.bytes_per_token <= _cache_bytes(device, stated)
    if limit_gb_s is not None and read_gb_s > limit_gb_s and row.counts and not is_cached:
        what = f"reads {read_gb_s:.4g} GB/s, but this device's memory can do {limit_gb_s:.4g} GB/s."
        yield "decode_tok_s.median", f"{what} Measure again."


def _limit_gb_s(device: Device, stated: Bandwidth | None) -> float | None:
    """Bandwidth of the chip's table, else the stated one; None if that was measured (too low)."""
    chip, _ = find_chip(device.name, device.gpu_cores)
    if chip is not None:
        return chip.bandwidth_gb_s
    return None if stated is None or stated.kind == "measured" else stated.gb_s


def _cache_bytes(device: Device, stated: Bandwidth | None) -> int:
    if stated is not None and stated is device.gpu_memory_bandwidth:
        return NVIDIA_CACHE_BYTES
    return device.cache_bytes or (APPLE_CACHE_BYTES if device.name.startswith("Apple ") else 0)


def _close(a: float | None, b: float | None, tolerance: float = TOLERANCE) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-9)
