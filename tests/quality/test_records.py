"""Stored results: keys, interrupted and parallel runs, invalid files."""

import os
from dataclasses import dataclass

import pytest

from edge.errors import EdgeError
from edge.quality.records import Records, fingerprint

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


def test_results_are_read_again_for_the_same_key(tmp_path):
    folder = tmp_path / "new"
    assert records(folder) == {} and not folder.exists()
    assert written(folder).name.startswith("mlx-int4-")
    assert records(folder) == ALL
    assert records(folder, fingerprint="cd") == records(folder, reference="mlx-fp16") == {}
    assert records(folder, again=True) == records(folder) == {}
    (tmp_path / "file").write_text("x")
    with pytest.raises(EdgeError, match="cannot be"):
        records(tmp_path / "file").add("one", ALL["one"])


def test_file_cut_anywhere_is_read_and_continued(tmp_path):
    first, second = records(tmp_path), records(tmp_path)
    first.add("one", ALL["one"])
    second.add("two", ALL["two"])  # as by two runs at once
    assert records(tmp_path) == ALL
    path, whole = first.path, b"\n[]\n\xff{\n" + first.path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "two" not in records(tmp_path)
        written(tmp_path)
        assert records(tmp_path) == ALL


def test_fingerprint_changes_with_the_file(demo_out, tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes((demo_out / "gguf-q6_k.gguf").read_bytes())
    before = fingerprint(file)
    os.utime(file, ns=(1, 1))
    assert fingerprint(file) != before
