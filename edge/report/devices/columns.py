"""From records to columns: one line per profile, one per row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from edge.device.roofline import on_gpu
from edge.errors import printable
from edge.report.devices.records import Record
from edge.report.devices.structs import Bandwidth, Device, Method, Model, Row
from edge.report.table import workload_name

if TYPE_CHECKING:
    import polars as pl

# Longer names are cut: a table is read, and a name is somebody's text.
LONGEST_NAME, LONGEST_REASON = 80, 300
# Rows that may be held against each other have all of these in common.
GROUP = ("model", "workload", "method")
# Rows with these in common as well are repeated measurements of one thing.
SAME = (*GROUP, "device", "artefact", "engine", "precision", "runs_on")
TEXT = (*SAME, "file", "created_utc", "framework", "verdict", "reason", "meter", "bandwidth_source")
NUMBERS = (
    "decode_tok_s",
    "prefill_tok_s",
    "power_w",
    "joules_per_token",
    "peak_memory_bytes",
    "bandwidth_fraction",
    "bandwidth_gb_s",
)
COUNTS = ("profile", "n", "prompt", "generate", "depth")


def profile_columns(records: Sequence[Record]) -> pl.DataFrame:
    """One line per profile: what duplicates, filters and an order need."""
    import polars as pl

    lines = [
        {
            "profile": number,
            "file": record.file,
            "content": record.content,
            "run": "\0".join(_run(record)),
            "finished": record.profile.method.finished,
            "rows": len(record.profile.rows),
            "chip": _chip_words(record.profile.device),
            "model": f"{record.profile.model.name}\0{record.profile.model.source}",
        }
        for number, record in enumerate(records)
    ]
    kinds: dict[str, Any] = dict.fromkeys(("file", "content", "run", "chip", "model"), pl.String)
    kinds |= {"profile": pl.Int64, "rows": pl.Int64, "finished": pl.Boolean}
    return pl.DataFrame(lines, schema=kinds)


def row_columns(records: Sequence[Record], kept: Iterable[int]) -> pl.DataFrame:
    """One line per row of the profiles with these numbers."""
    import polars as pl

    lines = [line for number in kept for line in _lines(number, records[number])]
    schema: dict[str, Any] = dict.fromkeys(TEXT, pl.String)
    schema |= dict.fromkeys(NUMBERS, pl.Float64) | dict.fromkeys(COUNTS, pl.Int64)
    return pl.DataFrame(lines, schema=schema, orient="row")


def device_label(device: Device) -> str:
    """A device as people tell it from another: chip, model, GPU, memory."""
    facts = [
        device.hw_model,
        device.gpu_name if device.gpu_name not in (None, device.name) else None,
        f"{device.gpu_cores} GPU cores" if device.gpu_cores else None,
        f"{device.memory_bytes / 2**30:.0f} GB" if device.memory_bytes else None,
    ]
    known = ", ".join(text for fact in facts if fact and (text := _text(fact)))
    return f"{_text(device.name)} ({known})" if known else _text(device.name)


def model_label(model: Model) -> str:
    """Name, size, and whether the weights are random; speed depends on no other part of it."""
    size = f", {model.parameters / 1e6:.4g} M parameters" if model.parameters else ""
    return f"{_text(model.name)}{size}{' (synthetic)' if model.synthetic else ''}"


def method_label(method: Method) -> str:
    """What a rate is and leaves out; the order in which it says so means nothing."""
    excluded = ", ".join(sorted(_text(word) for word in method.excluded[:20])) or "nothing"
    return f"rate = {_text(method.decode_rate)}; left out: {excluded}"


def _lines(number: int, record: Record) -> list[tuple[Any, ...]]:
    """In the order of `TEXT`, `NUMBERS`, `COUNTS`."""
    profile = record.profile
    model, method = model_label(profile.model), method_label(profile.method)
    device, created = device_label(profile.device), profile.created_utc[:19]
    return [
        (
            model,
            workload_name(_workload(row)),
            method,
            device,
            _text(row.artefact),
            _text(row.engine),
            _text(row.precision),
            _runs_on(row, profile.device),
            record.file,
            created,
            _text(row.framework),
            row.verdict if row.verdict in ("VALID", "WARN", "INVALID") else "unknown",
            _text(row.reasons[0], LONGEST_REASON) if row.reasons else "",
            _text(f"{row.power.source} ({row.power.boundary})") if row.power else None,
            *_figures(row, profile.device),
            number,
            max((rate.n for rate in (row.decode_tok_s, row.prefill_tok_s) if rate), default=0),
            row.workload.prompt,
            row.workload.generate,
            row.workload.depth,
        )
        for row in profile.rows
    ]


def _figures(row: Row, device: Device) -> tuple[str | float | None, ...]:
    """The bandwidth's source, then `NUMBERS`."""
    bandwidth = _bandwidth(row, device)
    quantities = (row.decode_tok_s, row.prefill_tok_s, row.power_w, row.joules_per_token)
    return (
        _text(bandwidth.source) if bandwidth else None,
        *(quantity.median if quantity else None for quantity in quantities),
        None if row.peak_memory_bytes is None else float(row.peak_memory_bytes),
        row.bandwidth_fraction,
        bandwidth.gb_s if bandwidth else None,
    )


def _bandwidth(row: Row, device: Device) -> Bandwidth | None:
    """Of the memory that the row's weights were read from."""
    if device.gpu_memory_bandwidth is not None and _on_gpu(row, device):
        return device.gpu_memory_bandwidth
    return device.memory_bandwidth


def _on_gpu(row: Row, device: Device) -> bool:
    where = row.engine_facts.device if row.engine_facts else ""
    return on_gpu(where, device.gpu_name)


def _runs_on(row: Row, device: Device) -> str:
    """What else makes two rows two things: the processor and the kinds of numbers."""
    facts = row.engine_facts
    if facts is None:
        return ""
    place = "GPU" if _on_gpu(row, device) else "CPU" if facts.device == "CPU" else ""
    return ", ".join(_text(part) for part in (place, facts.compute_dtype, facts.kv_dtype) if part)


def _workload(row: Row) -> dict[str, Any]:
    given = row.workload
    return {
        "prompt": given.prompt,
        "generate": given.generate,
        "depth": given.depth,
        "joint": given.joint,
    }


def _run(record: Record) -> tuple[str, ...]:
    profile = record.profile
    return (
        device_label(profile.device),
        model_label(profile.model),
        profile.created_utc[:19],
    )


def _chip_words(device: Device) -> str:
    return "\0".join(filter(None, (device.name, device.gpu_name, device.hw_model)))


@lru_cache(maxsize=10_000)  # ten thousand profiles say the same few things
def _text(text: str, longest: int = LONGEST_NAME) -> str:
    """Somebody's text as one short line."""
    shown = " ".join(printable(text).split())
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
