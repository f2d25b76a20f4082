"""Checks of profiles before they are published, and verdicts on other programs' results.

found = check([Path("profiles/measured")])
"""

import getpass
import json
import math
import platform
import re
import statistics
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from edge.device.chips import APPLE_CACHE_BYTES, NVIDIA_CACHE_BYTES, find_chip
from edge.device.describe import Bandwidth, Device
from edge.errors import EdgeError, printable
from edge.formats.files import strict_json, unreadable
from edge.profile.imported import NOTHING_TOLD, Judged, Told, import_results, judged_rows
from edge.profile.profile import (
    ABOUT,
    HINT,
    NO_REASON,
    Profile,
    ProfileError,
    Quantity,
    Row,
    Workload,
    check_version,
    profiles_below,
    read_bytes,
)
from edge.profile.trial import Trial

Findings = Iterator[tuple[str, str]]  # places and errors

# Faults listed per file.
MOST_FAULTS = 50
# Characters of a value that are quoted, and of a text that are searched for private data.
SHOWN, LONGEST = 60, 2000
# Required in a published file; a reader accepts files without them.
REQUIRED: dict[str, tuple[str, ...]] = {
    "device": ("architecture", "physical_cores", "logical_cores", "memory_bytes", "os"),
    "model": ("source", "revision", "parameters", "synthetic"),
    "software": ("edge",),
}
REQUIRED_OF_ROW = (
    *("file_bytes", "bits_per_weight", "bytes_per_token", "decode_tok_s", "prefill_tok_s"),
    *("ttft_s", "power_w", "joules_per_token", "joules_per_token_net", "peak_memory_bytes"),
    *("bandwidth_fraction", "quality", "load_s", "engine_facts"),
)
REQUIRED_OF_TRIAL = ("repetition", "prompt_tokens", "decode_tok_s", "prefill_tok_s", "ttft_s")
STAMPS = ("pass_begin_ns", "pass_end_ns", "token_us")
OTHERS = ", or what `llama-bench -o json` or mlx_lm.benchmark printed"
UNEXPLAINED = "is null, and reasons does not say why."
PRIVATE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?:/Users|/home|[A-Za-z]:\\+Users)[/\\]+[^/\\\s\"':,;]+"), "a home folder"),
    (re.compile(r"(?<![\w/])/root(?![\w-])|/var/folders/[\w/+-]+"), "a user's folder"),
    (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "a mail address"),
    (re.compile(r"\b[\w-]+\.(?:local|lan|home|internal)\b(?!\.)"), "a host name"),
    (re.compile(r"\b[\w-]+s-(?:MacBook|Mac-mini|Mac-Studio|iMac)[\w-]*"), "a host name"),
    (re.compile(r"\b(?:192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}\b"), "an address"),
    (re.compile(r"\b(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b"), "a network card's address"),
    (
        re.compile(r"\b[\dA-Fa-f]{8}-(?:[\dA-Fa-f]{4}-){3}[\dA-Fa-f]{12}\b"),
        "a machine's identifier",
    ),
    (re.compile(r"\b(?=[A-Z]*\d)(?=\d*[A-Z])(?=(?:\D*\d){2})[A-Z0-9]{10,12}\b"), "a serial number"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}"), "an access token"),
)
# Common user and host names that identify nobody, and words that occur in every profile.
COMMON = {"root", "user", "admin", "runner", "ubuntu", "localhost", "apple", "demo", "edge", "mac"}
# Relative: of sums in another order, and of a share of a rounded bandwidth.
TOLERANCE, ROUNDED = 1e-6, 1e-2
# The stamps of a pass are rounded to whole microseconds.
ROUNDING_NS = 1000
DISORDER = "has stamps that do not pair or that run backwards."
RATES = ("decode_tok_s", "prefill_tok_s", "ttft_s")
# Trials may lack their energy; older files also lack the prefill's quantities.
ENERGIES = ("power_w", "joules_per_token", "prefill_power_w", "prefill_joules_per_token")


@dataclass(frozen=True)
class Fault:
    """An error in a file; `where` is its place in the JSON, such as rows[2].verdict."""

    file: str
    where: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.where, self.what) if part)


@dataclass(frozen=True)
class Checked:
    """Faults found in a number of profiles, and verdicts on the results of other programs."""

    files: int
    faults: list[Fault]
    judged: list[Judged]

    @property
    def is_good(self) -> bool:
        return not self.faults and all(one.verdict != "INVALID" for one in self.judged)

    def text(self) -> str:
        lines = [*map(str, self.judged), *map(str, self.faults)]
        broken = len({fault.file for fault in self.faults})
        profiles = f"{self.files} {'profile' if self.files == 1 else 'profiles'}"
        found = f"{len(self.faults)} {'fault' if len(self.faults) == 1 else 'faults'}"
        if self.files:
            state = f"{found} in {broken}" if self.faults else "no faults"
            lines.append(f"{profiles} checked: {state}.")
        return "\n".join(lines)


def check(
    paths: Iterable[Path], names: Sequence[str] | None = None, told: Told = NOTHING_TOLD
) -> Checked:
    """Check files, and every *.json in and below folders.

    `names` must not occur in a profile; by default those of this machine and its user. A folder
    without a *.json file is an EdgeError.
    """
    private, profiles = own_names() if names is None else names, 0
    faults: list[Fault] = []
    judged: list[Judged] = []
    for file in [file for path in paths for file in _files(path)]:
        shown = printable(str(file))
        try:
            data = read_bytes(file)
            results = import_results(data, file, told)
        except ProfileError as error:
            profiles += 1
            faults.append(Fault(shown, "", f"{printable(error.reason)}."))
            continue
        if results is not None:
            judged += judged_rows(shown, results)
        else:
            profiles += 1
            faults += _file_faults(shown, data, private)
    return Checked(profiles, faults, judged)


def own_names() -> tuple[str, ...]:
    host = platform.node()
    names = {host, host.split(".")[0]}
    with suppress(OSError, KeyError, ImportError):  # a container's user can have no name
        names.add(getpass.getuser())
    return tuple(sorted(n for n in names if len(n) > 2 and n.lower() not in COMMON))


def _files(path: Path) -> list[Path]:
    found = profiles_below(path, _refuse) if path.is_dir() else [path]
    if not found:
        raise EdgeError(f"{path} does not contain *.json files: {HINT}.")
    return found


def _refuse(error: OSError) -> NoReturn:
    raise unreadable(Path(error.filename), error)


def _file_faults(file: str, data: bytes, names: Sequence[str]) -> list[Fault]:
    found = list(islice(_findings(Path(file), data, names), MOST_FAULTS + 1))
    if len(found) > MOST_FAULTS:
        found[-1] = "", f"has more than {MOST_FAULTS} faults: correct these first."
    return [Fault(file, where, what) for where, what in found]


def _findings(path: Path, data: bytes, names: Sequence[str]) -> Findings:
    try:
        check_version(data, path)
        raw = strict_json(data)
    except ProfileError as error:
        also = OTHERS if error.kind == "not a profile" else ""
        yield "", f"{printable(error.reason)}{also}."
        return
    except ValueError as error:
        yield "", f"is not JSON ({printable(str(error))[:300]}): {HINT}."
        return
    yield from _profile_findings(raw)
    yield from _privacy_findings(raw, names, "")


def _profile_findings(raw: dict[str, Any]) -> Findings:
    rows = raw.get("rows")
    # Each row is converted by itself: msgspec stops at the first wrong value.
    head = yield from _converted({**raw, "rows": []} if isinstance(rows, list) else raw, Profile)
    if head is not None:
        yield from _head_findings(head, raw)
    first_at: dict[tuple[Any, ...], int] = {}
    for index, data in enumerate(rows if isinstance(rows, list) else []):
        place = f"rows[{index}]"
        row = yield from _converted(data, Row, place)
        if row is None:
            continue
        first = first_at.setdefault((row.artefact, row.engine, row.arm, row.workload), index)
        if first != index:
            yield place, f"measures the same as rows[{first}]: remove one of them."
        for where, what in _row_findings(row, data, head):
            yield f"{place}.{where}".rstrip("."), what


def _converted(raw: Any, kind: type[Any], place: str = "") -> Generator[tuple[str, str], None, Any]:
    """The struct, or None after yielding the first error and its place."""
    try:
        return msgspec.convert(raw, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        what, _, where = str(error).partition(" - at `$")
        yield f"{place}{where.rstrip('`')}".lstrip("."), printable(f"{what}.")  # quotes the value
        return None


def _head_findings(head: Profile, raw: Mapping[str, Any]) -> Findings:
    yield from _lacking(raw, ("argv",), "")
    for place, keys in REQUIRED.items():
        yield from _lacking(raw[place], keys, place)
    try:
        datetime.fromisoformat(head.created_utc)
    except ValueError:
        yield "created_utc", f"is {_shown(head.created_utc)}, which is not a valid date."


def _row_findings(row: Row, raw: Mapping[str, Any], head: Profile | None) -> Findings:
    lacking = list(_lacking(raw, REQUIRED_OF_ROW, ""))
    for index, trial in enumerate(raw["trials"]):
        keys = REQUIRED_OF_TRIAL if "token_ns" in trial else REQUIRED_OF_TRIAL + STAMPS
        lacking += _lacking(trial, keys, f"trials[{index}]")
    yield from lacking
    if not lacking:
        yield from _number_findings(row, head.device if head is not None else None)
        yield from _reason_findings(row, raw)


def _lacking(raw: Mapping[str, Any], keys: Sequence[str], place: str) -> Findings:
    yield from ((place, f"lacks {key}.") for key in keys if key not in raw)


def _reason_findings(row: Row, raw: Mapping[str, Any]) -> Findings:
    if row.verdict != "VALID" and not row.reasons:
        yield "reasons", f"is empty, but a row that is {row.verdict} needs a reason."
    if not row.counts:
        return  # its figures may be null: the verdict's reason explains all of them
    if row.gate is not None and row.gate.share > 1:
        yield "gate.worst_error", f"is beyond gate.bound, but the row is {row.verdict}."
    for key in [key for key in ABOUT if key in REQUIRED_OF_ROW]:
        if getattr(row, key) is None and row.why_not(key) == NO_REASON:
            yield key, UNEXPLAINED
    for key, value in (raw["quality"] or {}).items():
        if value is None and row.why_not("quality", key) == NO_REASON:
            yield f"quality.{key}", UNEXPLAINED


def _privacy_findings(data: Any, names: Sequence[str], place: str) -> Findings:
    if isinstance(data, str):
        yield from _private(data, names, place)
    elif isinstance(data, dict):
        for key, value in data.items():
            is_plain = key.isidentifier() and key.isascii() and len(key) <= SHOWN
            inner = f"{place}.{key}".lstrip(".") if is_plain else f"{place}[{_shown(key)}]"
            yield from _private(key, names, inner)
            yield from _privacy_findings(value, names, inner)
    elif isinstance(data, list):
        for index, value in enumerate(data):
            if isinstance(value, str | dict | list):  # not a place for each of many stamps
                yield from _privacy_findings(value, names, f"{place}[{index}]")


def _private(text: str, names: Sequence[str], place: str) -> Findings:
    text = text[:LONGEST]
    for pattern, what in PRIVATE:
        if found := pattern.search(text):
            yield place, f"contains {what} ({_shown(found[0])}): remove it by hand."
            return
    for name in names:
        if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text, re.IGNORECASE):
            yield place, f"contains {_shown(name)}, a name of this machine or its user."
            return


def _shown(text: str) -> str:
    shown = printable(json.dumps(text[:1000]))
    return shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 1]}…"


def _number_findings(row: Row, device: Device | None) -> Findings:
    """Numbers that contradict each other; the roofline is checked only with a device."""
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
    for index, trial in enumerate(row.trials if row.source is None else ()):  # else no stamps
        for place, what in _trial_findings(trial, row.workload):
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


def _trial_findings(trial: Trial, workload: Workload) -> Findings:
    steps_per_pass = max(workload.generate - 1, 0)
    prefills, passes = trial.prefills, trial.passes
    if len(trial.prefill_ns) % 2 or _runs_backwards(prefills):
        yield "prefill_ns", DISORDER
        return
    if len(trial.pass_begin_ns) != len(trial.pass_end_ns) or _runs_backwards(passes):
        yield "pass_end_ns", DISORDER
        return
    steps = len(passes) * steps_per_pass
    if trial.request_tokens:
        steps = sum(count - 1 for count in trial.request_tokens)
    if isinstance(trial.token_ns, list):
        steps = max(len(trial.token_ns) - 1, 0)
    decode_s, prefill_s = (sum(end - begin for begin, end in w) / 1e9 for w in (passes, prefills))
    ttft_s = prefill_s / len(prefills) if prefills else None
    expected = {
        "decode_tok_s": steps * workload.batch / decode_s if steps and decode_s else None,
        "ttft_s": ttft_s,
        "prefill_tok_s": trial.prompt_tokens / ttft_s if ttft_s and trial.prompt_tokens else None,
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
    limit_gb_s = _limit_gb_s(device, stated, row)
    if limit_gb_s is not None and read_gb_s > limit_gb_s and row.counts:
        what = f"reads {read_gb_s:.4g} GB/s, but this device's memory can do {limit_gb_s:.4g} GB/s."
        yield "decode_tok_s.median", f"{what} Measure again."


def _limit_gb_s(device: Device, stated: Bandwidth | None, row: Row) -> float | None:
    """Upper limit of the memory's bandwidth; None if unknown, or if the bytes fit in a cache."""
    cache_bytes = device.cache_bytes or 0
    if stated is not None and stated is device.gpu_memory_bandwidth:
        cache_bytes = NVIDIA_CACHE_BYTES
    elif not cache_bytes and device.name.startswith("Apple "):
        cache_bytes = APPLE_CACHE_BYTES
    chip, _ = find_chip(device.name, device.gpu_cores, device.memory_bytes)
    if row.step_bytes <= cache_bytes * row.machines:
        return None
    if chip is not None:
        return chip.bandwidth_gb_s * row.machines
    # A measured bandwidth can be too low.
    return None if stated is None or stated.kind == "measured" else stated.gb_s


def _close(a: float | None, b: float | None, tolerance: float = TOLERANCE) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-9)
