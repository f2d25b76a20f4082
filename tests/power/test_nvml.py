"""NVML against a fake of nvidia-ml-py."""

import pytest

from edge.device.nvidia import memory_bytes_s, visible_gpus
from edge.power import nvml as module
from edge.power.nvml import NvmlMeter
from tests.power.conftest import BEGIN_NS, measured, span_s, totals

A100, GTX = "NVIDIA A100-SXM4-40GB", "NVIDIA GeForce GTX 1080 Ti"


class NVMLError(Exception):
    pass


class Nvml:
    """The used part of pynvml, with its names, errors and units. Energy steps every 100 ms."""

    NVMLError = NVMLError
    NVML_DEVICE_MIG_ENABLE = 1
    NVML_CLOCK_MEM = 2

    def __init__(self, names, mig=0, counter=True, power=True):
        self.watts, self.millijoules = 300.0, 5_000_000
        self.nvmlDeviceGetCount = lambda: len(names)
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        self.nvmlDeviceGetName = lambda handle: names[handle]
        self.nvmlDeviceGetUUID = lambda handle: f"GPU-{handle}c4e2f1a-0000-1111-2222-333344445555"
        self.nvmlDeviceGetMigMode = lambda handle: given(names[handle] == A100, [mig, mig])
        self.nvmlDeviceGetTotalEnergyConsumption = lambda _: given(counter, self.millijoules)
        self.nvmlDeviceGetPowerUsage = lambda _: given(power, round(self.watts * 1000))
        self.nvmlDeviceGetMemoryBusWidth = lambda handle: 5120
        self.nvmlDeviceGetMaxClockInfo = lambda _, kind: {self.NVML_CLOCK_MEM: 1215}[kind]

    def tick(self, now_s):
        self.millijoules = 5_000_000 + round(self.watts * 1000 * (now_s * 10 // 1) / 10)


def given(is_supported, answer):
    if not is_supported:
        raise NVMLError("Not Supported")
    return answer


@pytest.fixture
def make(passing, monkeypatch):
    """make(nvml): the meter over it, for 10 s."""

    def make(nvml, visible=None, tick=None, period_s=0.25):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(module, "load_nvml", lambda: nvml)
        passing(tick or nvml.tick, 10.0, period_s)
        return NvmlMeter()

    return make


def test_the_energy_counter_is_measured(make):
    nvml = Nvml([A100])
    meter = make(nvml)
    samples = measured(meter)
    assert span_s(samples) == pytest.approx(10, abs=0.5)
    assert totals(samples) == pytest.approx({"gpu": 300 * span_s(samples)}, rel=0.02)
    assert meter.flags == ()
    assert meter.boundary == f"{A100}: the whole board, without CPU and main memory"
    assert memory_bytes_s(nvml, visible_gpus(nvml)[0]) == pytest.approx(1555e9, rel=1e-3)
    meter = make(Nvml([A100, A100]))  # a rail for each board
    assert totals(measured(meter)).keys() == {"gpu0", "gpu1"}
    assert "2 boards are added up" in meter.flags[0]


def test_power_is_sampled_without_an_energy_counter(make):
    nvml = Nvml([GTX], counter=False)

    def tick(now_s):
        nvml.watts = 100.0 + 20.0 * now_s  # a ramp, which trapezoids integrate exactly

    meter = make(nvml, tick=tick, period_s=0.1)
    samples = measured(meter)
    begin_s, end_s = ((at - BEGIN_NS) / 1e9 for at in (samples[0].begin_ns, samples[-1].end_ns))
    exact_j = 100 * (end_s - begin_s) + 10 * (end_s**2 - begin_s**2)
    assert totals(samples)["gpu"] == pytest.approx(exact_j, rel=1e-4)
    assert "sampled power" in meter.boundary


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1, 2]),
        ("2,0", [2, 0]),
        ("GPU-1c4e", [1]),
        ("GPU-", []),  # ambiguous
        ("0,-1,1", [0]),
        ("7", []),
    ],
)
def test_cuda_visible_devices_is_read_as_by_cuda(make, visible, indices):
    nvml = Nvml([A100] * 3)
    make(nvml, visible)
    assert [gpu.handle for gpu in visible_gpus(nvml)] == indices


@pytest.mark.parametrize(
    ("nvml", "visible", "reason"),
    [
        (Nvml([A100], mig=1), None, "sliced (MIG)"),
        (Nvml([A100]), "MIG-1234", "MIG slice"),
        (Nvml([A100]), "", "leaves no NVIDIA GPU"),
        (Nvml([GTX], counter=False, power=False), None, "NVML failed: Not Supported"),
        (Nvml([GTX, A100]), "0", "CUDA_DEVICE_ORDER=PCI_BUS_ID"),  # CUDA may count otherwise
    ],
)
def test_reasons(make, monkeypatch, nvml, visible, reason):
    meter = make(nvml, visible)
    assert reason in meter.unavailable
    meter.start()
    assert meter.stop() == ()
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert (make(nvml, visible).unavailable is None) is (visible == "0")


def test_the_fake_has_the_names_of_pynvml():
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    names = [name for name in {**vars(Nvml), **vars(Nvml([]))} if name.lower().startswith("nvml")]
    assert len(names) == 12
    assert [name for name in names if not hasattr(pynvml, name)] == []
    assert Nvml.NVML_CLOCK_MEM == pynvml.NVML_CLOCK_MEM
    assert Nvml.NVML_DEVICE_MIG_ENABLE == pynvml.NVML_DEVICE_MIG_ENABLE
