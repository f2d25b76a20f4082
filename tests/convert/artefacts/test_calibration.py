"""The text to calibrate on: our own sources, or a file of the user's."""

import numpy as np
import pytest

from edge.convert.artefacts.learned import bundled_text, read_text, sequences
from edge.errors import EdgeError
from edge.quality.corpus import iter_texts


class Bytes:
    """A tokenizer with one token a byte."""

    def encode(self, text):
        return list(text.encode())


def test_the_bundled_text_is_code_and_long_enough():
    text = bundled_text()
    assert 100_000 < len(text.encode()) < 2_000_000
    assert "def bundled_text() -> str:" in text
    assert text == bundled_text()


def test_the_bundled_text_has_nothing_of_the_text_that_quality_is_measured_on(held_out_text):
    ours = set(bundled_text().splitlines())
    lines = [line for line in held_out_text.splitlines() if len(line) > 40]
    shared = [line for line in lines if line in ours]
    assert len(shared) < 0.1 * len(lines)
    sample = "".join(t.text for t in iter_texts(None) if t.name.endswith(".py"))
    lines = [line for line in sample.splitlines() if len(line) > 40]
    assert len([line for line in lines if line in ours]) < 0.05 * len(lines)


def test_sequences_are_pieces_of_the_text_in_an_order_the_seed_decides():
    text = "".join(chr(33 + i) for i in range(90))
    drawn = sequences(Bytes(), text, 8, 5, seed=3)
    assert drawn.shape == (5, 8)
    assert drawn.dtype == np.int32
    assert len({int(row[0]) for row in drawn}) == 5
    for row in drawn:
        assert (row[0] - 33) % 8 == 0
        assert bytes(row.tolist()).decode() in text
    assert (drawn == sequences(Bytes(), text, 8, 5, seed=3)).all()
    assert (drawn != sequences(Bytes(), text, 8, 5, seed=4)).any()
    assert sequences(Bytes(), text, 8, 1000, seed=3).shape == (11, 8)


def test_a_text_shorter_than_a_sequence_is_a_sentence():
    with pytest.raises(EdgeError, match="has 5 tokens, one sequence needs 8"):
        sequences(Bytes(), "short", 8, 1, seed=0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"\xff\xfe\x00a", "is no UTF-8 text"),
        (b"PK\x03\x04\x00\x00", "is no text"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_text_is_a_sentence(tmp_path, data, words):
    path = tmp_path / "text"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(EdgeError, match=words):
        read_text(path)


def test_a_text_is_read_as_it_is(tmp_path):
    (tmp_path / "text").write_bytes("a\r\n\tü".encode())
    assert read_text(tmp_path / "text") == "a\r\n\tü"
