"""Many profiles side by side: what is shown, what is left out, and why.

Of several measurements of one thing (the same model, workload, method, device, precision and
engine) one is shown: the newest VALID one, or where none is VALID the newest. The best would
reward luck, and a mean over files would mix versions of everything. The others are named beside
it, with the range of all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.report.devices.columns import GROUP, SAME, profile_columns, row_columns
from edge.report.devices.folder import read_folder
from edge.report.devices.records import LeftOut, Record
from edge.report.devices.structs import LEAST

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class DeviceComparison:
    """The comparison.

    Each of `rows` is one precision on one device: model, workload, method, device, artefact,
    engine, framework, precision, runs_on, verdict, reason, file, created_utc, n; the medians
    decode_tok_s, prefill_tok_s, power_w, joules_per_token, peak_memory_bytes; bandwidth_gb_s,
    bandwidth_source and bandwidth_fraction; decode_per_gb_s (tok/s per GB/s) and tok_per_joule;
    meter; runs (how many measurements there are), lowest_tok_s, highest_tok_s and others (their
    files). What was not measured is None. `methods` are the meanings of a rate that occur, most
    common first. Of `files`, `filtered_out` did not match `chip` and `model`.
    """

    files: int
    profiles: int
    filtered_out: int
    rows: list[dict[str, Any]]
    methods: list[str]
    left_out: list[LeftOut]
    chip: str | None = None
    model: str | None = None

    def markdown(self) -> str:
        """The summary for people."""
        from edge.report.devices.tables import markdown

        return markdown(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def compare_devices(
    folder: Path, chip: str | None = None, model: str | None = None
) -> DeviceComparison:
    """Compare all profiles below a folder.

    Args:
        folder: looked through with all folders in it.
        chip: only devices whose chip, GPU or hardware model has this in its name.
        model: only models that have this in their name or source. Case matters in neither.

    Raises:
        EdgeError: it is no folder, or has no *.json file.
    """
    records, left_out = _read(folder)
    files = len(records) + len(left_out)
    profiles, repeated = _without_duplicates(profile_columns(records))
    matching = _filtered(profiles, chip, model)
    left_out += repeated
    left_out += [
        LeftOut(line["file"], "has no rows: its run was stopped before the first", "no rows")
        for line in matching.filter(rows=0).iter_rows(named=True)
    ]
    usable, unusable = _usable(row_columns(records, matching["profile"]))
    left_out += unusable
    rows = _shown(usable)
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


def _read(folder: Path) -> tuple[list[Record], list[LeftOut]]:
    found = list(read_folder(folder))
    records = [entry for entry in found if isinstance(entry, Record)]
    return records, [entry for entry in found if isinstance(entry, LeftOut)]


def _without_duplicates(profiles: pl.DataFrame) -> tuple[pl.DataFrame, list[LeftOut]]:
    """Of one run's files the most complete stays: a run writes its file again after every row."""
    import polars as pl

    ordered = profiles.sort(
        ["finished", "rows", "file"], descending=[True, True, False], nulls_last=True
    ).with_columns(
        same_bytes=pl.col("file").first().over("content"),
        same_run=pl.col("file").first().over("run"),
    )
    copies = ordered.filter(pl.col("file") != pl.col("same_bytes"))
    again = ordered.filter(
        pl.col("file") == pl.col("same_bytes"), pl.col("file") != pl.col("same_run")
    )
    left_out = [
        LeftOut(file, f"has the same content as {kept}", "duplicate")
        for file, kept in copies.select("file", "same_bytes").iter_rows()
    ]
    left_out += [
        LeftOut(file, f"is of the same run as {kept}: device, model and time", "duplicate")
        for file, kept in again.select("file", "same_run").iter_rows()
    ]
    first = ordered.filter(pl.col("file") == pl.col("same_run"))
    return first.sort("profile"), left_out


def _filtered(profiles: pl.DataFrame, chip: str | None, model: str | None) -> pl.DataFrame:
    import polars as pl

    for column, wanted in (("chip", chip), ("model", model)):
        if wanted:
            words = pl.col(column).str.to_lowercase()
            profiles = profiles.filter(words.str.contains(wanted.lower(), literal=True))
    return profiles


def _usable(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[LeftOut]]:
    """Rows that have a figure that can be held against another; the rest with its reason."""
    import polars as pl

    invalid = pl.col("verdict") == "INVALID"
    unknown = pl.col("verdict") == "unknown"
    nothing = pl.col("decode_tok_s").is_null() & pl.col("prefill_tok_s").is_null()
    # A ceiling that was itself measured can be too low; one from a table cannot.
    impossible = (pl.col("bandwidth_fraction") > 1) & ~pl.col("bandwidth_source").fill_null(
        ""
    ).str.starts_with("measured")
    name = pl.format("{} on {} ({})", "artefact", "engine", "workload")
    why = (
        pl.when(invalid)
        .then(pl.format("{} is INVALID: {}", name, "reason"))
        .when(unknown)
        .then(pl.format("{} has a verdict that there is not: edge report --check says more", name))
        .when(nothing)
        .then(pl.format("{} has neither a decode nor a prefill rate: {}", name, "reason"))
        .when(impossible)
        .then(pl.format("{} reads faster than its memory can: measure again", name))
    )
    kind = (
        pl.when(invalid | unknown)
        .then(pl.lit("invalid"))
        .when(nothing)
        .then(pl.lit("not measured"))
        .when(impossible)
        .then(pl.lit("impossible"))
    )
    judged = rows.with_columns(why=why, kind=kind)
    refused = judged.filter(pl.col("kind").is_not_null()).select("file", "why", "kind")
    usable = judged.filter(pl.col("kind").is_null()).drop("why", "kind")
    return usable, [LeftOut(*line) for line in refused.iter_rows()]


def _shown(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """One line per thing measured, most common method first, the fastest device first."""
    import polars as pl

    by_preference = rows.with_columns(is_valid=pl.col("verdict") == "VALID").sort(
        ["is_valid", "created_utc", "file"], descending=True
    )
    pooled = by_preference.group_by(SAME, maintain_order=True).agg(
        pl.exclude("is_valid", "decode_tok_s", "profile").first(),
        pl.col("decode_tok_s").first(),
        runs=pl.len(),
        lowest_tok_s=pl.col("decode_tok_s").min(),
        highest_tok_s=pl.col("decode_tok_s").max(),
        others=pl.col("file").slice(1),
    )
    full = pooled.with_columns(
        decode_per_gb_s=pl.col("decode_tok_s") / pl.col("bandwidth_gb_s"),
        tok_per_joule=pl.when(pl.col("joules_per_token") >= LEAST).then(
            1 / pl.col("joules_per_token")
        ),
        commonness=pl.len().over("method"),
        best=pl.coalesce("decode_tok_s", "prefill_tok_s").max().over(*GROUP, "device"),
    )
    order = ["commonness", "method", "model", "depth", "prompt", "generate", "workload", "best"]
    order += ["device", "framework", "precision", "engine", "runs_on"]
    downwards = [name in ("commonness", "best") for name in order]
    full = full.sort(order, descending=downwards)
    return full.drop("commonness", "best", "prompt", "generate", "depth").to_dicts()
