"""What the table of a profile has: columns, names of rows, notes, figures as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
NOT_MEASURED = "—"
COLUMNS = (
    "Framework",
    "Device",
    "Precision",
    "Throughput (Tok/s)",
    "Power (W)",
    "J/token",
    "Net J/token",
    "Test",
    "Prefill (Tok/s)",
    "TTFT (ms)",
    "Peak memory (MB)",
    "Bytes/weight",
    "Roofline",
    "KL (nats)",
    "PPL ratio",
    "Top-1",
    "Verdict",
)
TEXT_COLUMNS = 3


def _any(key: str) -> Callable[[Rows], bool]:
    return lambda rows: any(row.get(key) is not None for row in rows)


def _any_quality(key: str) -> Callable[[Rows], bool]:
    return lambda rows: any((row.get("quality") or {}).get(key) is not None for row in rows)


# Columns shown only where they say something.
OPTIONAL: dict[str, Callable[[Rows], bool]] = {
    "J/token": _any("joules_per_token"),
    "Net J/token": _any("joules_per_token_net"),
    "Roofline": _any("bandwidth_fraction"),
    "KL (nats)": _any_quality("kl_mean"),
    "PPL ratio": _any_quality("perplexity_ratio"),
    "Top-1": _any_quality("top1_agreement"),
    "Test": lambda rows: several_workloads(rows),
}
OWN_ENGINES = ("mlx", "llama.cpp")


def notes(profile: Mapping[str, Any]) -> list[str]:
    """What the table leaves open: each distinct reason once, with the rows it is about."""
    rows = profile["rows"]
    about: dict[str, list[str]] = {}
    for row in rows:
        for reason in row["reasons"]:
            about.setdefault(reason, []).append(row_label(row, rows))
    said = [
        reason if len(names) == len(rows) else f"{listed(names)}: {reason}"
        for reason, names in about.items()
    ]
    metric = profile.get("method", {}).get("peak_memory")
    return [*said, f"peak memory is the process's {metric}"] if metric else said


def listed(labels: Sequence[str]) -> str:
    """Labels beside each other; those of several workloads have commas of their own."""
    return ("; " if any(", " in label for label in labels) else ", ").join(labels)


def row_label(row: Mapping[str, Any], rows: Rows = ()) -> str:
    """A row's short name; a peer's carries its engine, and where `rows` differ the workload."""
    name = with_peer(row["artefact"], row["engine"])
    return f"{name} {workload_name(row['workload'])}" if several_workloads(rows) else name


def with_peer(name: str, engine: str) -> str:
    """The name, and behind it the engine where that is not one of edge's own."""
    return name if engine in OWN_ENGINES else f"{name} ({engine})"


def workload_name(workload: Mapping[str, Any]) -> str:
    """As llama-bench spells it: pp512, tg128 @ d4096; a joint one pp512+tg128."""
    kinds = (("pp", workload["prompt"]), ("tg", workload["generate"]))
    tests = [f"{kind}{n}" for kind, n in kinds if n]
    name = ("+" if workload.get("joint") else ", ").join(tests)
    return f"{name} @ d{workload['depth']}" if workload["depth"] else name


def several_workloads(rows: Rows) -> bool:
    """Whether rows were measured under more than one workload."""
    return len({workload_name(row["workload"]) for row in rows}) > 1


def format_rate(value: float) -> str:
    """Three significant figures, or all before the point."""
    return f"{value:.{_digits(value)}f}"


def _digits(value: float) -> int:
    return 0 if value >= 1000 else 1 if value >= 10 else 2 if value >= 1 else 3
