import pytest

from edge.bench.schedule import order_of, rounds_for, trials_per_process


def test_every_round_runs_every_row_once():
    for order in order_of(5, 20, seed=3):
        assert sorted(order) == [0, 1, 2, 3, 4]


def test_the_order_is_the_seeds():
    assert order_of(5, 4, seed=3) == order_of(5, 4, seed=3)
    assert order_of(5, 4, seed=3) != order_of(5, 4, seed=4)


def test_rounds_differ_so_that_no_row_always_follows_the_same():
    before = {order[order.index(0) - 1] for order in order_of(5, 20, seed=0)}
    assert before == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("trials", "rounds", "processes", "each"),
    [(5, 3, 3, 2), (6, 3, 3, 2), (1, 3, 1, 1), (2, 3, 2, 1), (5, 1, 1, 5), (100, 3, 3, 34)],
)
def test_trials_are_spread_over_the_rounds(trials, rounds, processes, each):
    assert rounds_for(trials, rounds) == processes
    assert trials_per_process(trials, rounds) == each
    assert processes * each >= trials
