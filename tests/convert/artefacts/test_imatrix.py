"""Importance matrices from the demo's real activations."""

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import load_tokenizer

from edge.convert.artefacts.gguf import LAYER_NAMES
from edge.convert.artefacts.imatrix import check_imatrix, read_imatrix
from edge.errors import EdgeError
from edge.formats.gguf import read_gguf
from edge.llama_cpp.quantise import quantise
from edge.model.load import load_model

Q4_K_M = 15
CHUNKS, TOKENS = 4, 128


class Squares(nn.Module):
    """A linear layer that sums the squares of its inputs."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.sums = 0

    def __call__(self, x):
        self.sums = self.sums + x.astype(mx.float32).square().sum(axis=(0, 1))
        return self.inner(x)


@pytest.fixture(scope="module")
def sums(demo_out, held_out_text) -> dict[str, np.ndarray]:
    """Summed squares of every linear's inputs over CHUNKS * TOKENS tokens, by GGUF name."""
    model = load_model(demo_out / "mlx-fp16", fuse=False)
    leaves = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    watched = {
        name: Squares(module)
        for name, module in leaves
        if name.startswith("model.layers.") and isinstance(module, nn.Linear)
    }
    model.update_modules(tree_unflatten(list(watched.items())))
    ids = load_tokenizer(demo_out / "mlx-fp16").encode(held_out_text)[: CHUNKS * TOKENS]
    mx.eval(model(mx.array(ids).reshape(CHUNKS, TOKENS)), [m.sums for m in watched.values()])
    return {gguf_name(name): np.array(module.sums) for name, module in watched.items()}


def gguf_name(name):
    _, _, layer, path = name.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[path]}.weight"


def write_imatrix(path, sums, kind="imatrix", counts=CHUNKS * TOKENS):
    writer = GGUFWriter(str(path), "")
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["held_out.txt"])
    writer.add_uint32("imatrix.chunk_count", CHUNKS)
    writer.add_uint32("imatrix.chunk_size", TOKENS)
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values.reshape(1, -1).astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.full((1, 1), counts, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, demo_out, sums):
    """The demo as q4_k_m: without a matrix, and with it."""
    folder = tmp_path_factory.mktemp("imatrix")
    matrices = {"plain": None, "weighted": write_imatrix(folder / "demo.gguf", sums)}
    for name, matrix in matrices.items():
        source, target = demo_out / "gguf-f16.gguf", folder / f"{name}.out"
        quantise(source, target, Q4_K_M, lambda _: None, matrix)
    return folder


def weights(path):
    return {
        t.name: (t.tensor_type.name, dequantize(t.data, t.tensor_type))
        for t in GGUFReader(path).tensors
    }


def test_weighted_errors_go_down(demo_out, made, sums):
    exact = weights(demo_out / "gguf-f16.gguf")
    plain, weighted = (weights(made / f"{name}.out") for name in ("plain", "weighted"))
    q4 = [name for name in sums if plain[name][0] == "Q4_K"]
    assert len(q4) >= 10

    def error(quantised, name):
        return float((np.square(quantised[name][1] - exact[name][1]) @ sums[name]).sum())

    ratios = np.array([error(weighted, name) / error(plain, name) for name in q4])
    assert ratios.mean() < 0.95
    assert ratios.max() < 1.0


def test_the_quantised_file_records_the_matrix(made):
    keys = read_gguf(made / "weighted.out").keys
    assert {k: v for k, v in keys.items() if k.startswith("quantize.imatrix.")} == {
        "quantize.imatrix.file": "demo.gguf",
        "quantize.imatrix.dataset": "held_out.txt",
        "quantize.imatrix.entries_count": 28,
        "quantize.imatrix.chunks_count": CHUNKS,
    }


def test_a_matrix_without_counted_tokens_weighs_nothing(tmp_path):
    path = write_imatrix(tmp_path / "m", {"blk.0.attn_q.weight": np.arange(8)}, counts=0)
    assert (read_imatrix(path).columns["blk.0.attn_q.weight"] == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_numbers_that_are_no_squares_are_refused(tmp_path, bad):
    values = np.ones(8, np.float32)
    values[3] = bad
    path = write_imatrix(tmp_path / "m", {"blk.0.attn_q.weight": values})
    with pytest.raises(EdgeError, match=r"blk\.0\.attn_q\.weight holds values"):
        read_imatrix(path)


def test_a_file_cut_anywhere_is_a_sentence(tmp_path):
    path = write_imatrix(tmp_path / "m", {"blk.0.attn_q.weight": np.ones(8), "b": np.ones(4)})
    data = path.read_bytes()
    end = max(t.begin + t.data_bytes for t in read_gguf(path).tensors)  # padding follows
    for length in range(end):
        path.write_bytes(data[:length])
        with pytest.raises(EdgeError):
            read_imatrix(path)


def test_wrong_bytes_are_at_worst_a_sentence(tmp_path):
    sums = {"blk.0.attn_q.weight": np.ones(8), "b": np.ones(4)}
    rng = np.random.RandomState(0)
    data = write_imatrix(tmp_path / "m", sums).read_bytes()
    for _ in range(300):
        broken = bytearray(data)
        broken[rng.randint(len(data))] = rng.randint(256)
        (tmp_path / "m").write_bytes(broken)
        try:
            found = read_imatrix(tmp_path / "m")
        except EdgeError:
            continue
        assert all(np.isfinite(v).all() for v in found.columns.values())


def test_other_files_are_refused(tmp_path, demo_out):
    with pytest.raises(EdgeError, match=r"cannot be read \(No such file"):
        read_imatrix(tmp_path / "missing")
    with pytest.raises(EdgeError, match=r"general\.type 'model'"):
        read_imatrix(demo_out / "gguf-f16.gguf")
    (tmp_path / "old.dat").write_bytes(b"\1\0\0\0\5\0\0\0blk.0")
    with pytest.raises(EdgeError, match="is not a GGUF file; if an older llama-imatrix made it"):
        read_imatrix(tmp_path / "old.dat")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {"blk.9.attn_q.weight": np.ones(256)}, "blk.9.attn_q.weight, the model no"),
        (lambda s: s | {"blk.0.attn_q.weight": np.ones(128)}, "128 columns for .* the model 256"),
        (lambda s: {n: v for n, v in s.items() if "blk.3" not in n}, "no entry for blk.3"),
    ],
)
def test_another_models_matrix_is_refused_before_anything_is_written(
    tmp_path, demo_out, sums, change, words
):
    path = write_imatrix(tmp_path / "m.gguf", change(dict(sums)))
    source, target = demo_out / "gguf-f16.gguf", tmp_path / "out"
    with pytest.raises(EdgeError, match=words):
        check_imatrix(read_imatrix(path), source)
    with pytest.raises(EdgeError, match=words):
        quantise(source, target, Q4_K_M, lambda _: None, path)
    assert not target.exists()
