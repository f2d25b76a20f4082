"""Sampling: mlx-lm's distribution, with a key of its own."""

import math

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import make_sampler

from edge.errors import EdgeError
from edge.generate.sampling import Picker, Sampling

FILTERS = [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1},
           {"top_p": 0.8, "min_p": 0.05, "top_k": 9}]  # fmt: skip
VOCAB = 300


def logprobs():
    logits = mx.random.normal((1, VOCAB), key=mx.random.key(1)) * 2
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def draws(picker, count):
    return [picker(logprobs()).item() for _ in range(count)]


def drawn(count, **settings):
    return draws(Picker(Sampling(**settings), [0]), count)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_a_seed_gives_what_mlx_lm_gives_after_seeding(filters, temperature):
    mx.random.seed(11)
    expected = draws(make_sampler(temp=temperature, **filters), 100)
    assert len(set(expected)) > 1
    assert drawn(100, temperature=temperature, seed=11, **filters) == expected


def test_without_a_seed_mlxs_global_state_counts():
    mx.random.seed(5)
    first, second = drawn(50, temperature=1.0), drawn(50, temperature=1.0)
    mx.random.seed(5)
    assert drawn(50, temperature=1.0) == first != second


def test_other_draws_and_seeded_draws_do_not_change_each_other():
    picker, disturbed, others = Picker(Sampling(1.0, seed=3), [0]), [], []
    mx.random.seed(8)
    for _ in range(30):
        others.append(mx.random.uniform().item())
        disturbed += draws(picker, 1)
    assert disturbed == drawn(30, temperature=1.0, seed=3)
    mx.random.seed(8)
    assert others == [mx.random.uniform().item() for _ in range(30)]


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", math.nan), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1),
     ("min_p", 1.01), ("repetition_penalty", 0.0), ("repetition_context", 0), ("seed", 2**64)],
)  # fmt: skip
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(EdgeError, match=f"{field} is {value}; choose "):
        Sampling(**{field: value})


@pytest.mark.parametrize(
    ("distance", "seed", "clear"), [(1e-6, 5, False), (-1e-6, 5, False), (0.05, 5, True)]
)
def test_a_draw_is_clear_where_rounding_cannot_change_it(distance, seed, clear):
    number = mx.random.uniform(shape=(1,), key=mx.random.split(mx.random.key(seed))[1]).item()
    first = number + distance  # the probability of the first of two ids
    logits = mx.log(mx.array([[first, 1 - first]]))
    token, is_clear, _ = Picker(Sampling(1.0, seed=seed), [0]).pick_many(logits)
    assert token.item() == (distance < 0) and is_clear.item() == clear
    assert Picker(Sampling(1.0), [0]).pick_many(logits)[1].item()
