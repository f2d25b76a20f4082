"""Reading profiles: this version's, older ones', and nothing that only looks like one.

A profile is read as plain data, so that tables, plots and comparisons need nothing of what
measures. What newer versions added to schema 1 is optional; use `row.get(...)` for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.formats.files import strict_json

SCHEMA = 1
# The largest sweep that anyone will measure is a few hundred rows of some 200 kB.
MAX_BYTES = 200_000_000
PROFILE_KEYS: dict[str, type] = {
    "created_utc": str,
    "device": dict,
    "software": dict,
    "model": dict,
    "method": dict,
    "rows": list,
}
# What table and plot take out of every row.
ROW_KEYS: dict[str, type] = {
    "artefact": str,
    "engine": str,
    "framework": str,
    "precision": str,
    "workload": dict,
    "verdict": str,
    "reasons": list,
    "trials": list,
}
QUANTITIES = ("decode_tok_s", "prefill_tok_s", "ttft_s", "power_w", "joules_per_token")


def read_profile(path: Path) -> dict[str, Any]:
    """Read a profile.

    Raises:
        EdgeError: it cannot be read, is no profile, or is of a newer edge.
    """
    try:
        profile = strict_json(_bytes_of(path))
    except ValueError as error:
        raise EdgeError(f"{path} is no profile ({error}): {_HINT}.") from None
    if not isinstance(profile, dict) or "schema" not in profile:
        raise EdgeError(f"{path} is no profile (it has no schema number): {_HINT}.")
    schema = profile["schema"]
    if type(schema) is not int or schema < 1:
        raise EdgeError(f"{path} is no profile (its schema is {str(schema)[:40]!r}): {_HINT}.")
    if schema > SCHEMA:
        raise EdgeError(
            f"{path} has schema {schema} and this edge reads up to {SCHEMA}: install a newer edge."
        )
    if (wrong := _first_fault(profile)) is not None:
        raise EdgeError(f"{path} is broken ({wrong}): measure again, or take another copy.")
    return profile


_HINT = "give a JSON file that `edge bench` wrote"


def _bytes_of(path: Path) -> bytes:
    try:
        if not path.is_file():
            missing = "is no file" if path.exists() else "is missing"
            raise EdgeError(f"The profile {path} {missing}: {_HINT}.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise EdgeError(
            f"The profile {path} cannot be read ({error.strerror}): check its permissions."
        ) from None
    if len(data) > MAX_BYTES:
        raise EdgeError(f"{path} is larger than any profile: {_HINT}.")
    return data


def _first_fault(profile: dict[str, Any]) -> str | None:
    """What a reader would stumble over, None if nothing."""
    if (wrong := _wrong_key(profile, PROFILE_KEYS)) is not None:
        return wrong
    if not isinstance(profile["device"].get("name"), str):
        return "its device has no name"
    if not isinstance(profile["model"].get("name"), str):
        return "its model has no name"
    for number, row in enumerate(profile["rows"], 1):
        wrong = _wrong_key(row, ROW_KEYS) if isinstance(row, dict) else "it is no object"
        if wrong or (wrong := _wrong_quantity(row) or _wrong_trial(row)):
            return f"row {number}: {wrong}"
    return None


def _wrong_key(data: dict[str, Any], keys: dict[str, type]) -> str | None:
    for key, kind in keys.items():
        if key not in data:
            return f"{key} is missing"
        if not isinstance(data[key], kind):
            return f"{key} is of the wrong kind"
    return None


def _wrong_quantity(row: dict[str, Any]) -> str | None:
    for name in QUANTITIES:
        quantity = row.get(name)
        if quantity is None:
            continue
        if not isinstance(quantity, dict) or not all(
            _is_number(quantity.get(part)) for part in ("median", "mean", "n")
        ):
            return f"{name} is no quantity"
    return None


def _wrong_trial(row: dict[str, Any]) -> str | None:
    fine = all(isinstance(t, dict) and isinstance(t.get("warmup"), bool) for t in row["trials"])
    return None if fine else "a trial is broken"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
