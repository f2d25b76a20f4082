import pytest

from edge.bench.workload import Workload, plan_tokens


@pytest.mark.parametrize(
    ("workload", "text", "context", "decode_depth"),
    [
        (Workload(512, 128), "pp512, tg128", 512, 0),
        (Workload(0, 128, 4096), "tg128 @ d4096", 4224, 4096),
        (Workload(512, 128, joint=True), "pp512+tg128", 640, 512),
        (Workload(512, 128, 100, True), "pp512+tg128 @ d100", 740, 612),
    ],
)
def test_a_joint_workload_generates_behind_its_prompt(workload, text, context, decode_depth):
    assert str(workload) == text
    assert workload.context_tokens == context
    assert workload.decode_depth == decode_depth


def test_the_same_seed_gives_every_engine_the_same_ids():
    first, again = (plan_tokens(Workload(9, 5, 3), 1000, seed=4) for _ in range(2))
    assert first == again
    assert (len(first.depth), len(first.prompt), len(first.generate)) == (3, 9, 5)
    assert plan_tokens(Workload(9, 5, 3), 1000, seed=5) != first
