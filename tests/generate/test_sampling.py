"""Sampling: mlx-lm's distribution, with randomness of our own."""

import math
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from edge.errors import EdgeError
from edge.generate.sampling import GREEDY, Sampling

FILTERS = [
    {},
    {"top_p": 0.9},
    {"top_k": 5},
    {"min_p": 0.1},
    {"top_p": 0.8, "min_p": 0.05, "top_k": 9},
]
VOCAB = 300


def logprobs():
    logits = mx.random.normal((1, VOCAB), key=mx.random.key(1)) * 2
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def draws(sampler, count):
    return [sampler(logprobs()).item() for _ in range(count)]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_a_seed_gives_what_mlx_lm_gives_after_seeding(filters, temperature):
    mx.random.seed(11)
    expected = draws(make_sampler(temp=temperature, **filters), 100)
    assert len(set(expected)) > 1
    assert draws(Sampling(temperature, seed=11, **filters).sampler(), 100) == expected


def test_without_a_seed_the_global_state_decides_as_in_mlx_lm():
    mx.random.seed(5)
    expected = draws(make_sampler(temp=1.0), 50)
    mx.random.seed(5)
    assert draws(Sampling(1.0).sampler(), 50) == expected
    assert draws(Sampling(1.0).sampler(), 50) != expected


def test_a_seed_is_immune_to_other_random_use_and_does_not_disturb_it():
    expected = draws(Sampling(1.0, seed=3).sampler(), 30)
    sampler, disturbed = Sampling(1.0, seed=3).sampler(), []
    mx.random.seed(8)
    others = []
    for _ in range(30):
        others.append(mx.random.uniform().item())
        disturbed += draws(sampler, 1)
    assert disturbed == expected
    mx.random.seed(8)
    assert others == [mx.random.uniform().item() for _ in range(30)]


def test_seeds_differ():
    seeds = [0, 1, 2**64 - 1]
    assert len({tuple(draws(Sampling(1.0, seed=s).sampler(), 20)) for s in seeds}) == 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature):
    """Chi-square with 5 degrees of freedom; 20.5 is passed by chance once in a thousand times."""
    logits = mx.array([[2.0, 1.0, 0.5, 0.0, -0.5, -1.0]])
    count = 4000
    sampler = Sampling(temperature, seed=1).sampler()
    drawn = np.array(mx.concatenate([sampler(logits) for _ in range(count)]))
    expected = np.array(mx.softmax(logits[0] / temperature)) * count
    assert (((np.bincount(drawn, minlength=6) - expected) ** 2) / expected).sum() < 20.5


def test_filters_cut_what_they_say():
    probabilities = mx.array([[0.5, 0.3, 0.15, 0.04, 0.01]])
    kept = {
        (("top_p", 0.7),): {0, 1},
        (("top_k", 3),): {0, 1, 2},
        (("min_p", 0.2),): {0, 1, 2},
        (("top_k", 99),): {0, 1, 2, 3, 4},
    }
    for filters, expected in kept.items():
        sampler = Sampling(1.0, seed=2, **dict(filters)).sampler()
        drawn = mx.concatenate([sampler(mx.log(probabilities)) for _ in range(600)])
        assert set(drawn.tolist()) == expected, filters


def test_logits_need_not_be_normalised():
    """Shares of the probability, not of its exponent."""
    logits = logprobs() + 500.0
    ours = Sampling(1.0, top_p=0.5, seed=4).sampler()
    plain = Sampling(1.0, top_p=0.5, seed=4).sampler()
    assert [ours(logits).item() for _ in range(50)] == draws(plain, 50)


def test_half_precision_logits_are_drawn_in_full_precision():
    """Two tokens apart by less than float16 can tell at 30 / 0.01."""
    logits = mx.array([[30.0, 30.0 - 1 / 64]], dtype=mx.float16)
    sampler = Sampling(0.01, seed=1).sampler()
    share = mx.concatenate([sampler(logits) for _ in range(3000)]).tolist().count(0) / 3000
    assert abs(share - 1 / (1 + math.exp(-100 / 64))) < 0.03


def test_greedy_is_the_argmax_of_raw_logits():
    logits = mx.array([[1.0, 7.0, 3.0]])
    assert GREEDY.sampler()(logits).tolist() == [1]
    assert GREEDY.processors() == []


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(0.5, top_p=0.9, top_k=9, min_p=0.01, repetition_penalty=1.1, seed=1)],
)
def test_a_run_starts_without_mlx_lms_package(demo_out, sampling):
    """It imports transformers, which takes longer than the demo takes to load."""
    code = (
        "import sys; from edge.model.load import load_model\n"
        "from edge.generate.decode import generate_tokens\n"
        "from edge.generate.lookup import PromptLookup\n"
        "from edge.generate.sampling import Sampling\n"
        f"model = load_model({str(demo_out / 'mlx-int4')!r})\n"
        f"how = {sampling!r}\n"
        "text = generate_tokens(model, [5], max_tokens=3, sampling=how, draft=PromptLookup())\n"
        "print(len(list(text)), 'mlx_lm' in sys.modules, 'transformers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "3 False False\n"


def test_penalty_is_mlx_lms():
    tokens, logits = mx.array([1, 4, 4, 9]), logprobs()
    (ours,) = Sampling(repetition_penalty=1.3, repetition_context=3).processors()
    (theirs,) = make_logits_processors(repetition_penalty=1.3, repetition_context_size=3)
    changed = ours(tokens, mx.array(logits))
    assert mx.array_equal(changed, theirs(tokens, mx.array(logits)))
    assert np.flatnonzero(np.array(changed != logits)[0]).tolist() == [4, 9]
    assert Sampling(repetition_penalty=1.0).processors() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.01),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_context", 0),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_impossible_values_are_refused_by_name(field, value):
    with pytest.raises(EdgeError, match=f"{field} is {value}; choose "):
        Sampling(**{field: value})
