"""A run that was stopped goes on where it was."""

import json
import os

import pytest

from edge.errors import EdgeError
from edge.quality.fim.hole import Hole
from edge.quality.fim.journal import Journal

KEY = {"artefact": "mlx-fp16", "order": "psm"}
ONE, TWO = (Hole(name, "single-line", "a", "c", "b") for name in ("one", "two"))


def test_what_was_added_is_there_again(tmp_path):
    journal = Journal(tmp_path / "new", KEY)
    assert journal.get(ONE) is None
    assert not (tmp_path / "new").exists()
    journal.add(ONE, {"text": "é\u2028\ud800"})
    assert journal.get(ONE) == {"text": "é\u2028\ud800"}
    again = Journal(tmp_path / "new", KEY)
    assert again.get(ONE) == {"text": "é\u2028\ud800"}
    assert again.get(TWO) is None
    again.add(TWO, {"text": ""})
    lines = again.path.read_text().splitlines()
    assert json.loads(lines[0]) == {"key": KEY}
    assert len(lines) == 3


@pytest.mark.parametrize("change", [{"order": "spm"}, {"fingerprint": "x"}])
def test_under_another_key_nothing_is_known(tmp_path, change):
    Journal(tmp_path, KEY).add(ONE, {"text": "b"})
    assert Journal(tmp_path, {**KEY, **change}).get(ONE) is None


@pytest.mark.parametrize("change", ["name", "kind", "prefix", "suffix", "middle"])
def test_a_hole_is_everything_that_it_is(tmp_path, change):
    journal = Journal(tmp_path, KEY)
    journal.add(ONE, {"text": "b"})
    other = Hole(**{**{f: getattr(ONE, f) for f in Hole.__dataclass_fields__}, change: "x"})
    assert journal.get(other) is None


def test_whatever_a_kill_leaves_is_read_and_mended(tmp_path):
    journal = Journal(tmp_path, KEY)
    journal.add(ONE, {"text": "b"})
    journal.add(TWO, {"text": "c"})
    whole = journal.path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole)):
        journal.path.write_bytes(whole[:length])
        left = Journal(tmp_path, KEY)
        assert (left.get(ONE) is not None, left.get(TWO) is not None) == (length >= ends[1], False)
        for hole, text in ((ONE, "b"), (TWO, "c")):
            if left.get(hole) is None:
                left.add(hole, {"text": text})
        assert journal.path.read_bytes() == whole


def test_two_that_write_at_once_lose_nothing(tmp_path):
    first, second = Journal(tmp_path, KEY), Journal(tmp_path, KEY)
    three = Hole("three", "single-line", "a", "c", "b")
    first.add(ONE, {"text": "1"})
    second.add(TWO, {"text": "2"})
    first.add(three, {"text": "3"})
    found = Journal(tmp_path, KEY)
    assert [found.get(hole) for hole in (ONE, TWO, three)] == [{"text": c} for c in "123"]


def test_two_that_find_a_cut_line_mend_it_once(tmp_path):
    path = Journal(tmp_path, KEY).path
    Journal(tmp_path, KEY).add(ONE, {"text": "1"})
    path.write_bytes(path.read_bytes() + b'{"hole": "ab')
    first, second = Journal(tmp_path, KEY), Journal(tmp_path, KEY)
    first.add(TWO, {"text": "a text that is longer than what was cut off"})
    second.add(Hole("three", "single-line", "a", "c", "b"), {"text": "3"})
    assert Journal(tmp_path, KEY).get(TWO) is not None
    assert path.read_bytes().count(b"\n") == 4


def test_a_first_line_that_two_wrote_is_read(tmp_path):
    journal = Journal(tmp_path, KEY)
    journal.add(ONE, {"text": "1"})
    line = journal.path.read_bytes().splitlines(keepends=True)[0]
    journal.path.write_bytes(line + journal.path.read_bytes())
    assert Journal(tmp_path, KEY).get(ONE) == {"text": "1"}


@pytest.mark.parametrize("text", ["x\n", "{}\n", '{"key": {}}\n', "[]\n", '{"key": 1}\n{"a": 1}\n'])
def test_a_file_that_is_none_of_ours_is_not_touched(tmp_path, text):
    path = Journal(tmp_path, KEY).path
    path.write_text(text)
    with pytest.raises(EdgeError, match="is no journal of edge eval; delete it"):
        Journal(tmp_path, KEY)
    assert path.read_text() == text


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeError, match=r"cannot be (read|written)"):
        Journal(tmp_path / "file", KEY).add(ONE, {"text": ""})
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(EdgeError, match="cannot be written"):
            Journal(tmp_path / "closed", KEY).add(ONE, {"text": ""})
