"""Files that other readers open, split as planned, and nothing but what was planned."""

import hashlib
import itertools
import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from edge.formats import safetensors_writer
from edge.formats.safetensors import SafetensorsFile
from edge.formats.safetensors_writer import (
    INDEX,
    ITEM_BYTES,
    Planned,
    SafetensorsWriter,
    split_into_shards,
)

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


def write(folder, plan, rows=2):
    """Each tensor in pieces of some rows."""
    folder.mkdir()
    writer = SafetensorsWriter(folder, plan)
    for tensor in plan:
        for start in range(0, tensor.shape[0], rows):
            writer.write(values(tensor)[start : start + rows])
    writer.finish()
    return writer


@pytest.mark.parametrize("shard_bytes", [1 << 30, 60, 1], ids=["one", "some", "one-each"])
def test_every_reader_finds_what_was_written(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(safetensors_writer, "SHARD_BYTES", shard_bytes)
    writer = write(tmp_path / "out", PLAN)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == {1 << 30: 1, 60: 3, 1: len(PLAN)}[shard_bytes]
    by_package, by_mlx, by_us = {}, {}, {}
    for file in files:
        by_package |= load_file(file)
        by_mlx |= mx.load(str(file))
        ours = SafetensorsFile(file)
        by_us |= {name: ours.read(name) for name in ours.entries}
        with safe_open(file, "np") as opened:
            assert opened.metadata() == {"format": "mlx"}
    for tensor in PLAN:
        for found in (by_package, by_mlx, by_us):
            array = np.array(found[tensor.name])
            assert array.dtype == TYPES[tensor.dtype]
            assert np.array_equal(array, values(tensor)), tensor.name
    for path in (tmp_path / "out").iterdir():
        assert writer.sha256[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_shards_and_index_name_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_writer, "SHARD_BYTES", 60)
    write(tmp_path / "out", PLAN)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.data_bytes for tensor in PLAN)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(set(index["weight_map"].values())) == names
    for tensor, file in index["weight_map"].items():
        assert tensor in SafetensorsFile(tmp_path / "out" / file).entries
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([*names, INDEX])


def test_no_shard_is_larger_than_allowed_unless_one_tensor_is(monkeypatch):
    monkeypatch.setattr(safetensors_writer, "SHARD_BYTES", 100)
    plan = [Planned(str(i), "F32", (n,)) for i, n in enumerate([10, 15, 1, 24, 25, 26, 300, 1])]
    shards = split_into_shards(plan)
    assert [tensor for shard in shards for tensor in shard] == plan
    assert all(shards)
    for shard in shards:
        assert sum(tensor.data_bytes for tensor in shard) <= 100 or len(shard) == 1
    # None could have taken the next tensor as well.
    for shard, following in itertools.pairwise(shards):
        assert sum(t.data_bytes for t in shard) + following[0].data_bytes > 100


def test_data_begins_aligned(tmp_path):
    for count in range(1, 9):
        folder = tmp_path / str(count)
        write(folder, [Planned("x" * count, "F32", (2,))])
        assert SafetensorsFile(folder / "model.safetensors").data_begin % 8 == 0


def test_more_than_was_planned_is_refused(tmp_path):
    writer = SafetensorsWriter(tmp_path, [Planned("a", "F16", (2, 2)), Planned("b", "F16", (2,))])
    writer.write(np.zeros((1, 2), np.float16))
    with pytest.raises(ValueError, match="4 bytes more than were planned"):
        writer.write(np.zeros((2, 2), np.float16))
    writer.close()


def test_nothing_follows_the_last_tensor(tmp_path):
    writer = SafetensorsWriter(tmp_path, [Planned("a", "F16", (2,))])
    writer.write(np.zeros(2, np.float16))
    with pytest.raises(ValueError, match="than were planned"):
        writer.write(np.zeros(1, np.float16))


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_missing_rows_and_tensors_are_refused(tmp_path, written):
    writer = SafetensorsWriter(tmp_path, [Planned("a", "F16", (2,)), Planned("b", "F16", (2,))])
    for _ in range(written):
        writer.write(np.zeros(1, np.float16))
    with pytest.raises(ValueError, match="planned tensors are missing"):
        writer.finish()
    writer.close()


def test_strided_rows_are_written_in_order(tmp_path):
    writer = SafetensorsWriter(tmp_path, [Planned("a", "F32", (3, 4))])
    numbers = np.arange(12, dtype=np.float32).reshape(4, 3).T
    writer.write(numbers)
    writer.finish()
    assert np.array_equal(load_file(tmp_path / "model.safetensors")["a"], numbers)


def test_item_sizes_are_the_formats():
    for dtype, kind in TYPES.items():
        assert ITEM_BYTES[dtype] == np.dtype(kind).itemsize
