"""Numbers that have the right shape and yet cannot be: against the trials, the stamps, the memory.

All functions take a row that fits the schema, and give places inside of it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from edge.device.chips import APPLE_CACHE_BYTES, NVIDIA_CACHE_BYTES, find_chip
from edge.device.roofline import fraction, on_gpu
from edge.profile.fault import Finding

Data = Mapping[str, Any]
# Sums of floating point numbers in another order; and fractions of a bandwidth that is rounded.
TOLERANCE, ROUNDED = 1e-6, 1e-2
# Whole microseconds: their sum is rounded once.
ROUNDING_NS = 1000


def row_faults(row: Data, device: Data | None) -> Iterator[Finding]:
    """Everything in a row that contradicts the rest of it.

    Args:
        row: fits the schema.
        device: the profile's, None if that does not fit.
    """
    for name, value_of in TRIAL_VALUES.items():
        yield from _quantity_faults(name, row, value_of)
    yield from _latency_faults(row)
    yield from _energy_faults(row)
    steps = max(row["workload"]["generate"] - 1, 0)  # N stamps bound N - 1 steps
    for index, trial in enumerate(row["trials"]):
        for finding in _trial_faults(trial, steps):
            yield Finding(("trials", index, *finding.place), finding.what)
    if device is not None:
        yield from _roofline_faults(row, device)


def _joules(window: Data | None) -> float | None:
    """Of the whole window: what coverage lacks is taken as the mean of the rest."""
    if not window or window["missing"] is not None or not window["coverage"]:
        return None
    return float(sum(window["joules"].values()) / window["coverage"])


def _watts(key: str) -> Callable[[Data], float | None]:
    def value(trial: Data) -> float | None:
        joules = _joules(trial.get(key))
        return None if joules is None else joules / float(trial[key]["window_s"])

    return value


def _per_token(key: str) -> Callable[[Data], float | None]:
    def value(trial: Data) -> float | None:
        joules, tokens = _joules(trial.get(key)), (trial.get(key) or {}).get("tokens")
        return None if joules is None or not tokens else joules / float(tokens)

    return value


def _own(key: str) -> Callable[[Data], float | None]:
    return lambda trial: trial[key]


TRIAL_VALUES: dict[str, Callable[[Data], float | None]] = {
    "decode_tok_s": _own("decode_tok_s"),
    "prefill_tok_s": _own("prefill_tok_s"),
    "ttft_s": _own("ttft_s"),
    "power_w": _watts("decode_energy"),
    "joules_per_token": _per_token("decode_energy"),
    "prefill_power_w": _watts("prefill_energy"),
    "prefill_joules_per_token": _per_token("prefill_energy"),
}
# Which window they are of.
ENERGIES = {
    "power_w": "decode_energy",
    "joules_per_token": "decode_energy",
    "prefill_power_w": "prefill_energy",
    "prefill_joules_per_token": "prefill_energy",
}


def _quantity_faults(
    name: str, row: Data, value_of: Callable[[Data], float | None]
) -> Iterator[Finding]:
    quantity = row.get(name)
    if name in ENERGIES and not any(ENERGIES[name] in trial for trial in row["trials"]):
        return  # windows are optional
    found = [value_of(trial) for trial in row["trials"] if not trial["warmup"]]
    values = [value for value in found if value is not None]
    if quantity is None:
        # An INVALID row withholds what its trials say.
        if values and name in row and row["verdict"] != "INVALID":
            yield Finding((name,), f"is null, but {_trials(len(values))} a value for it.")
        return
    if quantity["n"] != len(values):
        has = f"{_trials(len(values))} a value (warm-ups do not count)"
        yield Finding((name, "n"), f"is {quantity['n']}, but {has}.")
        return
    for part, truth in _summary(values).items():
        if truth is None and quantity[part] == 0:  # older profiles' spread of one value
            continue
        if not _close(quantity[part], truth):
            yield Finding(
                (name, part), f"is {quantity[part]}, but the trials' values give {truth}."
            )
    if (ci95 := quantity.get("ci95")) is not None and ci95[0] > ci95[1]:
        yield Finding((name, "ci95"), "ends below its beginning.")


def _summary(values: Sequence[float]) -> dict[str, float | None]:
    return {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }


def _latency_faults(row: Data) -> Iterator[Finding]:
    latency = row.get("token_latency_ms")
    if latency is not None and not latency["p50"] <= latency["p90"] <= latency["p99"]:
        yield Finding(("token_latency_ms",), "has percentiles that do not rise from p50 to p99.")


def _energy_faults(row: Data) -> Iterator[Finding]:
    for name in ENERGIES:
        quantity = row.get(name)
        if quantity is not None and quantity["median"] <= 0:
            yield Finding((name, "median"), "is not above 0, but whatever computes uses energy.")
    gross, net = row["joules_per_token"], row["joules_per_token_net"]
    if gross is not None and net is not None and net["median"] > gross["median"]:
        yield Finding(
            ("joules_per_token_net", "median"),
            f"is {net['median']}, but net of idle power it cannot exceed the gross "
            f"{gross['median']}.",
        )


def _trial_faults(trial: Data, steps_per_pass: int) -> Iterator[Finding]:
    prefills, passes = _windows(trial)
    for key, windows in (("prefill_ns", prefills), ("pass_end_ns", passes)):
        stamps = [stamp for window in windows or () for stamp in window]
        if windows is None or any(b < a for a, b in pairwise(stamps)):
            yield Finding((key,), "has stamps that do not pair or that run backwards.")
            return
    steps = len(passes or ()) * steps_per_pass
    if "token_ns" in trial and "pass_end_ns" not in trial:
        steps = max(len(trial["token_ns"]) - 1, 0)
    decode_s, prefill_s = (_seconds(windows or ()) for windows in (passes, prefills))
    ttft_s = prefill_s / len(prefills) if prefills else None
    truths = {
        "decode_tok_s": steps / decode_s if steps and decode_s else None,
        "ttft_s": ttft_s,
        "prefill_tok_s": trial["prompt_tokens"] / ttft_s if ttft_s else None,
    }
    for key, truth in truths.items():
        if not _close(trial[key], truth):
            yield Finding((key,), f"is {trial[key]}, but its stamps give {truth}.")
    yield from _token_time_faults(trial, steps_per_pass)


Windows = list[tuple[int, int]]


def _windows(trial: Data) -> tuple[Windows | None, Windows | None]:
    """Begin and end of every prefill and of every pass; None where they do not pair."""
    flat = trial.get("prefill_ns")
    if flat is None:
        older = (trial.get("prefill_begin_ns"), trial.get("prefill_end_ns"))
        flat = [] if None in older or trial["ttft_s"] is None else list(older)
    prefills = list(zip(flat[::2], flat[1::2], strict=True)) if len(flat) % 2 == 0 else None
    if "pass_begin_ns" not in trial or "pass_end_ns" not in trial:
        stamps = trial.get("token_ns", [])
        return prefills, [(stamps[0], stamps[-1])] if stamps else []
    begins, ends = trial["pass_begin_ns"], trial["pass_end_ns"]
    pairs = list(zip(begins, ends, strict=False))
    return prefills, pairs if len(begins) == len(ends) else None


def _seconds(windows: Sequence[tuple[int, int]]) -> float:
    return sum(end - begin for begin, end in windows) / 1e9


def _token_time_faults(trial: Data, steps: int) -> Iterator[Finding]:
    ends = zip(trial.get("pass_begin_ns", []), trial.get("pass_end_ns", []), strict=False)
    for index, (times, (begin, end)) in enumerate(
        zip(trial.get("token_us", []), ends, strict=False)
    ):
        if len(times) != steps:
            what = f"has {len(times)} times, but the workload has {steps} in every pass."
            yield Finding(("token_us", index), what)
        elif abs(sum(times) * 1000 - (end - begin)) > ROUNDING_NS:
            yield Finding(("token_us", index), "does not add up to the time from begin to end.")


def _roofline_faults(row: Data, device: Data) -> Iterator[Finding]:
    """A rate above what the memory can do, and a share that does not follow from the rate."""
    decode, bytes_per_token = row["decode_tok_s"], row["bytes_per_token"]
    stated, cache_bytes = _ceiling(row, device)
    share = row["bandwidth_fraction"]
    if decode is None or not bytes_per_token or decode["median"] <= 0:
        return
    read_gb_s = decode["median"] * bytes_per_token / 1e9
    if stated is not None and share is not None:
        truth = read_gb_s / stated["gb_s"]
        if not _close(share, truth, ROUNDED):
            what = f"is {share}, but rate, bytes per token and bandwidth give {truth:.4g}."
            yield Finding(("bandwidth_fraction",), what)
    gb_s = _known_gb_s(device, stated)
    if gb_s is None or row["verdict"] == "INVALID":
        return
    _, doubt = fraction(decode["median"], bytes_per_token, gb_s * 1e9, cache_bytes)
    if doubt is not None and read_gb_s > gb_s and bytes_per_token > (cache_bytes or 0):
        what = f"reads {read_gb_s:.4g} GB/s, but this device's memory can do {gb_s:.4g} GB/s."
        yield Finding(("decode_tok_s", "median"), f"{what} Measure again.")


def _ceiling(row: Data, device: Data) -> tuple[Data | None, int | None]:
    """Bandwidth and cache of what decoded, as the profile states them."""
    where = (row["engine_facts"] or {}).get("device")
    own = device.get("gpu_memory_bandwidth")
    if own is not None and on_gpu(str(where or ""), device.get("gpu_name")):
        return own, NVIDIA_CACHE_BYTES
    apple = APPLE_CACHE_BYTES if device["name"].startswith("Apple ") else None
    return device.get("memory_bandwidth"), device.get("cache_bytes") or apple


def _known_gb_s(device: Data, stated: Data | None) -> float | None:
    """What no measurement can exceed: not a ceiling that was itself measured, which can be low."""
    chip, _ = find_chip(device["name"], device.get("gpu_cores"))
    if chip is not None:
        return chip.bandwidth_gb_s
    if stated is None or stated["source"].startswith("measured"):
        return None
    return float(stated["gb_s"])


def _close(a: float | None, b: float | None, tolerance: float = TOLERANCE) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-9)


def _trials(count: int) -> str:
    return f"{count} {'trial has' if count == 1 else 'trials have'}"
