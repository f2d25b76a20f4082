"""llama.cpp's quantiser in its child process, with importance matrices and without."""

import os
import select
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize

from edge.errors import EdgeError
from edge.formats.gguf import read_gguf
from edge.llama_cpp import quantise as module
from edge.llama_cpp.quantise import fallback_warning, quantise, read_imatrix, run_quantiser
from tests.support.conversions import make
from tests.support.foreign_gguf import finish
from tests.support.tiny import PLAIN, write_checkpoint

Q4_0, Q8_0, Q4_K_M, Q6_K = 2, 7, 15, 18
CHUNKS, TOKENS = 4, 128
ATTN_Q = "blk.0.attn_q.weight"


@pytest.fixture(scope="module")
def f16(demo_out):
    return demo_out / "gguf-f16.gguf"


def test_rows_read_in_small_pieces_give_the_same_file(tmp_path, f16, monkeypatch):
    quantise(f16, tmp_path / "whole", Q6_K, lambda _: None)
    monkeypatch.setattr(module, "BUFFER_BYTES", 5000)
    run_quantiser(f16, tmp_path / "pieces", Q6_K, None)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


@pytest.mark.parametrize(
    ("width", "file_type", "kind"),
    [(160, Q4_K_M, "Q8_0"), (100, Q6_K, "F16"), (100, Q4_0, "F16"), (160, Q8_0, None)],
)
def test_a_fallback_of_tensor_types_is_reported(tmp_path, width, file_type, kind):
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    raw = {**PLAIN, "hidden_size": width, "intermediate_size": width, **heads}
    (made,) = make(write_checkpoint(tmp_path / "odd", raw), tmp_path, "gguf-f16")
    out = tmp_path / "out.gguf"
    quantise(made.path, out, file_type, lambda _: None)
    warning = fallback_warning(out, file_type)
    if kind is None:
        assert warning is None
    else:  # seven of the block, embedding, head
        assert "stored 9 tensors in other types" in warning
        assert f"(output.weight: {kind})" in warning


def test_an_interrupt_kills_the_child(tmp_path, f16):
    before = {child.pid for child in psutil.Process().children()}

    def interrupt(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise(f16, tmp_path / "out.gguf", Q6_K, interrupt)
    assert {child.pid for child in psutil.Process().children()} <= before


def test_the_child_of_a_killed_parent_removes_its_file_and_ends(tmp_path, f16):
    """The target is a pipe that is not read, so that the child is still writing."""
    target = tmp_path / "out.gguf"
    os.mkfifo(target)
    script = (
        "import sys; from pathlib import Path;"
        "from edge.llama_cpp.quantise import quantise;"
        "quantise(Path(sys.argv[1]), Path(sys.argv[2]), 18, lambda done: None)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(f16), str(target)])
    with target.open("rb", buffering=0) as pipe:
        assert pipe.read(1)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        poll = select.poll()
        poll.register(pipe, select.POLLHUP)
        events = poll.poll(30_000)
    assert events, "the child still writes"
    assert not target.exists()


@pytest.fixture(scope="module")
def sums(f16) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(0)
    matrices = [t for t in read_gguf(f16).tensors if t.name[:4] == "blk." and len(t.shape) == 2]
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


def test_an_importance_matrix_lowers_weighted_errors_and_is_recorded(f16, tmp_path, sums):
    for name, matrix in (("plain", None), ("weighted", write_imatrix(tmp_path / "m.gguf", sums))):
        quantise(f16, tmp_path / name, Q4_K_M, lambda _: None, matrix)
    exact = weights(f16)
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
    no_tokens = write_imatrix(tmp_path / "m.gguf", {ATTN_Q: np.arange(8)}, counts=0)
    assert (read_imatrix(no_tokens).columns[ATTN_Q] == 1).all()


@pytest.mark.parametrize(
    ("sums", "kind", "words"),
    [
        ({"a": np.array([1, np.nan])}, "imatrix", "a holds values"),
        ({"a": np.array([1, -1])}, "imatrix", "a holds values"),
        ({}, "imatrix", "it has no entries"),
        ({"a": np.ones(8)}, "model", r"general\.type 'model'"),
    ],
)
def test_a_file_without_mean_squares_is_refused(tmp_path, sums, kind, words):
    with pytest.raises(EdgeError, match=words):
        read_imatrix(write_imatrix(tmp_path / "m", sums, kind))


def test_a_damaged_importance_matrix_is_refused_or_finite(tmp_path):
    path = write_imatrix(tmp_path / "m", {ATTN_Q: np.ones(8), "b": np.ones(4)})
    data, rng = path.read_bytes(), np.random.RandomState(0)
    for _ in range(300):
        broken = bytearray(data[: rng.randint(len(data) // 2, len(data))])
        broken[rng.randint(len(broken))] = rng.randint(256)
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
        (lambda s: s | {ATTN_Q: np.ones(128)}, "128 columns for .* the model 256"),
        (lambda s: {n: v for n, v in s.items() if "blk.3" not in n}, "no entry for blk.3"),
    ],
)
def test_an_importance_matrix_of_another_model_is_refused(tmp_path, f16, sums, change, words):
    path = write_imatrix(tmp_path / "m.gguf", change(dict(sums)))
    with pytest.raises(EdgeError, match=words):
        quantise(f16, tmp_path / "out", Q4_K_M, lambda _: None, path)
    assert not (tmp_path / "out").exists()
