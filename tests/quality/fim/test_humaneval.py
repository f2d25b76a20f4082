"""HumanEval infilling files as people have them, and broken ones."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import EdgeError
from edge.quality.fim.humaneval import read_humaneval

TASK = {
    "task_id": "SingleLineInfilling/HumanEval/0/L0",
    "prompt": "def add(a, b):\n",
    "suffix": "",
    "canonical_solution": "    return a + b\n",
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}
LINE = json.dumps(TASK)


def other(**fields):
    return json.dumps({**TASK, **fields})


@pytest.fixture
def read(tmp_path):
    def run(*lines, pack=lambda data: data):
        path = tmp_path / "tasks.jsonl"
        data = "\n".join(lines) if isinstance(lines[0], str) else lines[0]
        path.write_bytes(pack(data.encode() if isinstance(data, str) else data))
        return read_humaneval(path)

    return run


def test_a_task_is_a_hole(read):
    (hole,) = read(LINE)
    assert (hole.name, hole.kind) == (TASK["task_id"], "humaneval-single-line")
    assert (hole.prefix, hole.middle, hole.suffix) == ("def add(a, b):\n", "    return a + b\n", "")


def test_kinds_are_told_by_the_task_id(read):
    ids = ["MultiLineInfilling/HumanEval/0/L0_L1", "RandomSpanInfilling/HumanEval/0/1",
           "RandomSpanInfillingLight/HumanEval/0/1", "mine"]  # fmt: skip
    holes = read(*(other(task_id=name) for name in ids))
    assert [hole.kind.removeprefix("humaneval") for hole in holes] == [
        "-multi-line", "-random-span", "-random-span-light", "",
    ]  # fmt: skip


def test_gzip_blank_lines_and_any_character(read):
    text = "é\u2028\x85\r\n"
    holes = read(LINE, "", "  ", other(task_id="b", prompt=text), "", pack=gzip.compress)
    assert holes[1].prefix == text


def test_other_fields_are_left_unread(read):
    assert read(other(test=["a"], entry_point=None, more=1)) == read(LINE)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 3 of .* is no JSON"),
        ("[]", "line 3 of .* holds no JSON object"),
        ('{"a": 1, "a": 2}', "line 3 of .* is no JSON .*'a' is there twice"),
        ('{"task_id": "x"}', "line 3 of .* has no text 'prompt'"),
        (other(task_id="x", suffix=None), "line 3 of .* has no text 'suffix'"),
        (other(task_id="x", canonical_solution=3), "has no text 'canonical_solution'"),
        (LINE, "line 3 of .* has the task_id .* of line 1"),
        (other(task_id="x", prompt="\ud800"), "line 3 of .* is no JSON"),
    ],
)
def test_a_broken_line_is_named(read, line, sentence):
    with pytest.raises(EdgeError, match=sentence):
        read(LINE, "", line)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\xff\xfe", "line 1 of .* is no JSON"),
        (gzip.compress(LINE.encode())[:-9], "no whole gzip file"),
        (b"\x1f\x8bxxxxxxxxxxxxxxxxxxx", "no whole gzip file"),
    ],
)
def test_a_broken_file_is_said(read, data, sentence):
    with pytest.raises(EdgeError, match=sentence):
        read(data)


def test_no_file(tmp_path):
    with pytest.raises(EdgeError, match="is not there"):
        read_humaneval(tmp_path / "none")
    with pytest.raises(EdgeError, match="is no file"):
        read_humaneval(tmp_path)


@given(st.binary(max_size=60))
def test_any_bytes_are_tasks_or_one_sentence(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    with pytest.raises(EdgeError):
        read_humaneval(path)
