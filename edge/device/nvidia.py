"""NVIDIA GPUs, through nvidia-ml-py (the extra `nvidia`)."""

import ctypes
import os
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from edge.errors import EdgeError, install_command

PACKAGE = "nvidia-ml-py"


@dataclass(frozen=True)
class Gpu:
    """One board. `handle` is NVML's; `uuid` is never written to a profile."""

    handle: Any
    name: str
    uuid: str


def load_nvml() -> ModuleType:
    """The initialised module; raises an EdgeError without the package or a driver."""
    try:
        pynvml = import_module("pynvml")
    except ImportError:
        if not _has_driver():
            raise EdgeError("there is no NVIDIA driver here; choose another source.") from None
        raise EdgeError(f"{PACKAGE} is not installed: type {install_command(PACKAGE)}.") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise EdgeError(f"no NVIDIA driver answers ({error}); try nvidia-smi.") from None
    return pynvml


def _has_driver() -> bool:
    """True if the driver's library loads, which the package looks for by the same name."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def visible_gpus(nvml: Any) -> list[Gpu]:
    """The GPUs in CUDA_VISIBLE_DEVICES as CUDA reads it, or all where it is not set.

    NVML counts in PCI order, CUDA by default by speed: raises an EdgeError where a number is
    ambiguous or a MIG slice is named.
    """
    handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
    gpus = [Gpu(h, str(nvml.nvmlDeviceGetName(h)), str(nvml.nvmlDeviceGetUUID(h))) for h in handles]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus
    visible: list[Gpu] = []
    for entry in map(str.strip, chosen.split(",")):
        gpu = _find(entry, gpus)
        if gpu is None or gpu in visible:
            break
        visible.append(gpu)
    return visible


def memory_bytes_s(nvml: Any, gpu: Gpu) -> float | None:
    """Memory bandwidth in bytes/s: bus width x the highest memory clock x 2 transfers per clock.

    An A100's 5120 bit x 1215 MHz give the published 1555 GB/s. None with unified memory.
    """
    try:
        bits = nvml.nvmlDeviceGetMemoryBusWidth(gpu.handle)
        clock_mhz = nvml.nvmlDeviceGetMaxClockInfo(gpu.handle, nvml.NVML_CLOCK_MEM)
    except nvml.NVMLError:
        return None
    return float(bits / 8 * clock_mhz * 1e6 * 2) or None


def _find(entry: str, gpus: list[Gpu]) -> Gpu | None:
    if entry.startswith("MIG"):
        raise EdgeError(
            "CUDA_VISIBLE_DEVICES names a MIG slice, but NVML counts whole boards; choose a GPU."
        )
    if entry.startswith("GPU-"):
        matching = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
        return matching[0] if len(matching) == 1 else None
    if not entry.isascii() or not entry.isdigit() or int(entry) >= len(gpus):
        return None
    pci_order = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if not pci_order and len({gpu.name for gpu in gpus}) > 1:
        raise EdgeError(
            f"CUDA_VISIBLE_DEVICES={entry} can be another GPU in CUDA than in NVML; set "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID too, or name the GPU by its UUID."
        )
    return gpus[int(entry)]
