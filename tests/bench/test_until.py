import math
import random

import pytest
from msgspec.structs import replace

from edge.bench import until
from edge.bench.until import LEAST_ROUNDS, Until
from edge.cli.options.bench import UNTIL_ROUNDS
from edge.profile.baseline import UNTIL_CONFIDENCE
from edge.profile.ratio import Ratio
from edge.stats import detectable, paired
from tests.support.profiles import make_profile, typed


def profile_with(rounds, *pairs):
    """Rows with the detectable differences of decode and prefill."""
    profile = typed(make_profile(artefacts=("mlx-fp16", "mlx-int4")))
    rows = []
    for row, values in zip(profile.rows, pairs, strict=False):
        found = zip(("decode_tok_s", "prefill_tok_s", "joules_per_token"), values, strict=False)
        ratios = {key: Ratio(ratio=1.0, rounds=rounds, detectable=value) for key, value in found}
        rows.append(replace(row, ratios=ratios))
    return replace(profile, rows=rows, method=replace(profile.method, processes_per_row=rounds))


@pytest.mark.parametrize(
    ("pairs", "passed_s", "more", "said"),
    [
        ([(0.02, 0.05), (0.01, 0.02)], 100.0, True, ""),
        ([(0.02, 0.03), (0.01, 0.02, 0.9)], 100.0, False, "after 10 rounds a difference of 3.0%"),
        # Ten rounds took 550 s, so an eleventh would end after the bound.
        (
            [(0.02, 0.05)],
            550.0,
            False,
            "the time was up: .* is 5.0% .prefill of mlx-fp16., not 3.0%",
        ),
        ([(0.02, 0.05)], 540.0, True, ""),
        ([], 1.0, False, "nothing to compare: the rows failed"),
    ],
)
def test_rounds_are_added_until_every_rate_shows_the_difference_or_time_is_up(
    monkeypatch, pairs, passed_s, more, said
):
    rule = Until(0.03, 600.0, lambda: profile_with(10, *pairs), begin_s=0.0)
    monkeypatch.setattr(until.time, "monotonic", lambda: passed_s)
    assert rule.wants_more() == more
    if said:
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(rule.result())
    assert "until a difference of 3.0% shows 95% of the time, for at most 10 min" in rule.plan()


def test_many_rounds_are_looked_at_less_often(monkeypatch):
    monkeypatch.setattr(until.time, "monotonic", lambda: 1.0)
    narrow = {
        n: Until(0.03, 600.0, lambda n=n: profile_with(n, (0.01, 0.01)), begin_s=0.0)
        for n in (31, 33, 34, 100, 102)
    }
    assert [n for n, rule in narrow.items() if rule.wants_more()] == [33, 100]


@pytest.mark.parametrize("disturbed", [0.0, 0.08])
def test_looking_after_every_round_keeps_the_error_rates(disturbed):
    """400 experiments, of equal arms and of 3 % difference, with noise for some 15 rounds."""
    assert UNTIL_ROUNDS == LEAST_ROUNDS
    rng = random.Random(2)
    alarms = misses = 0
    for _ in range(400):
        logs = [rng.gauss(0, 0.025) for _ in range(LEAST_ROUNDS)]
        while True:
            if rng.random() < disturbed:
                logs[-1] += rng.choice([-0.4, 0.4])
            low, high = paired(logs, UNTIL_CONFIDENCE).interval
            half = (high - low) / 2
            if math.expm1(detectable(half, len(logs) - 1, UNTIL_CONFIDENCE)) <= 0.03:
                break
            logs.append(rng.gauss(0, 0.025))
        alarms += not low <= 0 <= high
        misses += low + math.log(1.03) <= 0
    assert alarms <= 20 + 8 and misses <= 20 + 8  # 5 %, and two standard deviations
