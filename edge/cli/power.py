"""Measure the energy of a command, of a time span, or of a recorded log."""

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from edge.device.state import NOMINAL
from edge.errors import EdgeError, printable
from edge.power.choose import choose_meter, why_not
from edge.power.meter import Energy, Meter, integrate
from edge.power.powermetrics_records import read_log

DAY_S = 86400.0
# Exit codes of shells.
NOT_EXECUTABLE, NOT_FOUND, SIGNALLED, INTERRUPTED = 126, 127, 128, 130


def run(args: argparse.Namespace) -> int:
    """Exit code of COMMAND; 130 if --seconds was interrupted; 1 if the meter failed; else 0."""
    if args.replay is not None:
        log = read_log(args.replay)
        energy = integrate(log.samples, log.begin_ns, log.end_ns)
        source, duration_ns = f"replay:{args.replay.name}", log.end_ns - log.begin_ns
        _print(args, _document(source, log.boundary, energy, duration_ns, log.flags))
        return 0
    meter = choose_meter(args.source)
    _refuse_unavailable(args, meter)
    meter.start()
    begin_ns = end_ns = time.monotonic_ns()
    try:
        _refuse_unavailable(args, meter)
        begin_ns = time.monotonic_ns()
        code = _run_command(args) if args.argv else _wait(args.seconds)
    finally:
        end_ns = time.monotonic_ns()
        samples = meter.stop()
    energy = integrate(samples, begin_ns, max(end_ns, begin_ns + 1))
    _print(args, _document(meter.source, meter.boundary, energy, end_ns - begin_ns, meter.flags))
    return code if args.argv or meter.unavailable is None else 1


def _refuse_unavailable(args: argparse.Namespace, meter: Meter) -> None:
    if args.source == "none":
        raise EdgeError("--source none measures nothing; leave it out or name a meter.")
    if reason := why_not(meter, args.source):
        undone = f"{args.argv[0]} was not run" if args.argv else "nothing was measured"
        raise EdgeError(f"{undone}: {reason}.")


def _run_command(args: argparse.Namespace) -> int:
    """Run COMMAND to its end. Ctrl-C goes to COMMAND only, so the energy is still printed."""
    stdout = sys.stderr if args.output == "json" else None
    # A handler, unlike SIG_IGN, is not inherited.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.run(args.argv, stdout=stdout, check=False).returncode
    except FileNotFoundError:
        print(f"edge power: {args.argv[0]!r} was not found", file=sys.stderr)
        return NOT_FOUND
    except OSError as error:
        print(f"edge power: {args.argv[0]!r} cannot run ({error.strerror})", file=sys.stderr)
        return NOT_EXECUTABLE
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else SIGNALLED - code


def _wait(seconds: float | None) -> int:
    """Wait for `seconds`, or until Ctrl-C."""
    end_s = math.inf if seconds is None else time.monotonic() + seconds
    try:
        while (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(left_s, DAY_S))
    except KeyboardInterrupt:
        return 0 if seconds is None else INTERRUPTED
    return 0


def _document(
    source: str, boundary: str, energy: Energy, duration_ns: int, flags: Sequence[str]
) -> dict[str, Any]:
    joules = {**energy.joules, "total": energy.total_j if energy.is_total else None}
    covered_s = duration_ns / 1e9 * energy.coverage
    known = bool(energy.records and energy.joules) and covered_s > 0
    return {
        "source": source,
        "boundary": boundary,
        "duration_s": duration_ns / 1e9,
        "energy_j": joules if known else None,
        "beside_j": dict(energy.beside),
        "edge_error_j": energy.edge_error_j if known else None,
        "power_w": energy.total_j / covered_s if known and energy.is_total else None,
        "records": energy.records,
        "coverage": energy.coverage,
        "thermal_worst": energy.thermal_worst,
        "warnings": [*flags, *_window_warnings(energy)],
    }


def _window_warnings(energy: Energy) -> Iterator[str]:
    if energy.coverage < 0.99:
        yield f"samples cover {energy.coverage:.0%} of the time; the energy is of that part only"
    if energy.thermal_worst not in (None, NOMINAL):
        yield f"thermal pressure reached {energy.thermal_worst}: the machine may be throttled"
    if energy.edge_error_j > 0.05 * energy.total_j:
        yield f"up to {energy.edge_error_j:.2g} J may be outside the window: measure longer"


def _print(args: argparse.Namespace, document: dict[str, Any]) -> None:
    """Print JSON, or text, which goes to stderr where stdout is COMMAND's."""
    if args.output == "json":
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    rails = [(rail, j) for rail, j in (document["energy_j"] or {}).items() if j is not None]
    rails += [(f"({rail})", j) for rail, j in document["beside_j"].items()]
    width = max([len(rail) for rail, _ in rails] + [8])
    lines = [f"{rail:<{width}}  {joules:12.3f} J" for rail, joules in rails]
    if document["power_w"] is not None:
        lines.append(f"{'mean':<{width}}  {document['power_w']:12.3f} W")
        lines.append(f"{'edges':<{width}} ±{document['edge_error_j']:12.3f} J")
    lines.append(f"{'time':<{width}}  {document['duration_s']:12.3f} s")
    lines.append(f"{document['source']}: {document['boundary']}")
    lines.append(f"{document['records']} samples cover {document['coverage']:.1%} of the time")
    lines.append(f"thermal pressure: {document['thermal_worst'] or 'unknown'}")
    lines += [f"warning: {sentence}" for sentence in document["warnings"]]
    print("\n".join(map(printable, lines)), file=sys.stderr if args.argv else sys.stdout)
