"""Importance matrices: read, recorded, and used."""

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize

from edge.errors import EdgeError
from edge.formats.gguf import read_gguf
from edge.llama_cpp.quantise import quantise, read_imatrix
from tests.support.foreign_gguf import finish

Q4_K_M = 15
CHUNKS, TOKENS = 4, 128


@pytest.fixture(scope="module")
def sums(demo_out) -> dict[str, np.ndarray]:
    """Random sums of squares for every matrix of the blocks."""
    rng = np.random.RandomState(0)
    tensors = read_gguf(demo_out / "gguf-f16.gguf").tensors
    matrices = [t for t in tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    return {t.name: rng.lognormal(0, 2, t.shape[1]).astype(np.float32) for t in matrices}


def write_imatrix(path, sums, kind="imatrix", counts=CHUNKS * TOKENS):
    writer = GGUFWriter(str(path), "")
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["held_out.txt"])
    writer.add_uint32("imatrix.chunk_count", CHUNKS)
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values.reshape(1, -1).astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.full((1, 1), counts, np.float32))
    finish(writer)
    return path


def weights(path):
    return {
        t.name: (t.tensor_type.name, dequantize(t.data, t.tensor_type))
        for t in GGUFReader(path).tensors
    }


def test_weighted_errors_go_down_and_the_file_records_the_matrix(demo_out, tmp_path, sums):
    source = demo_out / "gguf-f16.gguf"
    for name, matrix in (("plain", None), ("weighted", write_imatrix(tmp_path / "m.gguf", sums))):
        quantise(source, tmp_path / name, Q4_K_M, lambda _: None, matrix)
    exact = weights(source)
    plain, weighted = weights(tmp_path / "plain"), weights(tmp_path / "weighted")
    q4 = [name for name in sums if plain[name][0] == "Q4_K"]
    assert len(q4) >= 10
    for name in q4:
        errors = (np.square(x[name][1] - exact[name][1]) @ sums[name] for x in (weighted, plain))
        better, worse = (error.sum() for error in errors)
        assert better < 0.98 * worse
    keys = read_gguf(tmp_path / "weighted").keys
    assert {k: v for k, v in keys.items() if k.startswith("quantize.imatrix.")} == {
        "quantize.imatrix.file": "m.gguf",
        "quantize.imatrix.dataset": "held_out.txt",
        "quantize.imatrix.entries_count": 28,
        "quantize.imatrix.chunks_count": CHUNKS,
    }


def test_a_matrix_without_counted_tokens_weighs_nothing(tmp_path):
    path = write_imatrix(tmp_path / "m", {"blk.0.attn_q.weight": np.arange(8)}, counts=0)
    assert (read_imatrix(path).columns["blk.0.attn_q.weight"] == 1).all()


@pytest.mark.parametrize(
    ("sums", "kind", "words"),
    [
        *(({"a": np.array([1, bad])}, "imatrix", "a holds values") for bad in (np.nan, np.inf, -1)),
        ({}, "imatrix", "it has no entries"),
        ({"a": np.ones(8)}, "model", r"general\.type 'model'"),
    ],
)
def test_what_holds_no_mean_squares_is_refused(tmp_path, sums, kind, words):
    with pytest.raises(EdgeError, match=words):
        read_imatrix(write_imatrix(tmp_path / "m", sums, kind))


def test_damaged_files_are_at_worst_a_sentence(tmp_path):
    sums = {"blk.0.attn_q.weight": np.ones(8), "b": np.ones(4)}
    path = write_imatrix(tmp_path / "m", sums)
    data, rng = path.read_bytes(), np.random.RandomState(0)
    end = max(t.begin + t.data_bytes for t in read_gguf(path).tensors)  # padding follows
    for length in range(0, end, 3):
        path.write_bytes(data[:length])
        with pytest.raises(EdgeError):
            read_imatrix(path)
    for _ in range(300):
        broken = bytearray(data)
        broken[rng.randint(len(data))] = rng.randint(256)
        path.write_bytes(broken)
        try:
            found = read_imatrix(path)
        except EdgeError:
            continue
        assert all(np.isfinite(v).all() for v in found.columns.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {"blk.9.attn_q.weight": np.ones(256)}, "blk.9.attn_q.weight, the model no"),
        (lambda s: s | {"blk.0.attn_q.weight": np.ones(128)}, "128 columns for .* the model 256"),
        (lambda s: {n: v for n, v in s.items() if "blk.3" not in n}, "no entry for blk.3"),
    ],
)
def test_another_models_matrix_is_refused(tmp_path, demo_out, sums, change, words):
    path = write_imatrix(tmp_path / "m.gguf", change(dict(sums)))
    with pytest.raises(EdgeError, match=words):
        quantise(demo_out / "gguf-f16.gguf", tmp_path / "out", Q4_K_M, lambda _: None, path)
    assert not (tmp_path / "out").exists()
