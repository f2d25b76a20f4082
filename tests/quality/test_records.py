"""What stays on disk after a run that was cut short, and what is believed of it."""

import numpy as np
import pytest

from edge.errors import EdgeError
from edge.quality.divergence import Scores
from edge.quality.records import CHECKSUM_BYTES, DIGEST_BYTES, Records

IDENTITY = {"artefact": "mlx-int4", "fingerprint": "ab"}
POSITIONS = 3
SIZE = DIGEST_BYTES + 16 * POSITIONS + CHECKSUM_BYTES


def key(i):
    return bytes([i]) * DIGEST_BYTES


def scores(i):
    row = np.arange(POSITIONS, dtype=np.float32) + i
    return Scores(row, row / 7, np.array([-1, i, 2**31 - 1], np.int32), -row)


def records(folder, **other):
    return Records(folder, {**IDENTITY, **other}, POSITIONS)


def written(folder, count):
    book = records(folder)
    for i in range(count):
        book.add(key(i), scores(i))
    (file,) = folder.iterdir()
    return file


def test_what_was_added_is_there_again(tmp_path):
    written(tmp_path, 3)
    again = records(tmp_path)
    for i in range(3):
        assert key(i) in again
        for a, b in zip(again[key(i)].columns, scores(i).columns, strict=True):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)
    assert key(3) not in again


@pytest.mark.parametrize("lost", [1, CHECKSUM_BYTES, SIZE - 1])
def test_a_record_that_was_cut_is_not_there_and_not_in_the_way(lost, tmp_path):
    file = written(tmp_path, 2)
    file.write_bytes(file.read_bytes()[:-lost])
    book = records(tmp_path)
    assert key(0) in book
    assert key(1) not in book
    book.add(key(1), scores(1))
    assert all(key(i) in records(tmp_path) for i in range(2))


def test_every_damaged_byte_costs_its_record_only(tmp_path):
    file = written(tmp_path, 2)
    data = file.read_bytes()
    for at in range(len(data) - 2 * SIZE, len(data) - SIZE):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        book = records(tmp_path)
        assert key(0) not in book
        assert np.array_equal(book[key(1)].nll, scores(1).nll)


@pytest.mark.parametrize("content", [b"", b"edge scores 0\n", b"edge scores 1\n\0\0"])
def test_a_file_that_begins_otherwise_is_begun_again(content, tmp_path):
    file = written(tmp_path, 2)
    file.write_bytes(content)
    book = records(tmp_path)
    assert key(0) not in book
    book.add(key(0), scores(0))
    assert key(0) in records(tmp_path)


def test_another_artefact_or_reference_has_another_file(tmp_path):
    written(tmp_path, 1)
    assert key(0) not in records(tmp_path, fingerprint="cd")
    assert key(0) not in records(tmp_path, reference="mlx-fp16")
    assert len(list(tmp_path.iterdir())) == 3
    assert key(0) in records(tmp_path)


def test_forgetting_and_keeping_nothing_on_disk(tmp_path):
    written(tmp_path, 1)
    records(tmp_path).forget()
    assert key(0) not in records(tmp_path)
    book = records(None)
    book.add(key(0), scores(0))
    assert key(0) in book


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EdgeError, match="cannot be"):
        records(tmp_path / "file" / "eval")
