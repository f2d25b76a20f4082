"""The machine that a profile was measured on, without anything that identifies its owner."""

import os
import platform
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import msgspec
import psutil

from edge.device.chips import APPLE_CACHE_BYTES, OVERRIDE, find_chip, last_level_cache_bytes
from edge.device.nvidia import load_nvml, memory_bytes_s, visible_gpus
from edge.device.state import allowed_load
from edge.device.system import output_of, text_of
from edge.errors import EdgeError

TRADEMARKS = re.compile(r"\((R|TM|C)\)", re.IGNORECASE)
# M1 to M5 have two levels; Apple may add one.
LEVELS = range(3)
APPLE = "Apple "
# Bounds for values read from the profiles of others.
Count = Annotated[int, msgspec.Meta(ge=0, le=10**15)]


@dataclass(frozen=True)
class Bandwidth:
    """Memory bandwidth in GB/s of 1e9 bytes, and its source."""

    gb_s: Annotated[float, msgspec.Meta(ge=1e-9, le=1e15)]
    source: Annotated[str, msgspec.Meta(pattern="^(table|measured|driver|given)")]

    @property
    def kind(self) -> str:
        """First word of the source. A measured bandwidth can be too low on a busy machine."""
        return re.split(r"\W", self.source)[0]


@dataclass(frozen=True)
class Device:
    """Chip, cores, memory and system. No host name, user name or serial number.

    `cores_by_level` counts physical cores by Apple's names, fastest first. `gpu_memory_bandwidth`
    is of a GPU with its own memory. `remarks` are reasons why a value is unknown or doubtful. In
    profiles of older versions 0 and "" mean not recorded.
    """

    name: str
    architecture: str = ""
    physical_cores: Count = 0
    logical_cores: Count = 0
    memory_bytes: Count = 0
    os: str = ""
    hw_model: str | None = None
    cores_by_level: dict[str, Count] = field(default_factory=dict)
    gpu_name: str | None = None
    gpu_cores: Count | None = None
    memory_bandwidth: Bandwidth | None = None
    gpu_memory_bandwidth: Bandwidth | None = None
    cache_bytes: Count | None = None
    remarks: tuple[str, ...] = ()


def describe_device(bandwidth_gb_s: float | None = None) -> Device:
    """This machine; a given bandwidth takes precedence over the table's and a measured one."""
    name = _chip_name()
    gpu_name, gpu_cores, gpu_bandwidth = _gpu(name)
    memory_bytes = psutil.virtual_memory().total
    bandwidth, remark = _memory_bandwidth(name, gpu_cores, memory_bytes, bandwidth_gb_s)
    on_mac = sys.platform == "darwin"
    return Device(
        name=name,
        architecture=platform.machine(),
        physical_cores=psutil.cpu_count(logical=False) or 1,
        logical_cores=psutil.cpu_count() or 1,
        memory_bytes=memory_bytes,
        os=_operating_system(),
        hw_model=output_of(("sysctl", "-n", "hw.model")) or None if on_mac else None,
        cores_by_level=_cores_by_level() if on_mac else {},
        gpu_name=gpu_name,
        gpu_cores=gpu_cores,
        memory_bandwidth=bandwidth,
        gpu_memory_bandwidth=gpu_bandwidth,
        cache_bytes=APPLE_CACHE_BYTES if name.startswith(APPLE) else last_level_cache_bytes(),
        remarks=(remark,) if remark else (),
    )


def measured_again(device: Device) -> Device:
    """The device with the higher of two measured bandwidths: other programs only lower it."""
    known = device.memory_bandwidth
    if known is None or known.kind != "measured":
        return device
    try:
        new = _measured()
    except EdgeError:  # there is less free memory now
        return device
    return device if new.gb_s <= known.gb_s else replace(device, memory_bandwidth=new)


def usable_cores() -> int:
    """Physical cores that this process may use: a container or taskset can allow fewer."""
    physical = psutil.cpu_count(logical=False) or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return min(physical, len(os.sched_getaffinity(0)))
    return physical


def _chip_name() -> str:
    if sys.platform == "darwin":
        raw = output_of(("sysctl", "-n", "machdep.cpu.brand_string"))
    else:
        cpuinfo = text_of(Path("/proc/cpuinfo")) or ""
        raw = _first(r"(?m)^model name\s*:\s*(.+)$", cpuinfo) or ""
    return " ".join(TRADEMARKS.sub("", raw or platform.processor() or "unknown CPU").split())


def _operating_system() -> str:
    if sys.platform == "darwin":
        # Not platform.mac_ver(), which is 16.0 on macOS 26 for a Python built with an older SDK.
        version = output_of(("sw_vers", "-productVersion"))
        name = f"macOS {version} ({output_of(('sysctl', '-n', 'kern.osversion'))})"
    else:
        name = f"{platform.system()} {platform.release().split('-')[0]}"
    return name


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def _cores_by_level() -> dict[str, int]:
    names = [f"hw.perflevel{n}.{key}" for n in LEVELS for key in ("name", "physicalcpu")]
    answers = dict(re.findall(r"^(\S+): (.+)$", output_of(("sysctl", *names)), re.MULTILINE))
    return {
        answers.get(f"hw.perflevel{n}.name", f"level {n}"): int(count)
        for n in LEVELS
        if (count := answers.get(f"hw.perflevel{n}.physicalcpu", "")).isdigit()
    }


def _gpu(chip: str) -> tuple[str | None, int | None, Bandwidth | None]:
    """The GPU's name, cores and, if it has its own memory, bandwidth."""
    if chip.startswith(APPLE):
        entry = output_of(("ioreg", "-rc", "AGXAccelerator"))
        cores = _first(r'"gpu-core-count"\s*=\s*(\d+)', entry)
        if cores is None:
            report = output_of(("system_profiler", "SPDisplaysDataType"))
            cores = _first(r"Total Number of Cores:\s*(\d+)", report)
        return chip, int(cores) if cores else None, None
    try:
        nvml = load_nvml()
        gpus = visible_gpus(nvml)
    except EdgeError:
        gpus = []
    if not gpus:
        return None, None, None
    speed = memory_bytes_s(nvml, gpus[0])
    source = "driver: bus width x memory clock x 2"
    return gpus[0].name, None, Bandwidth(round(speed / 1e9, 1), source) if speed else None


def _memory_bandwidth(
    chip: str, gpu_cores: int | None, memory_bytes: int, given_gb_s: float | None
) -> tuple[Bandwidth | None, str | None]:
    """The bandwidth, and a reason where it is unknown or doubtful."""
    if given_gb_s is not None:
        return Bandwidth(given_gb_s, "given"), None
    if chip.startswith(APPLE):
        # Not measured: a CPU cannot use all the bandwidth that its GPU can.
        known, remark = find_chip(chip, gpu_cores, memory_bytes)
        source = f"table, {known.sources['bandwidth_gb_s']}" if known else ""
        return Bandwidth(known.bandwidth_gb_s, source) if known else None, remark
    load = os.getloadavg()[0]
    busy = f"the memory bandwidth was measured while other programs ran (load {load:.1f})"
    remark = f"{busy} and may be too low: close them, or {OVERRIDE}"
    try:
        return _measured(), None if load <= allowed_load() else remark
    except EdgeError as error:
        return None, str(error)


def _measured() -> Bandwidth:
    from edge.device.bandwidth import measure_bandwidth  # it imports numpy: not for reports

    bytes_s, how = measure_bandwidth(usable_cores())
    return Bandwidth(round(bytes_s / 1e9, 1), how)
