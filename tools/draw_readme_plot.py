"""Draw the plot that the README shows: python tools/draw_readme_plot.py.

Run it after a new measurement of the demo or a change of the plot. A test compares the file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edge.formats.files import atomic_write
from edge.profile.profile import read
from edge.report.plots.bars import throughput

ROOT = Path(__file__).resolve().parents[1]
PROFILE = max((ROOT / "profiles" / "measured").glob("*-demo.json"))  # the newest
PLOT = ROOT / "docs" / "throughput.svg"


def drawn() -> str:
    """The SVG file's text, which depends on neither time nor machine."""
    figure = throughput(read(PROFILE))
    assert not isinstance(figure, str), figure
    return figure.svg() + "\n"


def main() -> int:
    with atomic_write(PLOT) as partial:
        partial.write_text(drawn(), encoding="utf-8")
    print(f"{PLOT.name}: {PLOT.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
