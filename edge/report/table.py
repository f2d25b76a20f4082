"""A profile as a table with the columns of Table 11, its notes and provenance, and as CSV."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from edge.profile.baseline import RATIOS
from edge.profile.profile import (
    OWN_ENGINES,
    QUANTITIES,
    Profile,
    Quality,
    Quantity,
    Reason,
    RowSummary,
)
from edge.profile.ratio import Ratio
from edge.stats import PERCENTILES, POWER
from edge.text import (
    NOT_MEASURED,
    Cell,
    Layout,
    Table,
    csv_text,
    cut,
    escape,
    figure,
    percent,
    plain,
    share,
)

WORDS = ("Artefact", "Framework", "Device", "Precision", "Test", "Verdict")
# Columns that tell rows of one model and framework apart.
IDENTITY = ("Framework", "Precision", "Test")
# Columns that are left out where no row has a figure.
RATIO_HEADS = dict(zip(RATIOS, ("Decode ratio", "Prefill ratio", "J/token ratio"), strict=True))
OPTIONAL = (
    *("J/token", "Net J/token", "Roofline", "KL (nats)", "PPL ratio", "Top-1"),
    *RATIO_HEADS.values(),
)
# Columns of a profile with batches: the rate of one sequence, and the time between its tokens.
OF_BATCHES = ("Each (Tok/s)", "Latency (ms)")
ENGINES = ("mlx", "mlx-lm", "llama-cpp-python", "llama.cpp")
# Rows that a note on a terminal names, and columns for the names.
MOST_NAMED, LABEL_COLUMNS = 2, 48
T = TypeVar("T", bound=RowSummary)
# Columns of the CSV.
PARTS = ("median", "mean", "sd", "ci95_low", "ci95_high", "n")
RATIO_PARTS = ("ratio", "interval_low", "interval_high", "rounds", "detectable")
QUALITY = (
    *("perplexity", "perplexity_ratio", "kl_mean", "kl_p99", "top1_agreement"),
    *("tokens", "reference", "corpus"),
)
GATE = ("prompt_tokens", "positions", "worst_error", "bound", "reference_error")
HEAD = (
    *("created_utc", "device", "os", "memory_bandwidth_gb_s", "model", "parameters"),
    *("synthetic", "edge", "framework", "artefact", "engine", "source", "precision"),
    *("prompt", "generate", "depth", "batch"),
    *(f"{name}_{part}" for name in QUANTITIES for part in PARTS),
    *("file_bytes", "bits_per_weight", "bytes_per_token", "peak_memory_bytes"),
    *("peak_device_bytes", "bandwidth_fraction", "load_s"),
    *(f"token_latency_ms_{name}" for name in PERCENTILES),
    *(f"quality_{name}" for name in QUALITY),
    *(f"gate_{name}" for name in GATE),
    *("verdict", "reasons", "arm", "baseline"),
    *(f"ratios_{name}_{part}" for name in RATIOS for part in RATIO_PARTS),
)
# Columns on a terminal by their heads there, and those that are left out first where it is narrow.
SHORT = {
    **{"Artefact": "Row", "Test": "Test", "Throughput (Tok/s)": "tok/s", "Each (Tok/s)": "Each"},
    **{"Latency (ms)": "Latency (ms)", "Power (W)": "W"},
    **{head: head for head in RATIO_HEADS.values()},
    **{"Prefill (Tok/s)": "Prefill", "J/token": "J/token", "Net J/token": "Net J/token"},
    **{"TTFT (ms)": "TTFT (ms)", "Peak memory (MB)": "Peak MB", "Bytes/weight": "Bytes/weight"},
    **{"Roofline": "Roofline", "KL (nats)": "KL (nats)", "PPL ratio": "PPL ratio"},
    **{"Top-1": "Top-1", "Verdict": "Verdict"},
}
DROPPED = (
    *("Net J/token", "Bytes/weight", "PPL ratio", "Top-1", "TTFT (ms)", "Roofline", "KL (nats)"),
    *("Peak MB", "Each", "J/token", "Prefill", "Latency (ms)", "W", "J/token ratio"),
    "Prefill ratio",
)


def profile_table(profile: Profile) -> Table:
    """Medians ± standard deviation of the rows, without empty columns."""
    lines = [_cells(row, plain(profile.device.name)) for row in side_by_side(profile.rows)]
    kept = _kept(lines, profile)
    distinct = {tuple(line[name].text for name in IDENTITY) for line in lines}
    if lines and all(row.model is None for row in profile.rows) and len(distinct) == len(lines):
        kept.remove("Artefact")
    return Table(tuple(kept), tuple(tuple(line[name] for name in kept) for line in lines), WORDS)


def terminal_table(profile: Profile) -> Table:
    """The same for a terminal: rows have their short names, and unimportant columns may go."""
    rows = side_by_side(profile.rows)
    lines = [{**_cells(r, ""), "Artefact": Cell(row_label(r, with_test=False))} for r in rows]
    kept = [name for name in SHORT if name in _kept(lines, profile)]
    return Table(
        [SHORT[name] for name in kept],
        [[line[name] for name in kept] for line in lines],
        ("Row", "Test", "Verdict"),
        dropped=DROPPED,
        cut=("Row",),
    )


def side_by_side(rows: Sequence[T]) -> list[T]:
    """Rows by workload, model, then falling bits, MLX before the GGUF with as many bits."""
    tests = {test: place for place, test in enumerate(dict.fromkeys(r.workload for r in rows))}
    models = {model: place for place, model in enumerate(dict.fromkeys(r.model for r in rows))}
    frameworks = {name: place for place, name in enumerate(OWN_ENGINES)}

    def place(row: T) -> tuple[int, int, int, int]:
        framework = frameworks.get(row.framework, len(frameworks))
        return tests[row.workload], models[row.model], -round(row.bits_per_weight or 0), framework

    return sorted(rows, key=place)


def number_cell(value: float | None, digits: int = 3) -> Cell:
    """A cell with significant digits; a dash for None."""
    return Cell(figure(value, digits), value)


def _kept(lines: Sequence[dict[str, Cell]], profile: Profile) -> list[str]:
    """Columns that have a figure, or are always shown."""
    left_out = () if has_batches(profile.rows) else OF_BATCHES
    return [
        name
        for name in (lines[0] if lines else ())
        if name not in left_out
        if name not in OPTIONAL or any(line[name].value is not None for line in lines)
    ]


def _cells(row: RowSummary, device: str) -> dict[str, Cell]:
    quality, bits = row.quality or Quality(), row.bits_per_weight
    top1, peak, ratio = quality.top1_agreement, row.peak_memory_bytes, quality.perplexity_ratio
    return {
        "Artefact": Cell(plain(row.artefact, 60)),
        "Framework": Cell(plain(row.with_peer(row.framework), 48)),
        "Device": Cell(device),
        "Precision": Cell(plain(row.precision, 30)),
        "Throughput (Tok/s)": _quantity_cell(row.decode_tok_s),
        "Each (Tok/s)": _quantity_cell(row.decode_tok_s, 1 / row.workload.batch),
        "Latency (ms)": number_cell((row.token_latency_ms or {}).get("p50")),
        "Power (W)": _quantity_cell(row.power_w),
        "J/token": _quantity_cell(row.joules_per_token),
        "Net J/token": _quantity_cell(row.joules_per_token_net),
        **{head: _ratio_cell(row.ratios.get(key)) for key, head in RATIO_HEADS.items()},
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


def _ratio_cell(found: Ratio | None) -> Cell:
    if found is None:
        return Cell(NOT_MEASURED)
    text = f"{found.ratio:.3g}"
    if found.interval is not None:
        text += " ({:.3g} to {:.3g})".format(*found.interval)
    return Cell(text, found.ratio)


def ratio_notes(profile: Profile) -> list[str]:
    """What the ratios are relative to, and the smallest differences they could have shown."""
    rows = [row for row in side_by_side(profile.rows) if row.ratios]
    found = [ratio for row in rows for ratio in row.ratios.values()]
    if not found:
        return []
    bases = listed(dict.fromkeys(plain(row.baseline or "", 60) for row in rows))
    rounds = " or ".join(map(str, sorted({ratio.rounds for ratio in found})))
    smallest = []
    for key, head in RATIO_HEADS.items():
        known = [r.detectable for row in rows if (r := row.ratios.get(key)) and r.detectable]
        if known:
            spread = dict.fromkeys(percent(value) for value in (min(known), max(known)))
            smallest.append(f"{head.removesuffix(' ratio').lower()} {' to '.join(spread)}")
    note = (
        f"ratios are to {bases}, compared round by round, with {found[0].confidence:.0%} intervals "
        f"over {rounds} round{'' if rounds == '1' else 's'}"
    )
    if not smallest:
        return [f"{note}, too few for an interval: use more --rounds"]
    seen = f"the smallest difference that this data shows {POWER:.0%} of the time"
    return [note, f"{seen}: {', '.join(smallest)}; more --rounds make it smaller"]


def notes(profile: Profile) -> list[str]:
    """Each distinct reason once, with the rows it is about unless that is all of them."""
    rows = side_by_side(profile.rows)
    texts = [
        reason if len(names) == len(rows) else f"{listed(names)}: {reason}"
        for reason, names in _reasons(rows).items()
    ]
    metric = profile.method.peak_memory
    texts = [*ratio_notes(profile), *texts]
    texts += [f"logits checked: {text}" for text in [_checked(rows)] if text]
    return [*texts, f"peak memory is the process's {plain(metric, 300)}"] if metric else texts


def _reasons(rows: Sequence[RowSummary]) -> dict[str, list[str]]:
    """Labels of the rows by reason."""
    with_test = has_tests(rows)
    about: dict[str, list[str]] = {}
    for row in rows:
        for reason in row.reasons:
            about.setdefault(plain(reason, 600), []).append(row_label(row, with_test))
    return about


def _checked(rows: Sequence[RowSummary]) -> str:
    """What was checked of all rows, with the error that is largest for its bound."""
    gates = [row.gate for row in rows if row.gate]
    if not gates:
        return ""
    worst = max(gates, key=lambda gate: gate.share)
    batches = ", every sequence of a batch alone" if has_batches(rows) else ""
    return (
        f"{len(gates)} of {len(rows)} rows, up to {max(gate.prompt_tokens for gate in gates)} "
        f"prompt tokens at once and in small pieces{batches}, "
        f"{error_text(worst.worst_error, worst.bound)}"
    )


def error_text(error: float | None, bound: float) -> str:
    """The largest relative error of checked logits, beside what rounding explains."""
    found = "not finite" if error is None else f"{error:.2g}"
    return f"largest error {found}, up to {bound:.2g} is rounding"


def terminal_section(profile: Profile, layout: Layout) -> str:
    """Title, table and notes for a terminal.

    The first reason of each row that is not VALID comes first, and is never cut.
    """
    rows = side_by_side(profile.rows)
    main = {plain(row.reasons[0], 600) for row in rows if row.verdict != "VALID" and row.reasons}
    whole = ratio_notes(profile)
    others: list[str] = []
    for reason, names in _reasons(rows).items():
        label = listed(names) if len(names) <= MOST_NAMED else f"{len(names)} rows"
        label = cut(label, LABEL_COLUMNS)
        text = Reason.parse(reason).text
        note = text if len(names) == len(rows) else f"{label}: {text}"
        (whole if reason in main else others).append(note)
    parts = (
        layout.wrapped(title(profile)),
        layout.table(terminal_table(profile)) if rows else "No row was measured.",
        layout.notes([*whole, *others], whole),
    )
    return "\n\n".join(part for part in parts if part)


def has_tests(rows: Sequence[RowSummary]) -> bool:
    """The rows have several workloads, so that labels need theirs."""
    return len({row.workload for row in rows}) > 1


def has_batches(rows: Sequence[RowSummary]) -> bool:
    return any(row.workload.batch > 1 for row in rows)


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
    sources = sorted({row.source for row in profile.rows if row.source})
    parts = (
        profile.device.name,
        profile.device.os or "system not recorded",
        f"imported from {', '.join(sources)} by {edge}" if sources else edge,
        *(f"{name} {software[name]}" for name in ENGINES if name in software),
        f"power: {', '.join(meters)}" if meters else "power not measured",
        profile.created_utc,
    )
    text = ", ".join(plain(part, 60) for part in parts)
    return f"{text}; random weights" if profile.model.synthetic else text


def csv_table(profiles: Iterable[Profile]) -> str:
    """CSV with a line per row, figures unrounded, empty where not measured."""
    return csv_text((line for profile in profiles for line in _csv_lines(profile)), HEAD)


def _csv_lines(profile: Profile) -> Iterator[dict[str, Any]]:
    bandwidth = profile.device.memory_bandwidth
    about = {
        "created_utc": profile.created_utc,
        **{"device": profile.device.name, "os": profile.device.os},
        "memory_bandwidth_gb_s": bandwidth and bandwidth.gb_s,
        "edge": profile.software.get("edge"),
    }
    for row in side_by_side(profile.rows):
        model = row.model or profile.model
        of_model = {"model": model.name, "parameters": model.parameters}
        values = {name: getattr(row, name) for name in RowSummary.__struct_fields__}
        values |= {**msgspec.to_builtins(values), **msgspec.to_builtins(row.workload)}
        yield {**about, **values, **of_model, "synthetic": model.synthetic}
