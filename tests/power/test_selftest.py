"""The self-test of meters, over counters as macOS 27 publishes them."""

import random
from contextlib import nullcontext
from itertools import accumulate
from types import SimpleNamespace

import psutil
import pytest

from edge.power import ioreport, load
from edge.power.ioreport import IoReportMeter
from edge.power.load import load_on
from edge.power.meter import Meter, Sample, integrate
from edge.power.powermetrics_records import RecordStream, build_timeline
from edge.power.selftest import PHASE_S, TOTAL, self_test
from tests.power.conftest import BEGIN_NS
from tests.support.fake_powermetrics import record

# The meter begins with the first step of its counters, within 6 s.
START_S = 6.0
LOAD_S, REST_S, END_S = (START_S + n * PHASE_S for n in (1, 2, 3))
UNITS = {"mJ": 1e3, "nJ": 1e9}
# Apple's names before macOS 27 and on an M5 Max, with a die in front, and with one and a space.
PLAIN = {"CPU": "CPU Energy", "ANE": "ANE0", "DRAM": "DRAM0", "GPU": "GPU Energy"}
DIE = {"CPU": "DIE_0_CPU Energy", "ANE": "DIE_0_ANE0", "DRAM": "DIE_0_DRAM0", "GPU": "GPU Energy"}
SPACED = {rail: f"DIE0 {name}" for rail, name in PLAIN.items()}
RENAMED = {**SPACED, "CPU": "DIE0 PACC"}
UNKNOWN = ("MCPU0_0", "PCPU_SRAM", "PCPUDTL00", "GPU0", "AMCC0", "PCIe Port 0 Energy")
RESULTS = ("cpu_total_mj", "gpu_mj", "ane_mj", "dram_mj", "gpu_sram_mj")


class Channels:
    """zeus-apple-silicon's monitor over channels of IOReport, matched by name as it does.

    Millijoules are published 2.0 to 2.2 s apart, the GPU's nanojoules at once.
    """

    def __init__(self, names, watts):
        self.names, self.watts, self.now_s = names, watts, 0.0
        rng = random.Random(27)
        self.steps_s = list(accumulate(rng.uniform(2.0, 2.23) for _ in range(30)))

    def tick(self, now_s):
        self.now_s = now_s

    def joules(self, rail, now_s):
        idle_w, load_w, rest_w = self.watts[rail]
        parts = ((0.0, LOAD_S, idle_w), (LOAD_S, REST_S, load_w), (REST_S, 1e9, rest_w))
        return 7 + sum(max(0.0, min(now_s, end) - begin) * w for begin, end, w in parts)

    def get_cumulative_energy(self):
        found = dict.fromkeys(RESULTS)
        batch_s = max((step for step in self.steps_s if step <= self.now_s), default=0.0)
        channels = [(name, rail) for rail, name in self.names.items()]
        for name, rail in [*channels, *((name, None) for name in UNKNOWN)]:
            unit = "nJ" if name.endswith("GPU Energy") else "mJ"
            joules = self.joules(rail, self.now_s if unit == "nJ" else batch_s) if rail else 99.0
            value = int(joules * UNITS[unit])
            base = name.split("_", 2)[2] if name.startswith("DIE_") else name
            words = {"CPU Energy": 0, "DRAM": 3, "GPU Energy": 1, "GPU SRAM": 4, "ANE": 2}
            place = next((place for word, place in words.items() if word in base), None)
            if place is not None:
                found[RESULTS[place]] = int(value / UNITS[unit] * 1e3)
        return SimpleNamespace(**found)


def stamps():
    moments = iter((START_S, LOAD_S, REST_S, END_S))
    return lambda: BEGIN_NS + int(next(moments) * 1e9)


@pytest.fixture
def tested(passing, monkeypatch):
    """tested(names, watts): the meter over such channels, and its self-test."""

    def run(names, **watts):
        known = {"CPU": (4, 24, 4), "GPU": (0, 30, 0), "ANE": (0, 0, 0), "DRAM": (1, 3, 1)}
        monitor = Channels(names, known | watts)
        passing(monitor.tick, END_S)
        monkeypatch.setattr(ioreport, "load_monitor", lambda: monitor)
        meter = IoReportMeter()
        if meter.unavailable:
            return meter, None
        return meter, self_test(meter, ["CPU", "GPU"], nullcontext, lambda _: None, stamps())

    return run


@pytest.mark.parametrize("names", [PLAIN, DIE, SPACED])
def test_batches_and_die_prefixes_move(tested, names):
    meter, found = tested(names)
    assert found.moves and found.source == "ioreport"
    cpu, gpu = found.rails
    assert (cpu.idle_w, cpu.load_w, cpu.rest_w) == pytest.approx((4, 24, 4), abs=2)
    assert (gpu.idle_w, gpu.load_w, gpu.rest_w) == pytest.approx((0, 30, 0), abs=2)
    assert "batches up to 2." in meter.flags[0]


def test_a_renamed_cpu_counter_is_a_reason(tested):
    meter, _ = tested(RENAMED)
    assert "no energy counter of the CPU" in meter.unavailable


@pytest.mark.parametrize(
    ("watts", "problems"),
    [
        ({"CPU": (4, 4, 4)}, {"CPU": "it does not move under load", "GPU": None}),
        ({"CPU": (4, 24, 24)}, {"CPU": "it goes on after the load", "GPU": None}),
        ({"GPU": (0, 0, 0)}, {"CPU": None, "GPU": "it does not move under load"}),
        ({"CPU": (0, 0, 0)}, dict.fromkeys(("CPU", "GPU"), "no energy was counted")),
    ],
)
def test_a_rail_that_does_not_follow_is_named(tested, watts, problems):
    meter, found = tested(PLAIN, **watts)
    assert {rail.rail: rail.problem for rail in found.rails} == problems
    assert not found.moves
    is_zero = watts.get("CPU") == (0, 0, 0)
    assert any("CPU did not move" in flag for flag in meter.flags) == is_zero


def test_energy_without_the_cpu_is_no_total(tested, monkeypatch):
    samples = []
    stop = IoReportMeter.stop
    monkeypatch.setattr(IoReportMeter, "stop", lambda self: samples.extend(stop(self)) or samples)
    tested(PLAIN, CPU=(0, 0, 0))
    energy = integrate(samples, samples[0].begin_ns, samples[0].end_ns)
    assert energy.joules.keys() == {"GPU"} and not energy.is_total


class Steady(Meter):
    """Samples of a second with the watts of a package, in the stamps' time."""

    def __init__(self, watts):
        self.watts = watts

    def stop(self):
        return [
            Sample(BEGIN_NS + n * 10**9, BEGIN_NS + (n + 1) * 10**9, {"package-0": watts})
            for n, watts in enumerate(self.watts)
        ]


class Powermetrics(Meter):
    """Records of half a second, whose CPU energy is published every `batch` records."""

    source = "powermetrics"

    def __init__(self, cpu_w, batch):
        self.cpu_w, self.batch = cpu_w, batch

    def stop(self):
        stream, records, ends_ns, waiting_mj = RecordStream(), [], [], 0
        for number in range(int(END_S * 2)):
            end_s = (number + 1) / 2
            under_load = LOAD_S < end_s <= REST_S
            waiting_mj += 500 * self.cpu_w[under_load]
            published_mj = waiting_mj if number % self.batch == 0 else 0
            waiting_mj -= published_mj
            gpu_mj = 15000 if under_load else 0
            records += stream.feed(record(number, 500_000_000, published_mj, gpu_mj, "M5 Pro"))
            ends_ns.append(BEGIN_NS + int(end_s * 1e9))
        timeline = build_timeline(records, ends_ns, 10**8)
        self.flags = timeline.flags
        return timeline.samples


@pytest.mark.parametrize(
    ("cpu_w", "batch", "problems", "flag"),
    [
        ((4, 24), 1, [None, None], None),
        ((4, 24), 4, [None, None], None),  # 27.0: every 2 s
        ((0, 0), 1, ["no energy was counted", None], "CPU counter stalled"),  # its betas
    ],
)
def test_powermetrics_of_macos_27(cpu_w, batch, problems, flag):
    meter = Powermetrics(cpu_w, batch)
    found = self_test(meter, ["CPU", "GPU"], nullcontext, lambda _: None, stamps())
    assert [rail.problem for rail in found.rails] == problems
    assert found.moves == (flag is None) and (flag or "") in "".join(found.flags)


@pytest.mark.parametrize(
    ("load_w", "noise_w", "moves"), [(15, 0, True), (10.4, 0, False), (15, 2, False)]
)
def test_the_total_must_rise_by_more_than_noise(load_w, noise_w, moves):
    idle = [10 + noise_w * (-1) ** n for n in range(14)]
    meter = Steady([*idle, *[load_w] * 8, *[10] * 10])
    assert self_test(meter, [TOTAL], nullcontext, lambda _: None, stamps()).moves == moves


def test_a_load_ends_with_its_block(monkeypatch):
    monkeypatch.setattr(load, "usable_cores", lambda: 1)
    with load_on(["CPU"]):
        children = [c for c in psutil.Process().children() if "edge.power.load" in c.cmdline()]
        assert len(children) == 1
    assert not children[0].is_running()
