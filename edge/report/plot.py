"""Plots of a profile, drawn with matplotlib's object interface: no state, no display."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from edge.atomic import appears_whole
from edge.report.table import format_rate, row_label

# Okabe and Ito's palette, distinct for colour-blind readers; one colour per engine everywhere.
COLOURS = {"mlx": "#0072B2", "mlx-lm": "#56B4E9", "llama.cpp": "#E69F00"}
DOT_COLOUR = "#222222"


def throughput_plot(profile: Mapping[str, Any]) -> Figure:
    """Decode throughput of every row: the median as a bar from zero, every trial as a dot."""
    rows = profile["rows"]
    figure = Figure(figsize=(max(6.4, 1.3 * len(rows)), 4.8), layout="constrained")
    axes = figure.add_subplot()
    for x, row in enumerate(rows):
        _draw_row(axes, x, row)
    axes.set_xticks(range(len(rows)), [row_label(row) for row in rows], rotation=20, ha="right")
    axes.set_xlim(-0.6, max(len(rows), 1) - 0.4)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.set_ylabel("decode throughput (tok/s)")
    axes.set_title(f"{profile['model']['name']} on {profile['device']['name']}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, rows)
    figure.supxlabel(provenance(profile), fontsize=7, color="#555555")
    return figure


def provenance(profile: Mapping[str, Any]) -> str:
    """What was measured, on what, when: one or two lines for under a figure."""
    rows, software = profile["rows"], profile["software"]
    counts = sorted({row["decode_tok_s"]["n"] for row in rows if row["decode_tok_s"]})
    workload = rows[0]["workload"] if rows else {}
    versions = ", ".join(f"{name} {software[name]}" for name in ("mlx", "llama-cpp-python"))
    return (
        f"tg{workload.get('generate')} @ d{workload.get('depth')}, bar: median of n = "
        f"{' or '.join(map(str, counts)) or 0} trials (dots), bracket: ± 1 standard deviation\n"
        f"{profile['device']['os']}, edge {software['edge']}, {versions}, {profile['created_utc']}"
    )


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure as PNG.

    Raises:
        EdgeError: the folder cannot be written.
    """
    FigureCanvasAgg(figure)
    with appears_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def _draw_row(axes: Axes, x: int, row: Mapping[str, Any]) -> None:
    quantity = row["decode_tok_s"]
    if quantity is None:  # visible as missing, never as a zero
        axes.text(x, 0, "not measured", rotation=90, ha="center", va="bottom", color="#888888")
        return
    axes.bar(x, quantity["median"], width=0.62, color=COLOURS[row["engine"]])
    sd = quantity["sd"] or 0.0
    axes.errorbar(x, quantity["median"], yerr=sd, color=DOT_COLOUR, capsize=4)
    values = [t["decode_tok_s"] for t in row["trials"] if not t["warmup"]]
    jitter = random.Random(x)
    spread = [x + jitter.uniform(-0.15, 0.15) for _ in values]
    axes.scatter(spread, values, s=12, color=DOT_COLOUR, alpha=0.6, zorder=3)
    axes.annotate(
        format_rate(quantity["median"]),
        (x, max(quantity["median"] + sd, *values)),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=9,
    )


def _legend(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.patches import Patch

    engines = [e for e in COLOURS if any(row["engine"] == e for row in rows)]
    handles = [Patch(color=COLOURS[engine], label=engine) for engine in engines]
    if handles:
        figure.legend(handles=handles, frameon=False, ncols=len(handles), loc="outside upper right")
