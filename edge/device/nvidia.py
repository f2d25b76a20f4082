"""NVIDIA GPUs through nvidia-ml-py, the optional extra `nvidia`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from edge.errors import EdgeError
from edge.install import install_command

PACKAGE = "nvidia-ml-py"


@dataclass(frozen=True)
class Gpu:
    """One board. `handle` is NVML's; `uuid` tells equal boards apart and stays out of profiles."""

    handle: Any
    name: str
    uuid: str


def load_nvml() -> ModuleType:
    """The initialised module; an EdgeError where it is not installed or there is no driver."""
    try:
        pynvml = import_module("pynvml")
    except ImportError:
        raise EdgeError(f"{PACKAGE} is not installed: type {install_command(PACKAGE)}.") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise EdgeError(f"no NVIDIA driver answers ({error}); try nvidia-smi.") from None
    return pynvml


def visible_gpus(nvml: Any, environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, all of them where it is not set.

    As CUDA reads it: numbers or UUIDs, which may be cut short, up to the first entry that is
    neither. NVML counts in PCI order, CUDA by speed unless told otherwise: an EdgeError where a
    number can mean two boards, or a MIG slice is named.
    """
    handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
    gpus = [Gpu(h, str(nvml.nvmlDeviceGetName(h)), str(nvml.nvmlDeviceGetUUID(h))) for h in handles]
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus
    pci_order = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    visible: list[Gpu] = []
    for entry in map(str.strip, chosen.split(",")):
        gpu = _find(entry, gpus, pci_order)
        if gpu is None or gpu in visible:
            break
        visible.append(gpu)
    return visible


def memory_bytes_s(nvml: Any, gpu: Gpu) -> float | None:
    """Memory bandwidth: bus width x the highest memory clock x 2, for two transfers per clock.

    As published: A100 5120 bit x 1215 MHz = 1555 GB/s. None with unified memory.
    """
    try:
        bits = nvml.nvmlDeviceGetMemoryBusWidth(gpu.handle)
        clock_mhz = nvml.nvmlDeviceGetMaxClockInfo(gpu.handle, nvml.NVML_CLOCK_MEM)
    except nvml.NVMLError:
        return None
    return float(bits / 8 * clock_mhz * 1e6 * 2) or None


def _find(entry: str, gpus: list[Gpu], pci_order: bool) -> Gpu | None:
    if entry.startswith("MIG"):
        raise EdgeError(
            "CUDA_VISIBLE_DEVICES names a MIG slice, and NVML counts whole boards; choose a GPU."
        )
    if entry.startswith("GPU-"):
        matching = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
        return matching[0] if len(matching) == 1 else None
    if not entry.isascii() or not entry.isdigit() or int(entry) >= len(gpus):
        return None
    if not pci_order and len({gpu.name for gpu in gpus}) > 1:
        raise EdgeError(
            f"CUDA_VISIBLE_DEVICES={entry} can mean another GPU to CUDA than to NVML; set "
            f"CUDA_DEVICE_ORDER=PCI_BUS_ID too, or name the GPU by its UUID."
        )
    return gpus[int(entry)]
