"""Results on disk after a run that was stopped, of windows and holes alike."""

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


ALL = {"one": Result("é\u2028\n\x00", bytes(range(256))), "two": Result("", b"")}


def records(folder, again=False, **other):
    return Records(folder, {**KEY, **other}, Result, again)


def written(folder):
    found = records(folder)
    for name, value in ALL.items():
        found.add(name, value)
    return found.path


def test_results_are_there_again_unless_they_are_forgotten(tmp_path):
    folder = tmp_path / "new"
    assert records(folder) == {} and not folder.exists()
    assert written(folder).name.startswith("mlx-int4-")
    assert records(folder) == ALL
    assert records(folder, fingerprint="cd") == records(folder, reference="mlx-fp16") == {}
    assert records(folder, again=True) == records(folder) == {}


def test_file_cut_anywhere_is_read_and_continued(tmp_path):
    first, second = records(tmp_path), records(tmp_path)
    first.add("one", ALL["one"])
    second.add("two", ALL["two"])  # as two runs at once do
    assert records(tmp_path) == ALL
    path, whole = first.path, first.path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "two" not in records(tmp_path)
        written(tmp_path)
        assert records(tmp_path) == ALL


@pytest.mark.parametrize("junk", [b"\n[]", b'\n{"one": 1}', b'\n{"hole": "x"}', b"\n\xff{"])
def test_lines_of_another_form_are_skipped(junk, tmp_path):
    path = written(tmp_path)
    path.write_bytes(junk + path.read_bytes() + junk)
    assert records(tmp_path) == ALL


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EdgeError, match="cannot be"):
        records(tmp_path / "file").add("one", ALL["one"])


def test_fingerprint_changes_with_a_file(demo_out, tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes((demo_out / "gguf-q6_k.gguf").read_bytes())
    before = fingerprint(file)
    os.utime(file, ns=(1, 1))
    assert fingerprint(file) != before
    assert Subject("x", demo_out / "mlx-fp16").is_mlx and not Subject("x", file).is_mlx
