"""What is sound of a profile that has wrong fields: it loses those, or their row, and no more.

What tells the device, the model or the method from others must be whole: without it rows would be
held against rows of something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from edge.report.devices.structs import Bandwidth, Profile, Row

# Without one of these a row is still a row; its engine's facts tell it from others.
ROW_FIELDS = {
    field.name: field.type
    for field in msgspec.structs.fields(Row)
    if not field.required and field.name != "engine_facts"
}
BANDWIDTHS = ("memory_bandwidth", "gpu_memory_bandwidth")


def salvage(data: bytes) -> tuple[Profile, list[str]]:
    """The profile without what is wrong, and a sentence for each thing that it lost.

    Raises:
        msgspec.ValidationError: nothing is left that could be compared.
        ValueError: it is no JSON.
    """
    raw = msgspec.json.decode(data)
    lost: list[str] = []
    if isinstance(raw, dict) and isinstance(raw.get("rows"), list):
        raw = {**raw, "device": _device(raw.get("device"), lost)}
        kept = [_row(number, row, lost) for number, row in enumerate(raw["rows"])]
        raw["rows"] = []
        profile = msgspec.convert(raw, Profile)
        profile.rows = [row for row in kept if row is not None]
        return profile, lost
    return msgspec.convert(raw, Profile), lost


def _device(device: Any, lost: list[str]) -> Any:
    """Both bandwidths or none: with one of them a GPU would be held against the wrong memory."""
    if not isinstance(device, Mapping):
        return device
    for key in BANDWIDTHS:
        if (wrong := _wrong(device.get(key), Bandwidth | None)) is not None:
            lost.append(f"device.{key} is wrong ({wrong}): its rows are without roofline")
            return {key: value for key, value in device.items() if key not in BANDWIDTHS}
    return device


def _row(number: int, row: Any, lost: list[str]) -> Row | None:
    """The row without its wrong fields; None where one is wrong that it cannot be without."""
    kept = row
    if isinstance(row, dict):
        told = ((key, _wrong(row.get(key), kind)) for key, kind in ROW_FIELDS.items())
        wrong = {key: why for key, why in told if why is not None}
        kept = {key: value for key, value in row.items() if key not in wrong}
        lost += [f"rows[{number}] is without {key} ({why})" for key, why in wrong.items()]
    if (why := _wrong(kept, Row)) is not None:
        lost.append(f"rows[{number}] is left out ({why})")
        return None
    return msgspec.convert(kept, Row)


def _wrong(value: Any, kind: Any) -> str | None:
    """Why a value is not of a kind; None if it is."""
    try:
        msgspec.convert(value, kind)
    except (ValueError, RecursionError) as error:
        return str(error).partition("\n")[0][:200]
    return None
