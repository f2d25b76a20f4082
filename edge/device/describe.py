"""The machine a profile was measured on, without anything that names its owner."""

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
from edge.device.system import Run, output_of, text_of
from edge.errors import EdgeError

TRADEMARKS = re.compile(r"\((R|TM|C)\)", re.IGNORECASE)
# M1 to M5 have two levels; Apple may add one.
LEVELS = range(3)
APPLE = "Apple "
# Profiles of others are read into these: sizes that can be calculated with.
Count = Annotated[int, msgspec.Meta(ge=0, le=10**15)]


@dataclass(frozen=True)
class Bandwidth:
    """Memory bandwidth: GB/s of 1e9 bytes, and where the figure comes from."""

    gb_s: Annotated[float, msgspec.Meta(ge=1e-9, le=1e15)]
    source: Annotated[str, msgspec.Meta(pattern="^(table|measured|driver|given)")]

    @property
    def bytes_s(self) -> float:
        """For calculations."""
        return self.gb_s * 1e9

    @property
    def kind(self) -> str:
        """First word of the source. A measured one can be too low: other programs use memory."""
        return re.split(r"\W", self.source)[0]


@dataclass(frozen=True)
class Device:
    """Chip, cores, memory and system. No host name, user name or serial number.

    `cores_by_level` counts physical cores by Apple's names, fastest first. `gpu_memory_bandwidth`
    is of a GPU with memory of its own. `remarks` say why something could not be found out. In
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


def describe_device(
    bandwidth_gb_s: float | None = None, measure: bool = True, run: Run = output_of
) -> Device:
    """This machine; a bandwidth that is given goes before the table's and a measured one."""
    name = chip_name(run)
    gpu_name, gpu_cores, gpu_bandwidth = _gpu(name, run)
    bandwidth, remark = _memory_bandwidth(name, gpu_cores, bandwidth_gb_s, measure)
    return Device(
        name=name,
        architecture=platform.machine(),
        physical_cores=psutil.cpu_count(logical=False) or 1,
        logical_cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        os=operating_system(run),
        hw_model=run(("sysctl", "-n", "hw.model")) or None if _is_mac() else None,
        cores_by_level=_cores_by_level(run) if _is_mac() else {},
        gpu_name=gpu_name,
        gpu_cores=gpu_cores,
        memory_bandwidth=bandwidth,
        gpu_memory_bandwidth=gpu_bandwidth,
        cache_bytes=APPLE_CACHE_BYTES if name.startswith(APPLE) else last_level_cache_bytes(),
        remarks=(remark,) if remark else (),
    )


def measured_again(device: Device) -> Device:
    """The better of two measurements of the bandwidth: other programs can only lower it."""
    known = device.memory_bandwidth
    if known is None or known.kind != "measured":
        return device
    new = _measured()
    return device if new.gb_s <= known.gb_s else replace(device, memory_bandwidth=new)


def usable_cores() -> int:
    """Physical cores that this process may run on: a container or taskset can allow fewer."""
    physical = psutil.cpu_count(logical=False) or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return min(physical, len(os.sched_getaffinity(0)))
    return physical


def chip_name(run: Run = output_of) -> str:
    """The processor's marketing name, such as "Apple M2 Max"."""
    if _is_mac():
        raw = run(("sysctl", "-n", "machdep.cpu.brand_string"))
    else:
        cpuinfo = text_of(Path("/proc/cpuinfo")) or ""
        raw = _first(r"(?m)^model name\s*:\s*(.+)$", cpuinfo) or ""
    return " ".join(TRADEMARKS.sub("", raw or platform.processor() or "unknown CPU").split())


def operating_system(run: Run = output_of) -> str:
    """Name and version, such as "macOS 27.0 (26A428)" or "Linux 6.1.0"."""
    if _is_mac():
        # Not platform.mac_ver(), which is 16.0 on macOS 26 for a Python built with an older SDK.
        version = run(("sw_vers", "-productVersion"))
        return f"macOS {version} ({run(('sysctl', '-n', 'kern.osversion'))})"
    return f"{platform.system()} {platform.release().split('-')[0]}"


def _is_mac() -> bool:
    return sys.platform == "darwin"


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def _cores_by_level(run: Run) -> dict[str, int]:
    """Physical cores per level."""
    names = [f"hw.perflevel{n}.{key}" for n in LEVELS for key in ("name", "physicalcpu")]
    answers = dict(re.findall(r"^(\S+): (.+)$", run(("sysctl", *names)), re.MULTILINE))
    return {
        answers.get(f"hw.perflevel{n}.name", f"level {n}"): int(count)
        for n in LEVELS
        if (count := answers.get(f"hw.perflevel{n}.physicalcpu", "")).isdigit()
    }


def _gpu(chip: str, run: Run) -> tuple[str | None, int | None, Bandwidth | None]:
    """Name, cores and, for memory of its own, bandwidth of the GPU."""
    if chip.startswith(APPLE):
        entry = run(("ioreg", "-rc", "AGXAccelerator"))
        cores = _first(r'"gpu-core-count"\s*=\s*(\d+)', entry) or _first(
            r"Total Number of Cores:\s*(\d+)", run(("system_profiler", "SPDisplaysDataType"))
        )
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
    chip: str, gpu_cores: int | None, given_gb_s: float | None, measure: bool
) -> tuple[Bandwidth | None, str | None]:
    """The bandwidth, and a sentence where it is not known or doubtful."""
    if given_gb_s is not None:
        return Bandwidth(given_gb_s, "given"), None
    if chip.startswith(APPLE):
        # Not measured: a CPU cannot use all the bandwidth that its GPU can.
        known, remark = find_chip(chip, gpu_cores)
        source = f"table, {known.sources['bandwidth_gb_s']}" if known else ""
        return Bandwidth(known.bandwidth_gb_s, source) if known else None, remark
    if not measure:
        return None, f"the memory bandwidth was not measured: {OVERRIDE}"
    load = os.getloadavg()[0]
    busy = f"the memory bandwidth was measured beside other programs (load {load:.1f})"
    remark = f"{busy} and may be too low: close them, or {OVERRIDE}"
    return _measured(), None if load <= allowed_load() else remark


def _measured() -> Bandwidth:
    from edge.device.bandwidth import measure_bandwidth  # here: it imports numpy, reports need none

    measured = measure_bandwidth(usable_cores())
    fastest_bytes_s = max(measured.read_bytes_s, measured.triad_bytes_s)
    return Bandwidth(round(fastest_bytes_s / 1e9, 1), str(measured))
