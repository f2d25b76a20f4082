"""The reader and the writer against the reference implementation, and with damaged files."""

import hashlib
import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save

from edge.errors import EdgeError
from edge.formats import safetensors
from edge.formats.safetensors import INDEX, Planned, ShardWriter, read_header, read_headers

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2.0], dtype=np.float16),
    "c": np.zeros((0, 4), dtype=np.float64),
    "d": np.array([[1, -2], [2**31 - 1, -(2**31)]], dtype=np.int32),
    "e": np.array([[[2**40]], [[-1]]], dtype=np.int64),
    "f": np.array(0.5, dtype=np.float32),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(TENSORS, metadata={"format": "pt"}))
    return path


def write_raw(path, header, data=b""):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("rows", [(), (0, 1), (1, None), (0, 99), (-1, None), (2, 1), (7, 9)])
def test_rows_are_those_of_a_slice(path, rows):
    tensors = read_header(path)
    assert tensors.keys() == TENSORS.keys()
    for name in TENSORS if not rows else "abcde":
        read, wanted = tensors[name].read(*rows), TENSORS[name]
        wanted = wanted[slice(*rows)] if rows else wanted
        assert (read.dtype, read.shape) == (wanted.dtype, wanted.shape)
        assert np.array_equal(read, wanted)
        assert not isinstance(read, np.memmap)


def test_bfloat16_is_widened_exactly(tmp_path):
    bits = (np.array([[1.0, -2.5], [3.14, 1e30]], np.float32).view(np.uint32) >> 16).astype("<u2")
    header = {"x": entry("BF16", (2, 2), (0, 8)), "__metadata__": None}  # MLX writes null
    tensor = read_header(write_raw(tmp_path / "x", header, bits.tobytes()))["x"]
    exact = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(tensor.read(1, 2), exact[1:])


@pytest.mark.parametrize(("left", "words"), [(None, "is missing"), (-1, "cut off since")])
def test_a_file_removed_or_cut_after_opening_is_refused(path, left, words):
    tensor = max(read_header(path).values(), key=lambda tensor: tensor.begin)
    content = path.read_bytes()
    path.unlink() if left is None else path.write_bytes(content[:left])
    with pytest.raises(EdgeError, match=words):
        tensor.read()


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"x": entry()}, b"12", "is cut off: .* bytes of"),
        ({"x": entry()}, b"123456", "2 extra bytes"),
        ({"x": entry(offsets=(0, 8))}, b"12345678", "8 bytes for shape"),
        ({"x": entry(offsets=(4, 8))}, b"12345678", "after a gap"),
        ({"x": entry(), "y": entry()}, b"1234", "overlapping"),
        ({"x": entry(shape=[1] * 10**5)}, b"1234", "not safetensors"),
        ({"x": entry(dtype="U16")}, b"1234", "stored as U16, edge reads F64"),
        ({"__metadata__": {"a": 5}}, b"", "not safetensors"),
        (b"[" * 100_000, b"", "not safetensors"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, header, data, words):
    with pytest.raises(EdgeError, match=rf"x\.safetensors.* {words}"):
        read_header(write_raw(tmp_path / "x.safetensors", header, data))


PLAN = [
    Planned("a.weight", "F16", (5, 3)),
    Planned("b.weight", "U32", (4, 2)),
    Planned("c.bias", "F32", (7,)),
    Planned("d_order", "I32", (3,)),
    Planned("é", "F16", (1, 1)),
]
TYPES = {"F32": np.float32, "F16": np.float16, "U32": np.uint32, "I32": np.int32}


def values(tensor):
    numbers = np.arange(1, 1 + np.prod(tensor.shape)).reshape(tensor.shape)
    return numbers.astype(TYPES[tensor.dtype])


@pytest.mark.parametrize(("shard_bytes", "count"), [(1 << 30, 1), (60, 3), (1, 5)])
def test_all_readers_read_what_was_written(tmp_path, monkeypatch, shard_bytes, count):
    monkeypatch.setattr(safetensors, "SHARD_BYTES", shard_bytes)
    writer = ShardWriter(tmp_path, PLAN)
    for tensor in PLAN:
        for start in range(0, tensor.shape[0], 2):
            rows = values(tensor)[start : start + 2]
            writer.write(np.asfortranarray(rows))  # strided rows are written in order
    writer.finish()
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == count
    for file in files:
        with safe_open(file, "np") as opened:
            assert opened.metadata() == {"format": "mlx"}
        assert min(tensor.begin for tensor in read_header(file).values()) % 8 == 0
    index = json.loads((tmp_path / INDEX).read_text())
    for tensor in PLAN:
        file = tmp_path / index["weight_map"][tensor.name]
        by_us = read_headers(files)[tensor.name].read()
        for found in (load_file(file)[tensor.name], mx.load(str(file))[tensor.name], by_us):
            assert np.array(found).dtype == TYPES[tensor.dtype]
            assert np.array_equal(np.array(found), values(tensor)), tensor.name
    for path in tmp_path.iterdir():
        assert writer.sha256[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert index["metadata"]["total_size"] == sum(tensor.data_bytes for tensor in PLAN)


@pytest.mark.parametrize(
    ("rows", "words"), [(3, "planned tensors are missing"), (5, "2 bytes more than were planned")]
)
def test_data_other_than_planned_is_refused(tmp_path, rows, words):
    writer = ShardWriter(tmp_path, [Planned("a", "F16", (2,)), Planned("b", "F16", (2,))])
    with pytest.raises(ValueError, match=words):
        for _ in range(rows):
            writer.write(np.zeros(1, np.float16))
        writer.finish()
    writer.close()
