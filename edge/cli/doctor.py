"""Check what can be measured on this machine and what is missing."""

import argparse
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import ModuleType

import psutil

from edge.device.describe import Bandwidth, Device, describe_device
from edge.device.software import LLAMA_CPP_LIB_PATH, llama_cpp_library, mlx_metal_tag
from edge.device.state import State, read_state, warnings_between
from edge.errors import install_command
from edge.linux_cpu import blas, problems
from edge.power.choose import BEST_FIRST, choose_meter
from edge.power.load import load_on
from edge.power.powermetrics import HOW_TO_ALLOW, SUDOERS
from edge.power.selftest import PHASE_S, TOTAL, MeterTest, self_test
from edge.text import figure, size

# Package -> module. Those in ENOUGH have native code and are imported as a test of it; each is
# enough for a measurement. mlx-lm is Python and takes seconds to import.
ENGINES = {"mlx": "mlx.core", "mlx-lm": "mlx_lm", "llama-cpp-python": "llama_cpp"}
ENOUGH = ("mlx", "llama-cpp-python")
HOMEBREW_LIB = Path("/opt/homebrew/lib")
# Stable Code 3B: the download and the five artefacts of Table 11; running the largest of them.
TABLE_11_DISK_BYTES, TABLE_11_MEMORY_BYTES = 23e9, 7e9
# Minutes are estimates for an M2 Pro and 100 Mbit/s; see docs/mac.md.
TABLE_11_STEPS = (
    "edge convert stabilityai/stable-code-3b   (about 13 min: 5.6 GB to download)",
    "sudo -v && edge bench stabilityai/stable-code-3b --suite table11 --quality   (about 20 min)",
    "edge report --check profiles/local   (seconds)",
    "publish the new file in profiles/local, as profiles/README.md says",
)


@dataclass(frozen=True)
class Power:
    """A power source; `reason` says why it is not available."""

    source: str
    boundary: str
    reason: str | None


@dataclass(frozen=True)
class Engine:
    """A package that runs artefacts; `problem` says why it does not work."""

    name: str
    version: str | None
    problem: str | None
    note: str | None = None


@dataclass(frozen=True)
class Findings:
    """This machine's state; `missing` says what to do before a measurement."""

    device: Device
    state: State
    power: list[Power]
    engines: list[Engine]
    disk_free_bytes: int
    memory_available_bytes: int
    missing: list[str]

    @property
    def can_measure(self) -> bool:
        """True if an engine works; measuring speed needs no power source."""
        return any(e.problem is None for e in self.engines if e.name in ENOUGH)


def run(args: argparse.Namespace) -> int:
    findings = examine(args.bandwidth_gb_s)
    tests = run_meter_tests(findings) if args.meter else None
    if args.output == "json":
        document = {**asdict(findings), "can_measure": findings.can_measure}
        if tests is not None:
            document["meter_tests"] = [{**asdict(test), "moves": test.moves} for test in tests]
        print(json.dumps(document, indent=1))
    else:
        wrapper = textwrap.TextWrapper(
            min(shutil.get_terminal_size().columns, 100),
            break_long_words=False,
            break_on_hyphens=False,
        )
        # The rest of a line is indented to its value or sentence.
        for text in chain(_report(findings), _meter_lines(tests)):
            wrapper.subsequent_indent = " " * (4 if text.startswith("  - ") else 25)
            print(wrapper.fill(text))
    if tests is not None and not (tests and all(test.moves for test in tests)):
        return 1
    return 0 if findings.can_measure else 1


def run_meter_tests(findings: Findings) -> list[MeterTest]:
    """The self-test of every meter that works here, on the processors that can be loaded."""
    # MLX has a note where it computes on the CPU.
    on_gpu = any(e.name == "mlx" and not (e.problem or e.note) for e in findings.engines)
    loaded = {"CPU", "GPU"} if on_gpu else {"CPU"}
    tests = []
    for power in findings.power:
        covered = BEST_FIRST[sys.platform][power.source]
        if power.reason is None and (rails := sorted(covered & loaded)):
            print(f"testing {power.source} for {3 * PHASE_S:.0f} s", file=sys.stderr)
            # A meter of one processor names its rails by its packages or boards.
            named = rails if len(covered) > 1 else [TOTAL]
            tests.append(self_test(choose_meter(power.source), named, partial(load_on, rails)))
    return tests


def _meter_lines(tests: list[MeterTest] | None) -> Iterator[str]:
    if tests is None:
        return
    yield from ("", "Meters under load")
    for test in tests:
        for rail in test.rails:
            watts = (rail.idle_w, rail.load_w, rail.rest_w)
            shown = "{} W idle, {} W under load, {} W after it".format(*map(figure, watts))
            advice = f"{rail.problem}, so its energy is INVALID: {shown}"
            yield _item(f"{test.source} {rail.rail}", rail.problem and advice, shown)
        yield from (f"  - {flag}" for flag in test.flags)
    if not tests:
        yield "  - no meter that works here covers a processor that can be loaded"


def examine(bandwidth_gb_s: float | None = None) -> Findings:
    state = read_state()  # before this program loads the machine
    device = describe_device(bandwidth_gb_s)
    meters = [choose_meter(source) for source in BEST_FIRST.get(sys.platform, ())]
    power = [Power(m.source, m.boundary, m.unavailable) for m in meters]
    engines = [_engine(name) for name in ENGINES]
    rooms = shutil.disk_usage(Path.cwd()).free, psutil.virtual_memory().available
    missing = [f"{engine.name}: {engine.problem}" for engine in engines if engine.problem]
    missing += [*problems(), *_wrong_wheel(device), *device.remarks]
    if all(source.reason for source in power):
        missing.append("power: no source works here; the reasons are listed above")
    missing += warnings_between(state, state).values()
    for name, have_bytes, need_bytes in (
        ("disk space", rooms[0], TABLE_11_DISK_BYTES),
        ("free memory", rooms[1], TABLE_11_MEMORY_BYTES),
    ):
        if have_bytes < need_bytes:
            need = f"Table 11 of Stable Code 3B needs {size(need_bytes)}"
            missing.append(f"{name}: {size(have_bytes)}; {need}")
    return Findings(device, state, power, engines, *rooms, missing)


def _engine(package: str) -> Engine:
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Engine(package, None, f"not installed; run {install_command(package)}")
    try:
        if package in ENOUGH:
            return Engine(package, version, None, _note(package, import_module(ENGINES[package])))
        problem = None if find_spec(ENGINES[package]) else "its files are missing; install it again"
        return Engine(package, version, problem)
    except Exception as error:  # a broken binary can raise anything
        return Engine(package, version, f"cannot be imported ({error}); {_remedy(package)}")


def _note(package: str, module: ModuleType) -> str | None:
    """The BLAS of MLX on a CPU, or the library of llama.cpp, if it is not the package's own."""
    if package == "mlx":
        return f"with {blas()}" if module.default_device().type != module.DeviceType.gpu else None
    if library := llama_cpp_library():
        return f"with {library} in {os.environ[LLAMA_CPP_LIB_PATH]}"
    if (HOMEBREW_LIB / "libllama.dylib").exists():
        return f"or Homebrew's, with export {LLAMA_CPP_LIB_PATH}={HOMEBREW_LIB}"
    return None


def _remedy(package: str) -> str:
    if package == "llama-cpp-python" and LLAMA_CPP_LIB_PATH in os.environ:
        return f"type unset {LLAMA_CPP_LIB_PATH}"
    return "install it again"


def _wrong_wheel(device: Device) -> Iterator[str]:
    """Only one of MLX's two wheels has the matrix kernels of M5 and later."""
    tag, generation = mlx_metal_tag(), re.match(r"Apple M(\d+)", device.name)
    if tag and generation and int(generation[1]) >= 5 and "macosx_26" not in tag:
        command = install_command("--force-reinstall mlx-metal")
        lacks = f"the wheel for {tag} lacks the matrix kernels of {device.name}"
        yield f"mlx: {lacks}; on macOS 26 or newer run {command}"


def _report(findings: Findings) -> Iterator[str]:
    yield from ("Device", *_fields(findings.device))
    yield from ("", "State", *_fields(findings.state))
    yield from ("", "Power sources")
    yield from (_item(power.source, power.reason, power.boundary) for power in findings.power)
    reasons = [p.reason for p in findings.power if p.source.startswith("powermetrics") and p.reason]
    if any(SUDOERS not in reason for reason in reasons):
        yield _pair("powermetrics", HOW_TO_ALLOW)
    yield from ("", "Engines")
    for engine in findings.engines:
        how = f", {engine.note}" if engine.note else ""
        yield _item(engine.name, engine.problem, f"{engine.version}{how}")
    yield from ("", "Free space", _pair("disk", size(findings.disk_free_bytes)))
    yield _pair("memory", size(findings.memory_available_bytes))
    yield from ("", "Missing for a reliable run" if findings.missing else "Nothing is missing")
    yield from (f"  - {sentence}" for sentence in findings.missing)
    yield ""
    works = [power.source for power in findings.power if power.reason is None]
    if not findings.can_measure:
        yield "Nothing can be measured here: no engine works."
    elif works:
        yield f"Speed, memory and power can be measured here (power with {works[0]})."
    else:
        yield "Speed and memory can be measured here, power cannot."
    if findings.device.os.startswith("macOS") and findings.can_measure:
        yield from ("", "To measure Table 11 on this Mac, on mains power and with all else closed")
        yield from (f"  - {step}" for step in TABLE_11_STEPS)


def _fields(found: Device | State) -> Iterator[str]:
    """Known fields by name, without remarks, which are in `missing`."""
    for name, value in vars(found).items():
        if name != "remarks" and value is not None and value != {}:
            yield _pair(name.removesuffix("_bytes").replace("_", " "), _text(name, value))


def _text(name: str, value: object) -> str:
    if isinstance(value, Bandwidth):
        return f"{value.gb_s:g} GB/s ({value.source})"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return ", ".join(f"{count} {level}" for level, count in value.items())
    if name.endswith("_bytes") and isinstance(value, int):
        return size(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _item(name: str, problem: str | None, good: str) -> str:
    return f"  {'✗' if problem else '✓'} {name:21}{problem or good}"


def _pair(name: str, value: str) -> str:
    return f"    {name:21}{value}"
