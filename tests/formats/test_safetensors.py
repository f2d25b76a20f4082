import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from edge.errors import EdgeError
from edge.formats.safetensors import SafetensorsFile

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.0], dtype=np.float16),
    "c": np.zeros((0, 4), dtype=np.float64),
    "d": np.array([[1, -2], [2**31 - 1, -(2**31)]], dtype=np.int32),
    "e": np.array([[[2**40]], [[-1]]], dtype=np.int64),
    "f": np.array(0.5, dtype=np.float32),
}


def write(path, header, data=b""):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_reference_implementation_writes(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(TENSORS, metadata={"format": "pt"}))
    file = SafetensorsFile(path)
    assert file.entries.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        read = file.read(name)
        assert read.dtype == array.dtype
        assert np.array_equal(read, array)


def test_bfloat16_is_widened_exactly(tmp_path):
    values = np.array([1.0, -2.5, 3.140625, 1e30], dtype=np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    header = {"x": entry("BF16", (4,), (0, 8))}
    file = SafetensorsFile(write(tmp_path / "x.safetensors", header, bits.tobytes()))
    exact = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(file.read("x"), exact)
    assert file.read("x")[1] == -2.5


@pytest.mark.parametrize("rows", [(0, 1), (1, 2), (1, None), (0, 99), (-1, None), (2, 1), (7, 9)])
def test_rows_are_those_of_a_slice(tmp_path, rows):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(TENSORS))
    file = SafetensorsFile(path)
    for name in "abcde":
        assert np.array_equal(file.read(name, *rows), TENSORS[name][slice(*rows)])
        assert file.read(name, *rows).shape == TENSORS[name][slice(*rows)].shape
    assert file.read("f", *rows) == 0.5


def test_rows_of_bfloat16(tmp_path):
    bits = np.arange(6, dtype=np.uint16) << 7
    file = SafetensorsFile(
        write(tmp_path / "x.safetensors", {"x": entry("BF16", (3, 2), (0, 12))}, bits.tobytes())
    )
    assert np.array_equal(file.read("x", 1, 2), file.read("x")[1:2])
    assert file.read("x", 1, 2).shape == (1, 2)


def test_what_is_read_is_memory_of_its_own(tmp_path):
    """No page of the file stays mapped, and no other reader sees a change."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(TENSORS))
    file = SafetensorsFile(path)
    file.read("a")[:] = 7
    assert not isinstance(file.read("a"), np.memmap)
    assert np.array_equal(file.read("a"), TENSORS["a"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut off since it was opened"),
        (lambda path: path.write_bytes(b""), "cut off since it was opened"),
        (lambda path: path.unlink(), "cannot be read any more"),
    ],
)
def test_a_file_that_changes_after_it_was_opened(tmp_path, change, words):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": TENSORS["a"]}))
    file = SafetensorsFile(path)
    change(path)
    with pytest.raises(EdgeError, match=words):
        file.read("a")


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"x": entry()}, b"12", "is cut off: .* bytes of"),
        ({"x": entry()}, b"123456", "2 bytes too many"),
        ({"x": entry(offsets=(0, 8))}, b"12345678", "8 bytes for shape"),
        ({"x": entry(offsets=(4, 8))}, b"12345678", "after a gap"),
        ({"x": entry(), "y": entry()}, b"1234", "overlapping"),
        ({"x": entry(dtype="U16")}, b"1234", "stored as U16"),
        ({"x": entry(shape=(-1,), offsets=(4, 0))}, b"1234", "not safetensors"),
        ({"x": entry(shape=("1",))}, b"1234", "not safetensors"),
        ({"x": {"dtype": "F32"}}, b"", "not safetensors"),
        ({"x": None}, b"", "not safetensors"),
        (b"[]", b"", "not safetensors"),
        (b"\xff\xfe", b"", "not safetensors"),
        (b"[" * 100_000, b"", "not safetensors"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, header, data, words):
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(EdgeError, match=words) as error:
        SafetensorsFile(path)
    assert "x.safetensors" in str(error.value)


def test_headers_that_lie_about_their_length(tmp_path):
    path = tmp_path / "x.safetensors"
    for content in (b"", b"1234", (10**15).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(EdgeError, match="cut off inside its header"):
            SafetensorsFile(path)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_mutated_file_never_crashes(tmp_path_factory, data):
    """Whatever bytes change, the answer is a sentence or tensors of the declared shapes."""
    content = bytearray(save(TENSORS))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(len(content) // 2, len(content))) :]
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
    except EdgeError:
        return
    for name, field in file.entries.items():
        assert file.read(name).shape == field.shape
