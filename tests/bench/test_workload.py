import pytest

from edge.bench.workload import SUITES, check_lengths, plan_tokens, plan_workloads, suite_workloads
from edge.errors import EdgeError
from edge.profile.profile import Workload


@pytest.mark.parametrize(
    ("prompts", "generates", "depths", "joint", "expected"),
    [
        ([512, 1024], [128, 256], [0], [], [(512, 128), (1024, 256)]),
        ([512, 1024], [64], [0], [], [(512, 64), (1024, 0)]),
        ([8, 8], [16, 32, 64], [0], [], [(8, 16), (0, 32), (0, 64)]),
        ([0], [32], [0], [], [(0, 32)]),
        ([512], [0], [0], [], [(512, 0)]),
        ([0], [0], [0], [(16, 4)], [(16, 4, 0, True)]),
        (
            *([8], [2], [0, 100], [(16, 4)]),
            [(8, 2), (16, 4, 0, True), (8, 2, 100), (16, 4, 100, True)],
        ),
    ],
)
def test_every_test_is_run_once(prompts, generates, depths, joint, expected):
    found = plan_workloads(prompts, generates, depths, joint)
    assert found == [Workload(*numbers) for numbers in expected]


@pytest.mark.parametrize(("prompts", "generates"), [([0], [0]), ([0], [1]), ([8], [2, 1])])
def test_workloads_without_a_rate_are_refused(prompts, generates):
    with pytest.raises(EdgeError, match="nothing to measure"):
        plan_workloads(prompts, generates, [0])


@pytest.mark.parametrize(
    ("workload", "positions"),
    [(Workload(512, 128, 4000), 4512), (Workload(4000, 128, 0, True), 4128)],
)
def test_too_long_workloads_are_refused(workload, positions):
    check_lengths([workload], positions, "demo")
    with pytest.raises(EdgeError, match=f"{positions} positions, demo was trained for 4096"):
        check_lengths([workload], 4096, "demo")


def test_too_long_workloads_of_a_suite_are_left_out_with_a_warning():
    warnings = []
    assert suite_workloads("depth", 1 << 20, "x", warnings.append) == list(SUITES["depth"])
    assert warnings == []
    found = suite_workloads("depth", 4096, "x", warnings.append)
    assert [workload.depth for workload in found] == [0, 1024]
    assert warnings == [
        f"pp512, tg128 @ d{depth} is left out: x was trained for 4096 positions"
        for depth in (4096, 16384)
    ]
    with pytest.raises(EdgeError, match="needs 512 positions"):
        suite_workloads("depth", 100, "x", warnings.append)


def test_token_ids_follow_from_the_seed():
    first, again = (plan_tokens(Workload(9, 5, 3), 1000, seed=4) for _ in range(2))
    assert first == again
    assert (len(first.depth), len(first.prompt), len(first.generate)) == (3, 9, 5)
    assert all(0 <= i < 1000 for i in (*first.depth, *first.prompt, *first.generate))
    assert plan_tokens(Workload(9, 5, 3), 1000, seed=5) != first
