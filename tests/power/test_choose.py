import sys

import pytest

import edge.power.choose as module
from edge.errors import EdgeError
from edge.power.choose import SOURCES, choose_meter
from edge.power.combined import CombinedMeter
from edge.power.meter import Sample


class FakeMeter:
    def __init__(self, source, unavailable=None, samples=(), flags=()):
        self.source, self.unavailable, self.flags = source, unavailable, flags
        self.boundary, self.samples = f"all of {source}", samples

    def start(self):
        pass

    def stop(self):
        return self.samples


@pytest.fixture
def machine(monkeypatch):
    """machine(platform, nvml="no driver", ...): which meters work there."""

    def set_up(platform, **reasons):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr(module, "_build", lambda name: FakeMeter(name, reasons.get(name)))

    return set_up


@pytest.mark.parametrize(
    ("platform", "reasons", "source"),
    [
        ("darwin", {}, "powermetrics+ioreport"),
        ("darwin", {"ioreport": "not installed"}, "powermetrics"),
        ("darwin", {"powermetrics": "no root"}, "ioreport"),
        ("linux", {}, "nvml"),
        ("linux", {"nvml": "no driver"}, "rapl"),
    ],
)
def test_auto_takes_the_best_that_works(machine, platform, reasons, source):
    machine(platform, **reasons)
    meter = choose_meter("auto")
    assert (meter.source, meter.unavailable) == (source, None)


def test_auto_says_why_each_did_not_work(machine):
    machine("linux", nvml="no driver", rapl="no permission")
    meter = choose_meter("auto")
    assert "nvml: no driver; rapl: no permission" in meter.unavailable
    machine("plan9")
    assert "plan9" in choose_meter("auto").unavailable


@pytest.mark.parametrize("source", [s for s in SOURCES if s != "replay:FILE"])
def test_every_source_can_be_built_on_every_machine(source):
    meter = choose_meter(source)
    assert isinstance(meter.source, str)
    assert isinstance(meter.boundary, str)
    assert list(meter.flags) == []
    assert meter.unavailable is None or len(meter.unavailable) > 20


@pytest.mark.parametrize("source", ["wattmeter", "replay:", "replay:FILE "[:-2], ""])
def test_an_unknown_source_is_an_error(source):
    if source.startswith("replay:") and len(source) > 7:
        assert choose_meter(source).unavailable  # a name, and no such file
        return
    with pytest.raises(EdgeError, match="power source"):
        choose_meter(source)


def test_the_second_meter_stands_beside_and_is_never_added():
    first = FakeMeter("powermetrics", samples=[Sample(0, 10, {"CPU": 1.0}), Sample(10, 20, {})])
    second = FakeMeter("ioreport", samples=[Sample(5, 15, {"CPU": 1.1, "DRAM": 4.0})])
    meter = CombinedMeter(first, second)
    meter.start()
    one, two = meter.stop()
    assert (one.joules, two.joules) == ({"CPU": 1.0}, {})
    assert one.beside == pytest.approx({"ioreport CPU": 0.55, "ioreport DRAM": 2.0})
    assert two.beside == pytest.approx(one.beside)
    assert meter.boundary == "all of powermetrics"


def test_a_second_meter_that_fails_costs_a_flag():
    first = FakeMeter("powermetrics", samples=[Sample(0, 10, {"CPU": 1.0})], flags=("one",))
    meter = CombinedMeter(first, FakeMeter("ioreport", "it broke"))
    assert meter.stop()[0].joules == {"CPU": 1.0}
    assert meter.unavailable is None
    assert meter.flags == ("one", "ioreport: it broke")
