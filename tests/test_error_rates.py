"""The parts of benchmarks/error_rates.py: slowed engine, order of rounds, replay, intervals."""

import importlib
import itertools
import random

import pytest

from tests.support.profiles import ROOT


@pytest.fixture
def rates(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("error_rates")


def test_a_slowed_engine_takes_longer_by_the_share_inside_the_timed_window(rates, monkeypatch):
    slow = importlib.import_module("slow_worker")
    clock = itertools.count(0, 10)  # every look takes 10 ns
    now = lambda: next(clock)  # noqa: E731
    monkeypatch.setattr(slow.time, "monotonic_ns", now)

    class Engine:
        length = 7

        def prefill(self, ids):
            [now() for _ in range(1000)]

        def decode(self, ids, stamp):
            for _ in ids:
                [now() for _ in range(1000)]
                stamp()

    def timed(share):
        engine, stamps = slow.SlowEngine(Engine(), share), []
        assert engine.length == 7  # all else is the engine's own
        begin = now()
        engine.prefill([1] * 8)
        end = now()
        engine.decode([1] * 11, lambda: stamps.append(now()))
        return end - begin, stamps[-1] - stamps[0]

    for before, after in zip(timed(0.0), timed(0.1), strict=True):
        assert after / before == pytest.approx(1.1, abs=0.01)


def test_half_of_the_rounds_are_equal_and_each_share_comes_once_in_ten(rates):
    for start in (0, 10, 50):
        shares = [rates.share_of(start + i, seed=1) for i in range(10)]
        assert sorted(shares) == [0.0] * 5 + [0.01, 0.02, 0.03, 0.05, 0.1]


def test_replayed_equal_rounds_favour_no_arm_and_slowed_ones_the_first(rates):
    arms = [[{"decode_tok_s": 100.0}], [{"decode_tok_s": 104.0}]]  # as recorded by chance
    rounds = [rates.Round.of({"arms": arms}, "decode_tok_s")] * 9
    rng = random.Random(1)
    logs = [each.log for _ in range(300) for each in rates.drawn(rounds, 6, 0.0, rng)]
    assert abs(sum(logs) / len(logs)) < 0.005 < abs(logs[0])
    slowed = [each.log for _ in range(300) for each in rates.drawn(rounds, 6, 0.1, rng)]
    assert sum(slowed) / len(slowed) == pytest.approx(-0.0953, abs=0.005)
    assert not rates.finds_unpaired(rounds, rounds[:1])  # one process shows nothing
    assert rates.finds_unpaired(rounds[:3], [each.slowed(0.2) for each in rounds[:3]])


@pytest.mark.parametrize(
    ("found", "of", "low", "high"),
    [(0, 10, 0.0, 0.3085), (5, 100, 0.0164, 0.1128), (10, 10, 0.6915, 1.0)],
)
def test_an_interval_of_a_share_is_clopper_and_pearsons(rates, found, of, low, high):
    assert rates.clopper_pearson(found, of) == pytest.approx((low, high), abs=1e-4)
