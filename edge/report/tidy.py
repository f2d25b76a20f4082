"""A stranger's profile made safe to print: text of one line, numbers that are numbers.

`read_profile` checks what a reader would stumble over; what else is in the file may be anything.
Here it becomes what tables may rely on. What is dropped leaves a sentence among the reasons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.profile.reading import read_profile
from edge.report.figure import plain
from edge.report.quality import quality_of
from edge.report.values import not_negative, number

NAME_CHARACTERS, SENTENCE_CHARACTERS = 80, 600
# What double precision can still calculate with: squares of it do not overflow.
LARGEST = 1e150
VERDICTS = ("VALID", "WARN", "INVALID")
QUANTITIES = (
    "decode_tok_s",
    "prefill_tok_s",
    "ttft_s",
    "power_w",
    "joules_per_token",
    "joules_per_token_net",
    "prefill_power_w",
    "prefill_joules_per_token",
)
NUMBERS = (
    "file_bytes",
    "bits_per_weight",
    "bytes_per_token",
    "peak_memory_bytes",
    "peak_device_bytes",
    "bandwidth_fraction",
    "load_s",
)


def read_for_report(path: Path) -> dict[str, Any]:
    """Read a profile all of whose numbers a reader can calculate with.

    Raises:
        EdgeError: as `read_profile`; or a number in it is beyond any calculation.
    """
    profile = read_profile(path)
    if (where := _overflow(profile)) is not None:
        raise EdgeError(
            f"{path} is broken (the number at {where} is beyond {LARGEST:g}): measure again, or "
            f"take another copy."
        )
    return profile


def tidy(profile: Mapping[str, Any]) -> dict[str, Any]:
    """The same profile with rows, device, model and software fit for tables.

    Args:
        profile: plain data, as `read_profile` gives it.

    Returns:
        A new one; a number that is none became None and has its sentence in `reasons`.
    """
    return {
        **profile,
        "created_utc": plain(profile["created_utc"], 30),
        "device": _texts(profile["device"]),
        "model": _texts(profile["model"]),
        "software": _texts(profile["software"]),
        "rows": [_row(row) for row in profile["rows"]],
    }


def _overflow(root: object) -> str | None:
    """Where the first number is that nothing can calculate with; None if nowhere."""
    for where, value in _leaves(root, ""):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not -LARGEST <= value <= LARGEST:  # so that NaN is one of them
            return plain(where, 200)
    return None


def _leaves(value: object, where: str) -> Iterator[tuple[str, object]]:
    """Every value that is no container; `strict_json` bounds the depth."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{where}[{index}]")
    else:
        yield where, value


def _texts(data: Mapping[str, Any]) -> dict[str, Any]:
    """Its strings as names; a name may itself be a stranger's."""
    return {plain(key, 40): plain(v) if isinstance(v, str) else v for key, v in data.items()}


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    reasons = [plain(reason, SENTENCE_CHARACTERS) for reason in row["reasons"]]
    quantities = {name: _quantity(row.get(name)) for name in QUANTITIES}
    numbers = {name: not_negative(row.get(name)) for name in NUMBERS}
    quality = quality_of(row.get("quality"))
    for name, value in (*quantities.items(), *numbers.items(), ("quality", quality)):
        if value is None and row.get(name) is not None:
            reasons.append(f"{name}: what the profile has there is no believable figure")
    names = {name: plain(row[name], 48) for name in ("artefact", "engine", "framework")}
    verdict = row["verdict"] if row["verdict"] in VERDICTS else "INVALID"
    if verdict != row["verdict"]:
        reasons.insert(0, f"its verdict is none that edge knows: {plain(row['verdict'])}")
    return {
        **row,
        **names,
        **quantities,
        **numbers,
        "quality": asdict(quality) if quality else None,
        "precision": plain(row["precision"], 30),
        "workload": _workload(row["workload"]),
        "verdict": verdict,
        "reasons": reasons,
    }


def _workload(workload: Mapping[str, Any]) -> dict[str, Any]:
    counts = {key: int(number(workload.get(key)) or 0) for key in ("prompt", "generate", "depth")}
    return {**counts, "joint": workload.get("joint") is True}


def _quantity(quantity: object) -> dict[str, Any] | None:
    if not isinstance(quantity, Mapping):
        return None
    median, mean = not_negative(quantity.get("median")), not_negative(quantity.get("mean"))
    n = not_negative(quantity.get("n"))
    if median is None or mean is None or not n:
        return None
    interval = quantity.get("ci95")
    ends = [number(end) for end in interval] if isinstance(interval, list) else []
    return {
        "median": median,
        "mean": mean,
        "sd": not_negative(quantity.get("sd")),
        "n": int(n),
        "ci95": ends if len(ends) == 2 and None not in ends else None,
    }
