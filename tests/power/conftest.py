from itertools import pairwise

import pytest

from edge.power import powermetrics
from edge.power.polling import PollingMeter
from tests.support.fake_powermetrics import install

BEGIN_NS = 10**12


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """fake(misdeeds): a powermetrics that streams every 20 ms, with its sudo."""
    command = install(tmp_path / "bin")
    monkeypatch.setattr(powermetrics, "find_command", lambda: command)
    monkeypatch.setenv("FAKE_POWERMETRICS", "")
    monkeypatch.setattr(powermetrics, "INTERVAL_MS", 20)
    monkeypatch.setattr(powermetrics, "PROBE_INTERVAL_MS", 20)
    monkeypatch.setattr(powermetrics, "GAP_NS", 10**9)  # a busy machine reads late
    return lambda misdeeds: monkeypatch.setenv("FAKE_POWERMETRICS", misdeeds)


@pytest.fixture
def passing(monkeypatch):
    """passing(tick, seconds): time passes only in the waits of a meter, which call `tick(now_s)`.

    The waits of its thread, recognised by their period, end after `seconds`.
    """

    def install(tick, seconds=10.0, period_s=0.25):
        now_ns, end_ns = [BEGIN_NS], BEGIN_NS + int(seconds * 1e9)

        def clock_ns():
            now_ns[0] += 1000
            return now_ns[0]

        def wait(event, wait_s):
            if wait_s == period_s and now_ns[0] >= end_ns:
                return True
            now_ns[0] += int(wait_s * 1e9)
            tick((now_ns[0] - BEGIN_NS) / 1e9)
            return False

        monkeypatch.setattr(PollingMeter, "clock_ns", staticmethod(clock_ns))
        monkeypatch.setattr(PollingMeter, "wait", staticmethod(wait))

    return install


def measured(meter):
    assert meter.unavailable is None
    meter.start()
    samples = meter.stop()
    assert all(a.end_ns <= b.begin_ns for a, b in pairwise(samples))
    return samples


def totals(samples):
    rails = {rail for sample in samples for rail in sample.joules}
    return {rail: sum(sample.joules.get(rail, 0.0) for sample in samples) for rail in rails}


def span_s(samples):
    return (samples[-1].end_ns - samples[0].begin_ns) / 1e9
