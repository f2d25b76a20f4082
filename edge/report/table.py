"""A profile as a table with the columns of Table 11, its notes and provenance, and as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from edge.profile.profile import QUANTITIES, Profile, Quality, Quantity, RowSummary
from edge.text import NOT_MEASURED, escape, figure, markdown, plain, share

WORDS = ("Artefact", "Framework", "Device", "Precision", "Test", "Verdict")
# Columns that tell rows of one model and framework apart.
IDENTITY = ("Framework", "Precision", "Test")
# Columns that are left out where no row has a figure.
OPTIONAL = ("J/token", "Net J/token", "Roofline", "KL (nats)", "PPL ratio", "Top-1")
ENGINES = ("mlx", "mlx-lm", "llama-cpp-python", "llama.cpp")
# Columns of the CSV.
PARTS = ("median", "mean", "sd", "ci95_low", "ci95_high", "n")
QUALITY = (
    *("perplexity", "perplexity_ratio", "kl_mean", "kl_p99", "top1_agreement"),
    *("tokens", "reference", "corpus"),
)
HEAD = (
    *("created_utc", "device", "os", "memory_bandwidth_gb_s", "model", "parameters"),
    *("synthetic", "edge", "framework", "artefact", "engine", "precision"),
    *("prompt", "generate", "depth"),
    *(f"{name}_{part}" for name in QUANTITIES for part in PARTS),
    *("file_bytes", "bits_per_weight", "bytes_per_token", "peak_memory_bytes"),
    *("peak_device_bytes", "bandwidth_fraction", "load_s"),
    *(f"quality_{name}" for name in QUALITY),
    *("verdict", "reasons"),
)
# Spreadsheets run cells that begin with these as formulas.
FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Cell:
    """Text and, for sorting, the number; None if not measured."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Head and lines of equal length; `words` are the columns of text."""

    head: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    words: tuple[str, ...]

    def markdown(self) -> str:
        lines = [[escape(cell.text) for cell in line] for line in self.lines]
        return markdown(self.head, lines, self.words)


def profile_table(profile: Profile) -> Table:
    """Medians ± standard deviation of the rows, without empty columns."""
    lines = [_cells(row, plain(profile.device.name)) for row in profile.rows]
    kept = [name for name in lines[0] if _is_kept(name, lines)] if lines else []
    distinct = {tuple(line[name].text for name in IDENTITY) for line in lines}
    if lines and all(row.model is None for row in profile.rows) and len(distinct) == len(lines):
        kept.remove("Artefact")
    return Table(tuple(kept), tuple(tuple(line[name] for name in kept) for line in lines), WORDS)


def number_cell(value: float | None, digits: int = 3) -> Cell:
    """A cell with significant digits; a dash for None."""
    return Cell(figure(value, digits), value)


def _is_kept(name: str, lines: Sequence[dict[str, Cell]]) -> bool:
    if name == "Test":
        return len({line[name].text for line in lines}) > 1
    return name not in OPTIONAL or any(line[name].value is not None for line in lines)


def _cells(row: RowSummary, device: str) -> dict[str, Cell]:
    quality, bits = row.quality or Quality(), row.bits_per_weight
    top1, peak, ratio = quality.top1_agreement, row.peak_memory_bytes, quality.perplexity_ratio
    return {
        "Artefact": Cell(plain(row.artefact, 60)),
        "Framework": Cell(plain(row.with_peer(row.framework), 48)),
        "Device": Cell(device),
        "Precision": Cell(plain(row.precision, 30)),
        "Throughput (Tok/s)": _quantity_cell(row.decode_tok_s),
        "Power (W)": _quantity_cell(row.power_w),
        "J/token": _quantity_cell(row.joules_per_token),
        "Net J/token": _quantity_cell(row.joules_per_token_net),
        "Test": Cell(str(row.workload)),
        "Prefill (Tok/s)": _quantity_cell(row.prefill_tok_s),
        "TTFT (ms)": _quantity_cell(row.ttft_s, 1000),
        "Peak memory (MB)": Cell(NOT_MEASURED if peak is None else f"{peak / 1e6:.0f}", peak),
        "Bytes/weight": Cell(NOT_MEASURED if bits is None else f"{bits / 8:.2f}", bits),
        "Roofline": Cell(share(row.bandwidth_fraction), row.bandwidth_fraction),
        "KL (nats)": number_cell(quality.kl_mean, 2),
        "PPL ratio": Cell(NOT_MEASURED if ratio is None else f"{ratio:.4f}", ratio),
        "Top-1": Cell(NOT_MEASURED if top1 is None else f"{top1:.1%}", top1),
        "Verdict": Cell(row.verdict),
    }


def _quantity_cell(quantity: Quantity | None, scale: float = 1.0) -> Cell:
    if quantity is None:
        return Cell(NOT_MEASURED)
    median = quantity.median * scale
    text = figure(median)
    if quantity.sd is not None:
        text += f" ± {quantity.sd * scale:.{len(text.partition('.')[2])}f}"
    return Cell(text, median)


def notes(profile: Profile) -> list[str]:
    """Each distinct reason once, with the rows it is about unless that is all of them."""
    rows, with_test = profile.rows, has_tests(profile.rows)
    about: dict[str, list[str]] = {}
    for row in rows:
        for reason in row.reasons:
            about.setdefault(plain(reason, 600), []).append(row_label(row, with_test))
    texts = [
        reason if len(names) == len(rows) else f"{listed(names)}: {reason}"
        for reason, names in about.items()
    ]
    metric = profile.method.peak_memory
    return [*texts, f"peak memory is the process's {plain(metric, 300)}"] if metric else texts


def has_tests(rows: Sequence[RowSummary]) -> bool:
    """The rows have several workloads, so that labels need theirs."""
    return len({row.workload for row in rows}) > 1


def row_label(row: RowSummary, with_test: bool) -> str:
    """A row's short name, with its workload."""
    name = plain(row.with_peer(row.artefact), 60)
    return f"{name} {row.workload}" if with_test else name


def listed(labels: Iterable[str]) -> str:
    """Labels joined by commas, or by semicolons if some contain commas."""
    labels = list(labels)
    return ("; " if any(", " in label for label in labels) else ", ").join(labels)


def title(profile: Profile) -> str:
    return f"{plain(profile.model.name)} on {plain(profile.device.name)}"


def markdown_section(profile: Profile) -> str:
    """Heading, table, notes and provenance of one profile, as Markdown."""
    parts = (
        f"### {escape(title(profile))}",
        profile_table(profile).markdown() if profile.rows else "No row was measured.",
        "\n".join(f"- {escape(note)}" for note in notes(profile)),
        escape(provenance(profile)),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def provenance(profile: Profile) -> str:
    software, revision = profile.software, profile.software.get("edge-revision", "")
    commit, _, changed = revision.partition("-")
    edge = f"edge {software.get('edge') or 'of unknown version'}"
    edge += f" ({commit[:9]}{', changed' if changed else ''})" if commit else ""
    meters = sorted({row.power.source for row in profile.rows if row.power})
    parts = (
        profile.device.name,
        profile.device.os or "system not recorded",
        edge,
        *(f"{name} {software[name]}" for name in ENGINES if name in software),
        f"power: {', '.join(meters)}" if meters else "power not measured",
        profile.created_utc,
    )
    text = ", ".join(plain(part, 60) for part in parts)
    return f"{text}; random weights" if profile.model.synthetic else text


def csv_table(profiles: Iterable[Profile]) -> str:
    """CSV with a line per row, figures unrounded, empty where not measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HEAD, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for profile in profiles:
        device, bandwidth = profile.device, profile.device.memory_bandwidth
        about = {
            "created_utc": profile.created_utc,
            **{"device": device.name, "os": device.os},
            "memory_bandwidth_gb_s": bandwidth and bandwidth.gb_s,
            "edge": profile.software.get("edge"),
        }
        for row in profile.rows:
            model = row.model or profile.model
            cells = {**about, **_flat(row), "reasons": "; ".join(row.reasons)}
            cells |= {"model": model.name, "parameters": model.parameters}
            cells["synthetic"] = model.synthetic
            writer.writerow({name: _csv_cell(value) for name, value in cells.items()})
    return text.getvalue()


def _flat(row: RowSummary) -> dict[str, Any]:
    """A row's values by column; nested objects are flattened to name_part."""
    found: dict[str, Any] = msgspec.to_builtins(row.workload)
    for name in RowSummary.__struct_fields__:
        value = msgspec.to_builtins(getattr(row, name))
        parts = value if isinstance(value, dict) else {}
        low_high = zip(("ci95_low", "ci95_high"), parts.get("ci95") or (), strict=False)
        found[name] = value
        found |= {f"{name}_{part}": inner for part, inner in (*parts.items(), *low_high)}
    return found


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = plain(value, 4000)
    return f"'{text}" if text.startswith(FORMULA) else text
