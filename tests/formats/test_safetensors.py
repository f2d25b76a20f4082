"""The reader and the writer against the reference implementation, and files that lie."""

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
    assert np.array_equal(tensor.read(), exact)
    assert np.array_equal(tensor.read(1, 2), exact[1:])


@pytest.mark.parametrize("left", [None, 0, -1])
def test_a_file_that_changes_after_it_was_opened_is_refused(path, left):
    tensor = max(read_header(path).values(), key=lambda tensor: tensor.begin)
    content = path.read_bytes()
    path.unlink() if left is None else path.write_bytes(content[:left])
    with pytest.raises(EdgeError, match="is missing" if left is None else "cut off since"):
        tensor.read()


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"x": entry()}, b"12", "is cut off: .* bytes of"),
        ({"x": entry()}, b"123456", "2 bytes too many"),
        ({"x": entry(offsets=(0, 8))}, b"12345678", "8 bytes for shape"),
        ({"x": entry(offsets=(4, 8))}, b"12345678", "after a gap"),
        ({"x": entry(), "y": entry()}, b"1234", "overlapping"),
        ({"x": entry(shape=[2**62, 4])}, b"1234", "bytes for shape"),
        ({"x": entry(shape=[1] * 10**5)}, b"1234", "not safetensors"),
        ({"x": entry(shape=[-1], offsets=(4, 0))}, b"1234", "not safetensors"),
        ({"x": entry(shape=[True])}, b"1234", "not safetensors"),
        ({"x": entry(dtype=["F32"])}, b"1234", "not safetensors"),
        ({"x": entry(dtype="U16")}, b"1234", "stored as U16, edge reads F64"),
        ({"x": None}, b"", "not safetensors"),
        ({"__metadata__": {"a": 5}}, b"", "not safetensors"),
        (b'{"x": 1, "x": 1}', b"", "not safetensors"),
        (b"[]", b"", "not safetensors"),
        (b"[" * 100_000, b"", "not safetensors"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, data, words):
    with pytest.raises(EdgeError, match=words) as error:
        read_header(write_raw(tmp_path / "x.safetensors", header, data))
    assert "x.safetensors" in str(error.value)


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
def test_every_reader_finds_what_was_written(tmp_path, monkeypatch, shard_bytes, count):
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
        first = min(tensor.begin for tensor in read_header(file).values())
        assert first % 8 == 0
    for tensor in PLAN:
        file = tmp_path / json.loads((tmp_path / INDEX).read_text())["weight_map"][tensor.name]
        by_us = read_headers(files)[tensor.name].read()
        for found in (load_file(file)[tensor.name], mx.load(str(file))[tensor.name], by_us):
            assert np.array(found).dtype == TYPES[tensor.dtype]
            assert np.array_equal(np.array(found), values(tensor)), tensor.name
    for path in tmp_path.iterdir():
        assert writer.sha256[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    total = json.loads((tmp_path / INDEX).read_text())["metadata"]["total_size"]
    assert total == sum(tensor.data_bytes for tensor in PLAN)


def test_no_shard_is_larger_than_allowed_unless_one_tensor_is(monkeypatch):
    monkeypatch.setattr(safetensors, "SHARD_BYTES", 100)
    plan = [Planned(str(i), "F32", (n,)) for i, n in enumerate([10, 15, 1, 24, 25, 26, 300, 1])]
    shards = safetensors.split_into_shards(plan)
    names = [[tensor.name for tensor in shard] for shard in shards]
    assert names == [["0", "1"], ["2", "3"], ["4"], ["5"], ["6"], ["7"]]


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5])
def test_other_than_was_planned_is_refused(tmp_path, rows):
    writer = ShardWriter(tmp_path, [Planned("a", "F16", (2,)), Planned("b", "F16", (2,))])
    words = "2 bytes more than were planned" if rows > 4 else "planned tensors are missing"
    with pytest.raises(ValueError, match=words):
        for _ in range(rows):
            writer.write(np.zeros(1, np.float16))
        writer.finish()
    writer.close()
