"""Say what can be measured on this machine, and what to type where something is missing."""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import psutil

from edge.device.describe import Device, describe_device
from edge.device.software import mlx_metal_tag
from edge.device.state import State, read_state, warnings_between
from edge.install import install_command
from edge.linux_cpu import blas, problems
from edge.power.choose import BEST_FIRST, choose_meter
from edge.power.powermetrics import HOW_TO_ALLOW, SUDOERS

# Package -> module whose import proves that it works.
ENGINES = {"mlx": "mlx.core", "mlx-lm": "mlx_lm", "llama-cpp-python": "llama_cpp"}
# One of these is enough for a measurement.
ENOUGH = ("mlx", "llama-cpp-python")
# Stable Code 3B, 2.8e9 weights: the download and the five artefacts of Table 11; the largest.
TABLE_11_DISK_BYTES, TABLE_11_MEMORY_BYTES = 23e9, 7e9
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Power:
    """One power source. `reason` says why it is not available."""

    source: str
    boundary: str | None
    reason: str | None


@dataclass(frozen=True)
class Engine:
    """One package that runs artefacts. `problem` says why it does not, `note` how it does."""

    name: str
    version: str | None
    problem: str | None
    note: str | None = None


@dataclass(frozen=True)
class Findings:
    """Everything the doctor looked at. `missing` are sentences that say what to do."""

    device: Device
    state: State
    power: list[Power]
    engines: list[Engine]
    disk_free_bytes: int
    memory_available_bytes: int
    missing: list[str]

    @property
    def can_measure(self) -> bool:
        """Whether some engine works: speed needs no power source."""
        return any(e.problem is None for e in self.engines if e.name in ENOUGH)


def run(args: argparse.Namespace) -> int:
    """Look, print; 0 when a measurement is possible."""
    findings = examine(args.bandwidth_gb_s)
    if args.output == "json":
        print(json.dumps({**asdict(findings), "can_measure": findings.can_measure}, indent=1))
    else:
        width = min(shutil.get_terminal_size().columns, 100)
        print("\n".join(line for text in _report(findings) for line in _wrapped(text, width)))
    return 0 if findings.can_measure else 1


def examine(bandwidth_gb_s: float | None = None) -> Findings:
    """Look at everything."""
    state = read_state()  # before this program itself makes the machine busy
    device = describe_device(bandwidth_gb_s)
    power, engines = power_sources(), [_engine(name) for name in ENGINES]
    disk_free_bytes = shutil.disk_usage(Path.cwd()).free
    memory_available_bytes = psutil.virtual_memory().available
    return Findings(
        device=device,
        state=state,
        power=power,
        engines=engines,
        disk_free_bytes=disk_free_bytes,
        memory_available_bytes=memory_available_bytes,
        missing=[
            *_missing_engines(engines),
            *_missing_power(power),
            *_wrong_wheel(device),
            *device.remarks,
            *_doubts(state),
            *_missing_room(disk_free_bytes, memory_available_bytes),
        ],
    )


def power_sources() -> list[Power]:
    """Every meter by name, and why it does not work here."""
    meters = [choose_meter(source) for source in BEST_FIRST.get(sys.platform, ())]
    return [Power(m.source, m.boundary, _sentence(m.unavailable)) for m in meters]


def _sentence(text: str | None) -> str | None:
    return None if text is None else text.rstrip(".")


def _engine(package: str) -> Engine:
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Engine(package, None, f"not installed: type {install_command(package)}")
    try:
        import_module(ENGINES[package])
    except Exception as error:  # a broken binary fails in its own ways
        return Engine(package, version, f"does not load ({error}): install it again")
    return Engine(package, version, None, _blas() if package == "mlx" else None)


def _blas() -> str | None:
    import mlx.core as mx  # here: on a broken installation it fails, and the doctor says so

    if mx.default_device().type == mx.DeviceType.gpu:
        return None
    return f"multiplies with {blas()}"


def _missing_engines(engines: list[Engine]) -> list[str]:
    return [*(f"{e.name}: {e.problem}" for e in engines if e.problem), *problems()]


def _wrong_wheel(device: Device) -> list[str]:
    """M5 and later have matrix kernels that only one of MLX's two wheels brings."""
    tag, generation = mlx_metal_tag(), re.match(r"Apple M(\d+)", device.name)
    if tag is None or generation is None or int(generation[1]) < 5 or "macosx_26" in tag:
        return []
    command = install_command("--force-reinstall mlx-metal")
    return [
        f"mlx: the wheel for {tag} lacks the matrix kernels of {device.name}: on macOS 26 or newer "
        f"type {command}"
    ]


def _missing_power(power: list[Power]) -> list[str]:
    if any(source.reason is None for source in power):
        return []
    return ["watts and joules: no power source works here, see above for what each one needs"]


def _doubts(state: State) -> list[str]:
    return list(warnings_between(state, state).values())


def _missing_room(disk_bytes: float, memory_bytes: float) -> list[str]:
    rooms = (
        ("disk space", disk_bytes, TABLE_11_DISK_BYTES),
        ("free memory", memory_bytes, TABLE_11_MEMORY_BYTES),
    )
    return [
        f"{name}: {have / 1e9:.1f} GB, and Table 11 of Stable Code 3B needs {need / 1e9:.0f} GB; "
        f"make room or measure fewer artefacts"
        for name, have, need in rooms
        if have < need
    ]


def _report(findings: Findings) -> Iterator[str]:
    """Paragraphs; an indent is kept by every line that a long one is broken into."""
    yield from ("Device", *_device(findings.device))
    yield from ("", "State", *_state(findings.state))
    yield from ("", "Power sources")
    for power in findings.power:
        yield _item(power.source, power.reason, power.boundary or "")
    if platform.system() == "Darwin":
        yield from _sudoers(findings.power)
    yield from ("", "Engines")
    for engine in findings.engines:
        how = f", {engine.note}" if engine.note else ""
        yield _item(engine.name, engine.problem, f"{engine.version}{how}")
    yield from ("", "Room", _pair("disk", f"{findings.disk_free_bytes / 1e9:.1f} GB free here"))
    yield _pair("memory", f"{findings.memory_available_bytes / 1e9:.1f} GB available")
    yield from ("", "Missing for a trustworthy run" if findings.missing else "Nothing is missing")
    yield from (f"  - {sentence}" for sentence in findings.missing)
    yield from ("", _verdict(findings))


def _sudoers(power: list[Power]) -> Iterator[str]:
    """What lets powermetrics run, unless its reason says so already."""
    reasons = [p.reason for p in power if p.source.startswith("powermetrics") and p.reason]
    if any(SUDOERS not in reason for reason in reasons):
        yield _pair("powermetrics", HOW_TO_ALLOW)


def _verdict(findings: Findings) -> str:
    if not findings.can_measure:
        return "Nothing can be measured here: no engine works."
    with_power = [power.source for power in findings.power if power.reason is None]
    if with_power:
        return f"Speed, memory and power can be measured here (power through {with_power[0]})."
    return "Speed and memory can be measured here, power cannot."


def _device(device: Device) -> Iterator[str]:
    levels = ", ".join(f"{n} {name}" for name, n in device.cores_by_level.items())
    cores = f"{device.physical_cores} cores" + (f" ({levels})" if levels else "")
    model = f", {device.hw_model}" if device.hw_model else ""
    yield _pair("chip", f"{device.name}{model}, {cores}, {device.architecture}")
    yield _pair("memory", f"{device.memory_bytes / 1e9:.1f} GB")
    speed = device.memory_bandwidth
    yield _pair("bandwidth", f"{speed.gb_s:g} GB/s ({speed.source})" if speed else UNKNOWN)
    if device.gpu_name:
        gpu_cores = f", {device.gpu_cores} cores" if device.gpu_cores else ""
        gpu_speed = device.gpu_memory_bandwidth
        own = f", {gpu_speed.gb_s:g} GB/s ({gpu_speed.source})" if gpu_speed else ""
        yield _pair("GPU", f"{device.gpu_name}{gpu_cores}{own}")
    yield _pair("system", device.os)


def _state(state: State) -> Iterator[str]:
    charge = f", battery at {state.battery_percent} %" if state.battery_percent is not None else ""
    yield _pair("power", f"{state.power_source or UNKNOWN}{charge}")
    modes = {True: "on", False: "off", None: UNKNOWN}
    yield _pair("low power", modes[state.low_power])
    heat = state.thermal
    if state.throttled is not None:
        heat = f"throttled {state.throttled} times since the machine started"
    yield _pair("heat", heat or UNKNOWN)
    yield _pair("load", UNKNOWN if state.load_1m is None else f"{state.load_1m:.2f}")
    yield _pair("memory", f"pressure {state.memory_pressure or UNKNOWN}")
    clock = f"{state.cpu_mhz:.0f} MHz" if state.cpu_mhz else UNKNOWN
    yield _pair("CPU clock", f"{clock}, governor {state.governor}" if state.governor else clock)


def _item(name: str, problem: str | None, good: str) -> str:
    return f"  {'✗' if problem else '✓'} {name:17}{problem or good}"


def _pair(name: str, value: Any) -> str:
    return f"    {name:17}{value}"


def _wrapped(text: str, width: int) -> list[str]:
    """Break a long line; what follows stays in the column of the value or of the bullet."""
    column = 4 if text.startswith("  - ") else 21
    return textwrap.wrap(
        text, width, subsequent_indent=" " * column, break_long_words=False, break_on_hyphens=False
    ) or [""]
