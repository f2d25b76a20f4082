"""Measures the processor time that reading powermetrics takes.

    python benchmarks/meter.py                                  # 500 ms, as edge uses it
    python benchmarks/meter.py --intervals 100 500 --json meter.json

The fake powermetrics of the tests writes records of an M2 Ultra, the largest ones, whole or line by
line as an unbuffered powermetrics may. Its own time is not counted. The reading process does
nothing else, so that all of its processor time is the meter's. Prints per cent of a core.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from apart import write_json  # noqa: E402

from edge.power import powermetrics  # noqa: E402
from tests.support.fake_powermetrics import install, record  # noqa: E402

# How the fake writes: the value of FAKE_POWERMETRICS.
WRITES = {"whole records": "ultra", "a line at a time": "ultra,by-line"}


def cost(interval_ms: int, writes_as: str, seconds: float) -> dict[str, Any]:
    """Processor seconds of this process per second, while the meter runs."""
    os.environ["FAKE_POWERMETRICS"] = writes_as
    powermetrics.INTERVAL_MS = interval_ms
    meter = powermetrics.PowermetricsMeter()
    meter.start()
    begin_s, used_s = time.monotonic(), _used_s()
    time.sleep(seconds)
    share = (_used_s() - used_s) / (time.monotonic() - begin_s)
    samples = meter.stop()
    assert meter.unavailable is None, meter.unavailable
    return {"of_a_core": share, "records": len(samples)}


def _used_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def compared(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A record per interval and way of writing; the runs alternate."""
    kinds = list(product(args.intervals, WRITES))
    found: dict[Any, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(args.rounds):
        for interval, writes in kinds:
            run = cost(interval, WRITES[writes], args.seconds)
            found[interval, writes].append(run)
    return [
        {
            "interval_ms": interval,
            "writes": writes,
            "percent_of_a_core": 100 * statistics.median(r["of_a_core"] for r in runs),
            "rounds": [round(100 * r["of_a_core"], 4) for r in runs],
            "records": sum(r["records"] for r in runs),
        }
        for (interval, writes), runs in found.items()
    ]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--intervals", type=int, nargs="+", default=[500], help="milliseconds")
    parser.add_argument("--seconds", type=float, default=10.0, help="per run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file to write all rounds to")
    return parser.parse_args()


def main() -> None:
    """Measures, prints, writes the file."""
    args = parsed()
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        command = (f"{folder}/sudo", "-n", f"{folder}/powermetrics")
        with patch.object(powermetrics, "find_command", lambda: command):
            records = compared(args)
    for r in records:
        rounds = ", ".join(f"{share:.2f}" for share in r["rounds"])
        print(
            f"{r['interval_ms']:5} ms, {r['writes']:16} "
            f"{r['percent_of_a_core']:6.2f} % of a core ({rounds})"
        )
    method = {
        "what": "processor time of the reading process per second of wall time, in per cent",
        "record_bytes": len(record(chip="M2 Ultra")),
        "seconds": args.seconds,
        "rounds": args.rounds,
        "source": "the tests' fake powermetrics, whose own time is not counted",
    }
    write_json(args.json, method, records)


if __name__ == "__main__":
    main()
