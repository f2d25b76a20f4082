"""Two processes of mlx.launch, and what one process does without it."""

import json
from pathlib import Path

import pytest

from edge import distributed
from edge.distributed import difference_of, gather, group, ranks, unique_names
from tests.support.ranks import launch, pair

CHECKS = Path(__file__).parent / "support" / "rank_checks.py"


def test_two_processes_exchange_bytes_and_compare_facts():
    stdout, stderr = launch(CHECKS)
    lines = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 3, stderr
    both = sorted((one for one in lines if "rank" in one), key=lambda one: one["rank"])
    assert [one["rank"] for one in both] == [0, 1]
    for found in both:
        assert (found["ranks"], found["same group"], found["children"]) == (2, True, False)
        assert found["gathered"] == [[0, []], [1_000_003, [2]]]
        assert (found["broadcast"], found["empty"], found["equal"]) == ("from 0", ["", ""], None)
    host = both[0]["host"]
    different = f"model is v0 on {host} (rank 0) but v1 on {host} (rank 1): use the same on all."
    assert [one["different"] for one in both] == [different, "0"]
    (silent,) = (one["silent"] for one in lines if "silent" in one)
    assert "gave no answer in 0.2 s" in silent
    assert ("said by 0" in stdout, "said by 1" in stdout) == (True, False)
    assert ("warned by 0" in stderr, "warned by 1" in stderr) == (True, False)


def test_a_process_that_has_ended_is_reported_and_not_waited_for():
    said, _ = pair("rank_checks.py", "death")
    assert "another process of mlx.launch has ended or is out of reach" in said


@pytest.mark.parametrize("alone", [False, True])
def test_one_process_initialises_nothing(alone, tmp_path, monkeypatch):
    if alone:  # mlx.launch -n 1
        (tmp_path / "hosts").write_text("\n")
        monkeypatch.setenv("MLX_RANK", "0")
        monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    monkeypatch.setattr(distributed.mx.distributed, "init", lambda *_, **__: pytest.fail("init"))
    group.cache_clear()
    assert (group(), ranks(), gather(b"own")) == (None, 1, [b"own"])


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ([{"mlx": "1"}, {"mlx": "1"}, {"mlx": "1"}], ""),
        ([{"mlx": "1"}, {"mlx": "2"}, {"mlx": "1"}], "mlx is 1 on a, c but 2 on b"),
        ([{"x": "1"}, {"x": "1"}, {}], "x is 1 on a, b but missing on c"),
        ([{}, {"x": "1", "y": "2"}, {}], "x is missing on a, c but 1 on b; y is missing on"),
        ([{str(i): str(n) for i in range(9)} for n in range(3)], "; and 5 more: use the same"),
    ],
)
def test_differences_name_values_and_hosts(facts, sentence):
    found = difference_of(["a", "b", "c"], facts)
    assert sentence in found
    assert bool(found) == bool(sentence)


def test_hosts_that_occur_twice_have_their_rank():
    assert unique_names(["a", "b", "a"]) == ["a (rank 0)", "b", "a (rank 2)"]
