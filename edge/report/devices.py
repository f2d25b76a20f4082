"""Comparison of devices: the profiles of a folder side by side, what is left out, and why.

Of several measurements of one thing the newest VALID one is shown, else the newest, with the
range of all. The fastest would favour outliers, and a mean would mix versions of software.
Rows are objects of the JSON document: the keys of `_line` and `_pooled`, None if not measured.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from edge.device.describe import Device
from edge.errors import EdgeError, printable
from edge.profile.imported import OWN_STEP_RATE, STEP_RATE
from edge.profile.profile import (
    Method,
    ModelInfo,
    ProfileError,
    RowSummary,
    Summary,
    profiles_below,
    read_summary,
)
from edge.text import Layout, Table, escape, figure, plain, share, texts_table

# Comparable rows have the same GROUP, repeated measurements of one thing the same SAME.
GROUP = ("model", "workload", "method")
SAME = (*GROUP, "device", "artefact", "name", "runs_on")
MEDIANS = ("decode_tok_s", "prefill_tok_s", "power_w", "joules_per_token")
# Less than any energy of a token; 1 / LEAST_J is finite.
LEAST_J = 1e-9
# Files named per reason; the others are counted. The JSON document names all.
NAMED = 10
# Columns of a readable table; the table with a line per precision has every row.
MOST_COLUMNS = 12
WORDS = ("Device", "Precision")
# Columns that a narrow terminal does not show, the least important first.
DROPPED = ("tok/s per GB/s", "Measured", "Runs", "tok/J", "Peak memory (MB)", "Roofline")
Row = dict[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """A file, or a row of one, that is not in the comparison; `kind` groups the reasons."""

    file: str
    reason: str
    kind: str


@dataclass(frozen=True)
class DeviceComparison:
    """A row per precision on a device; `methods` are the definitions of a rate that occur.

    Of `files`, `filtered_out` did not match `chip` and `model`.
    """

    files: int
    profiles: int
    filtered_out: int
    rows: list[Row]
    methods: list[str]
    left_out: list[LeftOut]
    chip: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class DeviceTable:
    """A table of the comparison, with sentences under it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    remarks: list[str]
    dropped: Sequence[str] = DROPPED


def compare_devices(
    folder: Path, chip: str | None = None, model: str | None = None
) -> DeviceComparison:
    """Compare all profiles in and below a folder.

    `chip` is a part of the name of a chip, GPU or hardware model, `model` one of a model's name
    or source, in any case. A folder without a *.json file is an EdgeError.
    """
    left_out: list[LeftOut] = []
    found = _read_folder(folder, left_out)
    files = len(found) + len(left_out)
    profiles = _without_duplicates(found, left_out)
    matching = {
        file: profile
        for file, profile in profiles.items()
        if _has(chip, profile.device.name, profile.device.gpu_name, profile.device.hw_model)
        and any(_has(model, info.name, info.source) for info in _models(profile))
    }
    rows = _shown(list(_usable(matching, model, left_out)))
    return DeviceComparison(
        files=files,
        profiles=len(matching),
        filtered_out=len(profiles) - len(matching),
        rows=rows,
        methods=list(dict.fromkeys(row["method"] for row in rows)),
        left_out=sorted(left_out, key=lambda entry: (entry.file, entry.reason)),
        chip=chip,
        model=model,
    )


def _read_folder(folder: Path, left_out: list[LeftOut]) -> dict[str, Summary]:
    if not folder.is_dir():
        raise EdgeError(f"{folder} is not a folder: give one that contains profiles (*.json).")

    def name_of(path: Path) -> str:
        return printable(str(path.relative_to(folder)))

    def note(error: OSError) -> None:
        reason = f"cannot be opened ({error.strerror})"
        left_out.append(LeftOut(name_of(Path(error.filename)), reason, "unreadable"))

    paths = profiles_below(folder, note)
    if not paths and not left_out:
        raise EdgeError(f"{folder} has no profiles (*.json): `edge bench --save` writes them.")
    found = {}
    for path in paths:
        try:
            found[name_of(path)] = read_summary(path)
        except ProfileError as error:
            left_out.append(LeftOut(name_of(path), plain(error.reason, 300), error.kind))
    return found


def _without_duplicates(found: dict[str, Summary], left_out: list[LeftOut]) -> dict[str, Summary]:
    """The most complete file of each run: a run writes its file again after every row."""

    def completeness(file: str) -> tuple[bool, int, str]:
        return not found[file].method.finished, -len(found[file].rows), file

    kept: dict[tuple[Any, ...], str] = {}
    for file in sorted(found, key=completeness):
        device, model, number = (
            found[file].device,
            found[file].model,
            found[file].method.fleet_number,
        )
        run = _device_label(device), _model_label(model), found[file].created_utc[:19], number
        if run in kept:
            reason = f"is of the same run as {kept[run]}: device, model and time"
            left_out.append(LeftOut(file, reason, "duplicate"))
        else:
            kept[run] = file
    files = set(kept.values())
    return {file: profile for file, profile in found.items() if file in files}


def _models(profile: Summary) -> list[ModelInfo]:
    return [profile.model, *(row.model for row in profile.rows if row.model is not None)]


def _has(wanted: str | None, *names: str | None) -> bool:
    return not wanted or any(wanted.lower() in (name or "").lower() for name in names)


def _usable(
    profiles: Mapping[str, Summary], model: str | None, left_out: list[LeftOut]
) -> Iterator[Row]:
    units = {(_device_label(p.device), p.method.fleet_number) for p in profiles.values()}
    equal = Counter(label for label, number in units if number is not None)
    for file, profile in profiles.items():
        device = _device_label(profile.device)
        if (number := profile.method.fleet_number) is not None and equal[device] > 1:
            device = f"{number}: {device}"
        if not profile.rows:
            reason = "has no rows: its run was stopped before the first"
            left_out.append(LeftOut(file, reason, "no rows"))
        for row in (row for row in profile.rows if row.arm is None):  # the run's own environment
            if row.model is not None and not _has(model, row.model.name, row.model.source):
                continue
            line = _line(file, device, profile, row)
            if (refused := _refused(line)) is None:
                yield line
            else:
                left_out.append(LeftOut(file, *refused))


def _line(file: str, device: str, profile: Summary, row: RowSummary) -> Row:
    """A row's medians, and the keys it is grouped and sorted by."""
    workload, bandwidth = row.workload, row.bandwidth(profile.device)
    medians = {key: q.median if (q := getattr(row, key)) else None for key in MEDIANS}
    decode, joules = medians["decode_tok_s"], medians["joules_per_token"]
    source = row.power and plain(f"{row.power.source} ({row.power.boundary})")
    return {
        "model": _model_label(row.model or profile.model),
        "workload": str(workload),
        "method": _method_label(profile.method),
        "device": device,
        **{key: plain(getattr(row, key)) for key in ("artefact", "engine", "framework")},
        "precision": plain(row.precision),
        "name": plain(row.with_peer(f"{row.framework} {row.precision}")),
        "source": row.source and plain(row.source),
        "runs_on": _runs_on(row, profile.device),
        "verdict": row.verdict,
        "reason": plain(row.reasons[0], 300) if row.reasons else "",
        "file": file,
        "created_utc": profile.created_utc[:19],
        "n": max((q.n for q in (row.decode_tok_s, row.prefill_tok_s) if q), default=0),
        **medians,
        "peak_memory_bytes": row.peak_memory_bytes,
        "bandwidth_gb_s": bandwidth and bandwidth.gb_s,
        "bandwidth_source": bandwidth and plain(bandwidth.source),
        "bandwidth_fraction": row.bandwidth_fraction,
        "decode_per_gb_s": decode / bandwidth.gb_s if decode is not None and bandwidth else None,
        "tok_per_joule": 1 / joules if joules is not None and joules >= LEAST_J else None,
        "meter": source,
        "order": (workload.depth, workload.prompt, workload.generate, workload.batch),
    }


def _device_label(device: Device) -> str:
    facts = (
        device.hw_model,
        device.gpu_name if device.gpu_name != device.name else None,
        f"{device.gpu_cores} GPU cores" if device.gpu_cores else None,
        f"{device.memory_bytes / 2**30:.0f} GB" if device.memory_bytes else None,
    )
    known = ", ".join(plain(fact) for fact in facts if fact)
    return f"{plain(device.name)} ({known})" if known else plain(device.name)


def _model_label(model: ModelInfo) -> str:
    """Name, size and random weights; speed depends on nothing else."""
    size = f", {model.parameters / 1e6:.4g} M parameters" if model.parameters else ""
    return f"{plain(model.name)}{size}{' (synthetic)' if model.synthetic else ''}"


def _method_label(method: Method) -> str:
    excluded = ", ".join(sorted(plain(word) for word in method.excluded[:20])) or "nothing"
    rate = OWN_STEP_RATE if method.decode_rate == STEP_RATE else method.decode_rate
    return f"rate = {plain(rate)}; left out: {excluded}"


def _runs_on(row: RowSummary, device: Device) -> str:
    facts = row.engine_facts
    if facts is None:
        return ""
    place = "GPU" if row.on_gpu(device) else "CPU" if facts.device == "CPU" else ""
    return ", ".join(plain(part) for part in (place, facts.compute_dtype, facts.kv_dtype) if part)


def _refused(line: Row) -> tuple[str, str] | None:
    """Reason why a row has no comparable figure, and its kind."""
    name = f"{line['artefact']} on {line['engine']} ({line['workload']})"
    if line["verdict"] == "INVALID":
        return f"{name} is INVALID: {line['reason']}", "invalid"
    if not line["decode_tok_s"] and not line["prefill_tok_s"]:
        return f"{name} has neither a decode nor a prefill rate: {line['reason']}", "not measured"
    # A measured bandwidth can be too low.
    is_limit = not (line["bandwidth_source"] or "").startswith("measured")
    if is_limit and (line["bandwidth_fraction"] or 0) > 1:
        return f"{name} reads faster than its memory can: measure again", "impossible"
    return None


def _shown(rows: Sequence[Row]) -> list[Row]:
    """One row per thing measured, the most common method and the fastest device first."""
    newest = sorted(rows, key=lambda row: (row["created_utc"], row["file"]), reverse=True)
    same: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(newest, key=lambda row: row["verdict"] != "VALID"):
        same.setdefault(itemgetter(*SAME)(row), []).append(row)
    pooled = [_pooled(runs) for runs in same.values()]
    methods = Counter(row["method"] for row in pooled)
    place = itemgetter(*GROUP, "device")
    best: dict[tuple[Any, ...], float] = {}
    for row in pooled:
        rate = row["decode_tok_s"] or row["prefill_tok_s"]
        best[place(row)] = max(rate, best.get(place(row), 0.0))

    def order(row: Row) -> tuple[Any, ...]:
        group = (-methods[row["method"]], row["method"], row["model"], row.pop("order"))
        names = (row[key] for key in ("device", "framework", "precision", "engine", "runs_on"))
        return (*group, row["workload"], -best[place(row)], *names)

    return sorted(pooled, key=order)


def _pooled(runs: Sequence[Row]) -> Row:
    """The first row, with the range of all and the files of the others."""
    rates = [run["decode_tok_s"] for run in runs if run["decode_tok_s"] is not None]
    return {
        **runs[0],
        "runs": len(runs),
        "lowest_tok_s": min(rates, default=None),
        "highest_tok_s": max(rates, default=None),
        "others": [run["file"] for run in runs[1:]],
    }


def devices_tables(comparison: DeviceComparison) -> list[DeviceTable]:
    """A table per model, workload and method; figures are comparable within a table.

    If there are several devices and precisions, a table of decode rates comes before it, with a
    line per device and a column per precision.
    """
    tables = []
    for (model, workload, method), found in groupby(comparison.rows, key=itemgetter(*GROUP)):
        rows, number = list(found), comparison.methods.index(method)
        title = f"{model}, {workload or 'no tokens'}"
        title += f", method {number + 1}" if number else ""
        names = _precisions(rows)
        tables += [*_matrix(title, rows, names), _detail(title, rows, names)]
    return tables


def devices_text(comparison: DeviceComparison, layout: Layout | None = None) -> str:
    """Markdown, or text for a terminal of that layout."""
    parts: list[str | Table] = [*_opening(comparison)]
    for found in devices_tables(comparison):
        table = texts_table(
            found.columns, found.rows, WORDS, dropped=found.dropped, cut=("Device", "Precision")
        )
        parts += [f"## {found.title}", table, *found.remarks]
    if len(comparison.methods) > 1:
        named = [f"{i}. {method}" for i, method in enumerate(comparison.methods, 1)]
        why = "Rates of different methods are not comparable: they are in separate tables."
        parts += ["## Methods", why, "\n".join(named)]
    if comparison.left_out:
        parts += ["## Left out", "\n".join(_left_out_lines(comparison.left_out))]
    return "\n\n".join(_drawn(part, layout) for part in parts)


def _drawn(part: str | Table, layout: Layout | None) -> str:
    if isinstance(part, Table):
        return part.markdown() if layout is None else layout.table(part)
    if layout is None:
        return escape(part)
    return "\n".join(map(layout.wrapped, part.lstrip("# ").splitlines()))


def _matrix(title: str, rows: Sequence[Row], names: Sequence[str]) -> list[DeviceTable]:
    """Decode rates, devices by precisions; no table for one device or one precision."""
    columns = sorted(set(names))
    devices = list(dict.fromkeys(row["device"] for row in rows))
    if len(devices) < 2 or not 2 <= len(columns) <= MOST_COLUMNS:
        return []
    cells = {(r["device"], n): figure(r["decode_tok_s"]) for r, n in zip(rows, names, strict=True)}
    lines = [[device, *(cells.get((device, c), "") for c in columns)] for device in devices]
    remarks = ["Empty cells were not measured."] if any("" in line for line in lines) else []
    title += ": decode (tok/s)"
    return [DeviceTable(title, ["Device", *columns], lines, remarks, dropped=columns[::-1])]


def _detail(title: str, rows: Sequence[Row], names: Sequence[str]) -> DeviceTable:
    lines = [
        {
            "Device": row["device"],
            "Precision": name,
            "Decode (tok/s)": figure(row["decode_tok_s"]),
            "Prefill (tok/s)": figure(row["prefill_tok_s"]),
            "Roofline": share(row["bandwidth_fraction"]),
            "tok/s per GB/s": figure(row["decode_per_gb_s"]),
            "tok/J": figure(row["tok_per_joule"]),
            "Peak memory (MB)": figure(row["peak_memory_bytes"] and row["peak_memory_bytes"] / 1e6),
            "Verdict": row["verdict"],
            "Measured": row["created_utc"][:10],
            "Runs": _runs(row),
        }
        for row, name in zip(rows, names, strict=True)
    ]
    values = [[*line.values()] for line in lines]
    return DeviceTable(title, [*lines[0]], values, _meters(rows))


def _precisions(rows: Sequence[Row]) -> list[str]:
    """A name for each row's precision that is unique on its device."""
    names = [row["name"] for row in rows]
    details = [", ".join(filter(None, (row["artefact"], row["runs_on"]))) for row in rows]
    meanings = Counter(name for name, _ in set(zip(names, details, strict=True)))
    return [
        f"{name} ({detail})" if meanings[name] > 1 else name
        for name, detail in zip(names, details, strict=True)
    ]


def _meters(rows: Sequence[Row]) -> list[str]:
    measured = [row["meter"] or "an unnamed meter" for row in rows if row["tok_per_joule"]]
    meters = list(dict.fromkeys(measured))
    if len(meters) < 2:
        return [f"Energy by {meter}." for meter in meters]
    return [f"Energy by several meters ({'; '.join(meters[:NAMED])}): compare tok/J within one."]


def _runs(row: Row) -> str:
    low, high = row["lowest_tok_s"], row["highest_tok_s"]
    if row["runs"] == 1 or low is None:
        return str(row["runs"])
    return f"{row['runs']} ({figure(low)} to {figure(high)})"


def _opening(comparison: DeviceComparison) -> Iterator[str]:
    devices = len({row["device"] for row in comparison.rows})
    filters = (("chip", comparison.chip), ("model", comparison.model))
    wanted = ", ".join(f'{name} "{plain(text)}"' for name, text in filters if text)
    line = f"{_count(comparison.profiles, 'profile')} of {_count(comparison.files, 'file')}"
    if wanted:
        line += f"; {_count(comparison.filtered_out, 'other')} did not match {wanted}"
    yield f"# {_count(devices, 'device')} compared"
    yield f"{line}. Figures are medians over a run's trials."
    if not comparison.rows:
        yield "No comparable rows."


def _left_out_lines(left_out: Iterable[LeftOut]) -> Iterator[str]:
    by_kind: dict[str, list[LeftOut]] = {}
    for entry in left_out:
        by_kind.setdefault(entry.kind, []).append(entry)
    for kind, entries in by_kind.items():
        yield f"- {kind} ({len(entries)})"
        yield from (f"  - {e.file}: {e.reason}" for e in entries[:NAMED])
        if len(entries) > NAMED:
            yield f"  - and {len(entries) - NAMED} more: -o json names all"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
