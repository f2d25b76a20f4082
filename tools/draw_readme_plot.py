"""Draw the plot that the README shows: python tools/draw_readme_plot.py.

Run it when the demo was measured anew, or the plot changed. A test compares the two.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edge.formats.files import atomic_write
from edge.profile.reading import read_profile
from edge.report.figure import to_svg
from edge.report.plots import throughput

ROOT = Path(__file__).resolve().parents[1]
PROFILE = max((ROOT / "profiles" / "measured").glob("*-demo.json"))  # the newest
PLOT = ROOT / "docs" / "throughput.svg"


def drawn() -> str:
    """The SVG file's text; nothing in it depends on the time or the machine."""
    figure = throughput.draw(read_profile(PROFILE))
    assert figure is not None, "the profile has no rows"
    return to_svg(figure.figure) + "\n"


def main() -> int:
    with atomic_write(PLOT) as partial:
        partial.write_text(drawn(), encoding="utf-8")
    print(f"{PLOT.name}: {PLOT.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
