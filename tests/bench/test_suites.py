import argparse

import pytest

from edge.bench.suites import SUITES, left_out, workloads
from edge.bench.workload import Workload
from edge.cli.options.bench import add_workload
from edge.errors import EdgeError

LONG = 1 << 20


def parse(*words):
    parser = argparse.ArgumentParser()
    add_workload(parser)
    return parser.parse_args(words)


def asked(*words, context=LONG):
    return workloads(parse(*words), context, "demo")


def test_llama_benchs_defaults():
    assert asked() == [Workload(512, 128)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-p", "512,1024", "-n", "128,256"], [(512, 128), (1024, 256)]),
        (["-p", "512", "-p", "1024", "-n", "64"], [(512, 64), (1024, 0)]),
        (["-n", "16,32,64", "-p", "8"], [(8, 16), (0, 32), (0, 64)]),
        (["-p", "0", "-n", "32"], [(0, 32)]),
        (["-n", "0"], [(512, 0)]),
        (["-p", "8-32+8", "-n", "0"], [(8, 0), (16, 0), (24, 0), (32, 0)]),
        (["-p", "8-64*2", "-n", "0"], [(8, 0), (16, 0), (32, 0), (64, 0)]),
        (["-p", "8-10", "-n", "0"], [(8, 0), (9, 0), (10, 0)]),
        (["-p", "8,8", "-n", "2"], [(8, 2)]),
    ],
)
def test_every_test_is_run_once(words, expected):
    assert asked(*words) == [Workload(p, n) for p, n in expected]


def test_all_of_it_at_every_depth():
    assert asked("-p", "8", "-n", "2", "-pg", "16,4", "-d", "0,100") == [
        Workload(8, 2),
        Workload(16, 4, 0, True),
        Workload(8, 2, 100),
        Workload(16, 4, 100, True),
    ]


def test_as_in_llama_bench_only_zeros_leave_the_joint_test_alone():
    assert asked("-pg", "16,4") == [Workload(512, 128), Workload(16, 4, 0, True)]
    assert asked("-p", "0", "-n", "0", "-pg", "16,4") == [Workload(16, 4, 0, True)]


@pytest.mark.parametrize(
    "words",
    [
        ["-p", "five"],
        ["-p", "-5"],
        ["-p", "8-"],
        ["-p", "8-32+0"],
        ["-p", "0-32*2"],
        ["-p", "32-8"],
        ["-p", "1-100000"],
        ["-p", "99999999999"],
        ["-p", ""],
        ["-pg", "512"],
        ["-pg", "512,1"],
        ["-pg", "0,8"],
        ["-pg", "8-9,8"],
        ["--suite", "huge"],
    ],
)
def test_nonsense_is_refused_by_argparse_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as failure:
        parse(*words)
    assert failure.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("usage") is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "0", "-n", "0"], "leaves nothing to measure"),
        (["-p", "0", "-n", "1"], "one token has no rate"),
        (["-d", "4000"], "4512 positions, demo was trained for 4096"),
        (["-pg", "4000,128"], "4128 positions"),
        (["--suite", "quick", "-n", "9"], "leave out -n"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, message):
    with pytest.raises(EdgeError, match=message):
        asked(*words, context=4096)


def test_a_suite_leaves_out_what_the_model_has_no_room_for():
    args = parse("--suite", "depth")
    assert workloads(args, LONG, "x") == list(SUITES["depth"])
    assert [w.depth for w in workloads(args, 4096, "x")] == [0, 1024]
    assert [w.depth for w in left_out(args, 4096)] == [4096, 16384]
    assert left_out(parse(), 1) == []
    with pytest.raises(EdgeError, match="at least 512 positions"):
        workloads(args, 100, "x")


def test_localscores_nine_scenarios():
    names = [str(workload) for workload in SUITES["localscore"]]
    assert len(names) == 9
    assert (names[0], names[-1]) == ("pp1024+tg16", "pp16+tg1536")
