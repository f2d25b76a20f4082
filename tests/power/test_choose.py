import sys

import pytest

import edge.power.choose as module
from edge.power.choose import SOURCES, choose_meter


class FakeMeter:
    def __init__(self, source, unavailable=None):
        self.source, self.unavailable = source, unavailable


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
        ("darwin", {}, "powermetrics"),
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


@pytest.mark.parametrize(
    ("platform", "processors", "source"),
    [
        ("linux", ["CPU"], "rapl"),
        ("linux", ["GPU"], "nvml"),
        ("linux", ["CPU", "GPU"], "none"),
        ("darwin", ["CPU", "GPU"], "powermetrics"),
    ],
)
def test_auto_takes_none_that_leaves_out_what_computes(machine, platform, processors, source):
    machine(platform)
    assert choose_meter("auto", processors).source == source


def test_a_meter_that_leaves_out_what_computes_is_a_reason(machine):
    machine("linux", nvml="no driver")
    why = choose_meter("auto", {"GPU"}).unavailable
    assert "nvml: no driver; rapl: it leaves out the GPU, which computes here" in why


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_can_be_built_on_every_machine(source):
    meter = choose_meter(source)
    assert isinstance(meter.source, str)
    assert isinstance(meter.boundary, str)
    assert list(meter.flags) == []
    assert meter.unavailable is None or len(meter.unavailable) > 20
