"""Measure the energy of a command, of a stretch of time, or of a recorded log."""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.cli.options.power import check
from edge.device.state import NOMINAL
from edge.errors import EdgeError, printable
from edge.power.choose import choose_meter
from edge.power.meter import Energy, Meter, Sample, integrate
from edge.power.replay import read_log

DAY_S = 86400.0
# As shells have them.
NOT_EXECUTABLE, NOT_FOUND, SIGNALLED, INTERRUPTED = 126, 127, 128, 130


@dataclass(frozen=True)
class Measurement:
    """What was measured over a window, and what to doubt about it."""

    source: str
    boundary: str
    duration_s: float
    energy: Energy
    flags: tuple[str, ...]


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Returns:
        COMMAND's exit code; 130 if --seconds was cut short; 1 if the meter failed; else 0.
    """
    check(args)
    if args.replay is not None:
        _print(_replayed(args.replay), args.output, to_stderr=False)
        return 0

    meter = choose_meter(args.source)
    _refuse_unavailable(meter)
    meter.start()
    begin_ns = end_ns = time.monotonic_ns()
    try:
        _refuse_unavailable(meter)
        begin_ns = time.monotonic_ns()
        code = _run_command(args) if args.argv else _wait(args.seconds)
    finally:
        end_ns = time.monotonic_ns()
        samples = meter.stop()
    measurement = _measured(meter, samples, begin_ns, end_ns)
    _print(measurement, args.output, to_stderr=bool(args.argv) and args.output == "text")
    return code if args.argv or meter.unavailable is None else 1


def _replayed(path: Path) -> Measurement:
    log = read_log(path)
    end_ns = log.samples[-1].end_ns
    energy = integrate(log.samples, 0, end_ns)
    flags = (*log.flags, *_window_flags(energy))
    return Measurement(f"replay:{path.name}", log.boundary, end_ns / 1e9, energy, flags)


def _refuse_unavailable(meter: Meter) -> None:
    if meter.unavailable is not None:
        raise EdgeError(f"Nothing was measured, nothing run: {meter.unavailable}.")


def _run_command(args: argparse.Namespace) -> int:
    """Run COMMAND to its end; Ctrl-C is for it, and what it used is still told."""
    stdout = sys.stderr if args.output == "json" else None
    # A handler, unlike SIG_IGN, is not inherited.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.run(args.argv, stdout=stdout, check=False).returncode
    except FileNotFoundError:
        print(f"edge power: there is no command {args.argv[0]!r}", file=sys.stderr)
        return NOT_FOUND
    except OSError as error:
        print(f"edge power: {args.argv[0]!r} cannot run ({error.strerror})", file=sys.stderr)
        return NOT_EXECUTABLE
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else SIGNALLED - code


def _wait(seconds: float | None) -> int:
    """Let time pass: `seconds`, or until Ctrl-C."""
    end_s = math.inf if seconds is None else time.monotonic() + seconds
    try:
        while (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(left_s, DAY_S))
    except KeyboardInterrupt:
        return 0 if seconds is None else INTERRUPTED
    return 0


def _measured(meter: Meter, samples: Sequence[Sample], begin_ns: int, end_ns: int) -> Measurement:
    energy = integrate(samples, begin_ns, max(end_ns, begin_ns + 1))
    flags = (*meter.flags, *_window_flags(energy))
    return Measurement(meter.source, meter.boundary, (end_ns - begin_ns) / 1e9, energy, flags)


def _window_flags(energy: Energy) -> list[str]:
    """Doubts that belong to the window rather than to the meter."""
    flags = []
    if energy.coverage < 0.99:
        flags.append(
            f"samples cover {energy.coverage:.0%} of the time; the joules are of that part"
        )
    if energy.thermal_worst not in (None, NOMINAL):
        flags.append(f"thermal pressure reached {energy.thermal_worst}: the machine slows itself")
    if energy.edge_error_j > 0.05 * energy.total_j:
        flags.append(
            f"the edges may hold {energy.edge_error_j:.2g} J that belong elsewhere: measure longer"
        )
    return flags


def _document(measured: Measurement) -> dict[str, Any]:
    energy = measured.energy
    joules = {**energy.joules, "total": energy.total_j if energy.is_total else None}
    covered_s = measured.duration_s * energy.coverage
    known = bool(energy.records and energy.joules) and covered_s > 0
    return {
        "source": measured.source,
        "boundary": measured.boundary,
        "duration_s": measured.duration_s,
        "energy_j": joules if known else None,
        "beside_j": dict(energy.beside),
        "edge_error_j": energy.edge_error_j if known else None,
        "mean_power_w": energy.total_j / covered_s if known and energy.is_total else None,
        "records": energy.records,
        "coverage": energy.coverage,
        "thermal_worst": energy.thermal_worst,
        "flags": list(measured.flags),
    }


def _print(measured: Measurement, output: str, to_stderr: bool) -> None:
    document = _document(measured)
    if output == "json":
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    print("\n".join(_lines(document)), file=sys.stderr if to_stderr else sys.stdout)


def _lines(document: dict[str, Any]) -> list[str]:
    """The figures for people, one below the other."""
    energy = document["energy_j"] or {}
    rails = [(rail, j) for rail, j in energy.items() if j is not None]
    beside = [(f"({rail})", j) for rail, j in document["beside_j"].items()]
    width = max([len(rail) for rail, _ in rails + beside] + [8])
    lines = [f"{rail:<{width}}  {joules:12.3f} J" for rail, joules in rails + beside]
    if document["mean_power_w"] is not None:
        lines.append(f"{'mean':<{width}}  {document['mean_power_w']:12.3f} W")
        lines.append(f"{'edges':<{width}} ±{document['edge_error_j']:12.3f} J")
    lines.append(f"{'time':<{width}}  {document['duration_s']:12.3f} s")
    lines.append(f"{document['source']}: {document['boundary']}")
    lines.append(f"{document['records']} records cover {document['coverage']:.1%} of the time")
    lines.append(f"thermal pressure: {document['thermal_worst'] or 'not known'}")
    return [printable(line) for line in [*lines, *(f"warning: {f}" for f in document["flags"])]]
