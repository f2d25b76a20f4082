"""Reproducible holes, and HumanEval infilling files."""

import gzip
import hashlib
import json
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.generate.fim import read_hole
from edge.quality.corpus import SourceText
from edge.quality.fim.holes import AROUND_CHARACTERS, KINDS, draw_holes, read_humaneval

CODE = "".join(f"def f{i}(x):\n    return x + {i}\n\n" for i in range(40))
TEXTS = [SourceText("a.py", CODE), SourceText("b.py", CODE[:300].replace("\n", "\r\n"))]
LINE = st.text(alphabet="aé😀\t x\r\x0c\u2028", min_size=1, max_size=12)


@given(
    st.lists(st.tuples(LINE, st.sampled_from(["\n", "\r\n"])), min_size=8, max_size=20),
    st.integers(0, 2**40),
)
def test_holes_of_any_text_are_of_their_kind(lines, seed):
    text = "".join(line + end for line, end in lines)
    for kind in KINDS:
        try:
            holes = draw_holes([SourceText("f", text)], kind, 3, seed)
        except EdgeError:
            assert len(text.strip()) < 20
            continue
        assert len({(hole.prefix, hole.middle) for hole in holes}) == 3
        for hole in holes:
            assert hole.prefix + hole.middle + hole.suffix == text
            assert hole.middle.strip()
            for left, right in ((hole.prefix, hole.middle), (hole.middle, hole.suffix)):
                assert not (left.endswith("\r") and right.startswith("\n"))
            breaks = hole.middle.count("\n")
            assert breaks == 0 if kind == "single-line" else 2 <= breaks <= 6


def test_draws_depend_on_seed_kind_and_number_only():
    holes = [hole for kind in KINDS for hole in draw_holes(TEXTS, kind, 5, seed=7)]
    assert [hole.name for hole in holes[:2]] == ["a.py:47:17", "a.py:76:10"]
    lines = "".join(json.dumps(astuple(hole)) + "\n" for hole in holes)
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == "5a077c04618e7ac0"
    assert draw_holes(TEXTS, KINDS[1], 30, 7)[:5] == holes[5:]
    (hole,) = draw_holes([SourceText("large.py", CODE * 1000)], "single-line", 1, seed=3)
    assert len(hole.prefix) == len(hole.suffix) == AROUND_CHARACTERS


def test_name_is_a_place_for_edge_complete(tmp_path):
    (tmp_path / "b.py").write_text(TEXTS[1].text, newline="")
    for hole in draw_holes(TEXTS[1:], "multi-line", 5, 0):
        prefix, rest = read_hole(str(tmp_path / hole.name))
        assert (prefix, rest) == (hole.prefix, hole.middle + hole.suffix)


TASK = {
    **{"task_id": "SingleLineInfilling/HumanEval/0/L0", "prompt": "def f():\n", "suffix": ""},
    "canonical_solution": "    return 1\n",
}
ONE = json.dumps(TASK)


def other(**fields):
    return json.dumps({**TASK, **fields})


@pytest.fixture
def read(tmp_path):
    def run(*lines, most=None, pack=lambda data: data):
        path = tmp_path / "tasks.jsonl"
        path.write_bytes(pack("\n".join(lines).encode()))
        return read_humaneval(path, most)

    return run


def test_tasks_are_holes_limited_by_kind(read):
    text = "é\u2028\x85\r\n"  # line ends other than the one between tasks
    lines = (other(test=["a"], entry_point=None), "", "  ", other(task_id="b", prompt=text), "")
    first, second = read(*lines, pack=gzip.compress)
    assert (first.name, first.kind) == (TASK["task_id"], "humaneval-single-line")
    assert (first.prefix, first.middle, first.suffix) == ("def f():\n", "    return 1\n", "")
    assert (second.kind, second.prefix) == ("humaneval", text)
    ids = ("MultiLineInfilling/0", "RandomSpanInfilling/0", "MultiLineInfilling/1")
    kinds = [hole.kind for hole in read(*(other(task_id=name) for name in ids), most=1)]
    assert kinds == ["humaneval-multi-line", "humaneval-random-span"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[]", "line 3 of .* is not a HumanEval infilling task"),
        (other(task_id="x", suffix=None), "suffix"),
        (ONE, "line 3 of .* has the task_id .* of an earlier line"),
    ],
)
def test_invalid_line_is_named(read, line, sentence):
    with pytest.raises(EdgeError, match=sentence):
        read(ONE, "", line)
    with pytest.raises(EdgeError, match="not a whole gzip file"):
        read(ONE, pack=lambda data: gzip.compress(data)[:-9])


@given(st.binary(max_size=60))
def test_any_bytes_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    with pytest.raises(EdgeError):
        read_humaneval(path)
