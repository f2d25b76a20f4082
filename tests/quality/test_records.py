"""Results on disk after a run that was stopped, by windows or holes alike."""

import os
from dataclasses import dataclass

import pytest

from edge.errors import EdgeError
from edge.quality.records import Records, Subject, fingerprint

KEY = {"artefact": "mlx-int4", "fingerprint": "ab"}


@dataclass(frozen=True)
class Result:
    text: str
    data: bytes


ONE, TWO, THREE = Result("é\u2028\n\x00", bytes(range(256))), Result("", b""), Result("3", b"3")


def records(folder, again=False, **other):
    return Records(folder, {**KEY, **other}, Result, again)


def written(folder):
    found = records(folder)
    found.add("one", ONE)
    found.add("two", TWO)
    return found.path


def test_results_are_there_again(tmp_path):
    assert "one" not in records(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    path = written(tmp_path / "new")
    assert path.name.startswith("mlx-int4-")
    again = records(tmp_path / "new")
    assert (again["one"], again["two"]) == (ONE, TWO)
    assert "three" not in again


def test_another_key_has_another_file(tmp_path):
    written(tmp_path)
    assert "one" not in records(tmp_path, fingerprint="cd")
    assert "one" not in records(tmp_path, reference="mlx-fp16")
    assert "one" in records(tmp_path)


def test_file_cut_anywhere_is_read_and_continued(tmp_path):
    path = written(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = records(tmp_path)
        assert "two" not in found
        found.add("one", ONE)
        found.add("two", TWO)
        again = records(tmp_path)
        assert (again["one"], again["two"]) == (ONE, TWO)


@pytest.mark.parametrize("junk", [b"\n[]", b'\n{"name": "one"}', b'\n{"hole": "x"}', b"\n\xff{"])
def test_lines_of_another_form_are_skipped(junk, tmp_path):
    path = written(tmp_path)
    path.write_bytes(junk + path.read_bytes() + junk)
    assert records(tmp_path)["two"] == TWO


def test_two_runs_at_once_lose_nothing(tmp_path):
    first, second = records(tmp_path), records(tmp_path)
    first.add("one", ONE)
    second.add("two", TWO)
    first.add("three", THREE)
    found = records(tmp_path)
    assert [found[name] for name in ("one", "two", "three")] == [ONE, TWO, THREE]


def test_forgetting_and_keeping_nothing_on_disk(tmp_path):
    written(tmp_path)
    assert "one" not in records(tmp_path, again=True)
    assert "one" not in records(tmp_path)
    kept = records(None)
    kept.add("one", ONE)
    assert kept["one"] == ONE


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EdgeError, match="cannot be"):
        records(tmp_path / "file").add("one", ONE)


def test_fingerprint_changes_with_a_file(demo_out, tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes((demo_out / "gguf-q6_k.gguf").read_bytes())
    before = fingerprint(file)
    assert fingerprint(file) == before
    os.utime(file, ns=(1, 1))
    assert fingerprint(file) != before
    assert Subject("x", demo_out / "mlx-fp16").is_mlx and not Subject("x", file).is_mlx
