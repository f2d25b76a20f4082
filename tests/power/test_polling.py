"""Meters over counters that step, jump, stall or vanish."""

import threading

import pytest

from edge.power.polling import PollingMeter, Reading
from tests.power.conftest import BEGIN_NS, measured, span_s, totals


class Counters(PollingMeter):
    """A CPU of 4 W, published every `batch_s`, and a GPU of 20 W, published at once."""

    source, boundary, pacing, live = "test", "CPU + GPU", ("CPU",), ("GPU",)

    def __init__(self, batch_s=0.001):
        super().__init__()
        self.batch_s, self.cpu_j, self.gpu_j = batch_s, 7.0, 7.0

    def tick(self, now_s):
        self.cpu_j = 7 + 4 * (now_s // self.batch_s * self.batch_s)
        self.gpu_j = 7 + 20 * now_s

    def _read(self):
        if self.cpu_j is None:
            raise OSError("No such device")
        return Reading({"CPU": self.cpu_j, "GPU": self.gpu_j})


@pytest.fixture
def run(passing):
    """run(meter, cpu_j): samples of 20 s; `cpu_j(joules, now_s)` replaces the CPU's counter."""

    def run(meter, cpu_j=lambda joules, now_s: joules, seconds=20.0):
        def tick(now_s):
            meter.tick(now_s)
            meter.cpu_j = cpu_j(meter.cpu_j, now_s)

        passing(tick, seconds)
        return measured(meter)

    return run


def test_energy_matches_the_time_of_its_samples(run):
    meter = Counters()
    samples = run(meter)
    seconds = span_s(samples)
    assert seconds == pytest.approx(20, abs=0.5)
    assert totals(samples) == pytest.approx({"CPU": 4 * seconds, "GPU": 20 * seconds}, rel=0.01)
    assert meter.flags == ()
    again = measured(meter)
    assert again[0].begin_ns >= samples[-1].end_ns


def test_reading_while_it_runs_ends_a_sample_and_forgets_older_ones(passing):
    meter = Counters()
    passing(meter.tick)
    meter.start()
    meter._thread.join()
    every = meter.read(0)
    middle = len(every) // 2
    meter.wait(threading.Event(), 0.1)
    *older, last = meter.read(every[middle].end_ns)
    assert older == list(every[middle + 1 :])
    assert last.begin_ns == every[-1].end_ns
    assert totals([last]) == pytest.approx({"CPU": 0.4, "GPU": 2.0}, rel=0.05)
    assert meter.read(last.end_ns) == ()
    assert last not in meter.stop()


def test_batches_make_long_samples_and_no_spikes(run):
    """With samples that end at the reader's ticks power would be 0 W and then 35 W."""
    samples = run(Counters(batch_s=2.2), seconds=30.0)
    powers_w = [sample.joules["CPU"] / sample.length_ns * 1e9 for sample in samples]
    assert len(samples) >= 10
    assert powers_w == pytest.approx([4.0] * len(samples), rel=0.15)
    assert samples[-1].end_ns >= BEGIN_NS + 30e9  # the batch after the end


@pytest.mark.parametrize(
    ("cpu_j", "begin_s", "energy_j", "flag"),
    [
        # Its first step has energy from long before.
        (lambda j, now_s: 7.0 if now_s < 9 else 5000 + j, 9, 44, "move for 5 s at the start"),
        (lambda j, now_s: j if now_s < 5 else j - 6000, 0, 80, "a counter jumped"),
        (lambda j, now_s: j if now_s < 5 else None, 0, 19, "no longer be read: No such device"),
        (lambda j, now_s: 7.0, 0, None, "the counter of CPU did not move"),
        (lambda j, now_s: min(j, 39.0), 0, 32, "the counter of CPU did not move"),
    ],
)
def test_live_rails_survive_a_counter_that_fails(run, cpu_j, begin_s, energy_j, flag):
    meter = Counters()
    samples = run(meter, cpu_j)
    assert samples[0].begin_ns >= BEGIN_NS + begin_s * 1e9
    assert totals(samples).get("CPU") == (energy_j and pytest.approx(energy_j, rel=0.05))
    assert all(sample.joules.get("CPU", 0) >= 0 for sample in samples)
    assert totals(samples)["GPU"] == pytest.approx(20 * span_s(samples), rel=0.02)
    assert samples[-1].joules.keys() == ({"GPU"} if "CPU did not" in flag else {"CPU", "GPU"})
    assert flag in meter.flags[0]
