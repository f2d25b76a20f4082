"""llama.cpp's quantiser in its child process, and what it says it would do."""

import os
import select
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

from edge import llamacpp_quantise
from edge.checkpoints.artefacts.gguf_plan import (
    data_bytes,
    fallback_warning,
    fallbacks,
    plan,
    plan_file,
    write_hollow,
)
from edge.checkpoints.artefacts.gguf_quantise import quantise
from edge.checkpoints.sources.find import DEMO_PATH
from edge.errors import EdgeError
from edge.gguf_file import read_gguf
from edge.llamacpp import LlamaSession
from edge.model.config import ModelConfig, read_config

Q4_0, Q8_0, Q4_K_M, Q6_K = 2, 7, 15, 18
FILE_TYPES = {
    "q8_0": Q8_0,
    "q6_k": Q6_K,
    "q5_k_m": 17,
    "q5_k_s": 16,
    "q4_k_m": Q4_K_M,
    "q4_0": Q4_0,
    "q4_1": 3,
    "q5_0": 8,
    "q5_1": 9,
    "q3_k_m": 12,
    "q2_k": 10,
}


@pytest.fixture(scope="module")
def f16(demo_out):
    return demo_out / "gguf-f16.gguf"


@pytest.fixture(scope="module")
def demo_plans(f16):
    return plan_file(f16, list(FILE_TYPES.values()))


@pytest.mark.parametrize("file_type", FILE_TYPES.values(), ids=FILE_TYPES)
def test_every_file_type_runs_and_is_foretold_to_the_byte(tmp_path, f16, demo_plans, file_type):
    out = tmp_path / "out.gguf"
    told = []
    quantise(f16, out, file_type, told.append)
    assert told == sorted(told)
    assert told[-1] == 1
    made = {(t.name, t.kind, t.data_bytes) for t in read_gguf(out).tensors}
    foretold = demo_plans[file_type]
    assert made == {(t.name, t.type_name.upper(), t.data_bytes) for t in foretold}
    assert out.stat().st_size == read_gguf(f16).data_begin + data_bytes(foretold)
    assert not any(tensor.fell_back for tensor in foretold)
    assert fallback_warning(out, file_type) is None
    session = LlamaSession(out, 64, 1)
    session.decode([5, 6, 7])
    assert np.isfinite(session.last_logits()).all()
    session.close()


def test_a_plan_needs_no_data(f16, demo_plans):
    shapes = {tensor.name: tensor.shape for tensor in read_gguf(f16).tensors}
    config = read_config(DEMO_PATH / "config.json")
    assert plan(config, shapes, list(FILE_TYPES.values())) == demo_plans


def test_rows_read_in_small_pieces_give_the_same_file(tmp_path, f16, monkeypatch):
    quantise(f16, tmp_path / "whole", Q6_K, lambda _: None)
    monkeypatch.setattr(llamacpp_quantise, "BUFFER_BYTES", 5000)
    llamacpp_quantise.run_quantiser(f16, tmp_path / "pieces", Q6_K, lambda _: None)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


def odd_model(width: int, tmp_path):
    """A model of zeros whose rows have `width` weights."""
    config = ModelConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    shapes = {"token_embd.weight": (64, width), "output.weight": (64, width)}
    shapes |= {"output_norm.weight": (width,), "output_norm.bias": (width,)}
    shapes |= {f"blk.0.attn_{name}.weight": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}.weight": (width, width) for name in ("gate", "up", "down")}
    path = tmp_path / "odd.gguf"
    write_hollow(path, config, shapes)
    return path


@pytest.mark.parametrize(
    ("width", "file_type", "kind"),
    [(160, Q4_K_M, "Q5_0"), (160, Q6_K, "Q8_0"), (100, Q6_K, "F16"), (100, Q4_0, "F16")],
)
def test_rows_that_blocks_do_not_divide_are_reported(tmp_path, width, file_type, kind):
    source, out = odd_model(width, tmp_path), tmp_path / "out.gguf"
    quantise(source, out, file_type, lambda _: None)
    found = fallbacks(out, file_type)
    assert f"blk.0.attn_q.weight: {kind}" in found
    assert len(found) == 9  # seven of the block, embedding, head
    assert "stored 9 tensors in other types" in fallback_warning(out, file_type)
    # llama.cpp gives the head of such a model Q8_0 by its own choice, not as a fallback.
    fell = {t.name for t in plan_file(source, [file_type])[file_type] if t.fell_back}
    assert fell | {"output.weight"} == {f.split(":")[0] for f in found}


def test_rows_of_32_suit_the_small_blocks(tmp_path):
    source, out = odd_model(160, tmp_path), tmp_path / "out.gguf"
    quantise(source, out, Q8_0, lambda _: None)
    assert fallback_warning(out, Q8_0) is None


def test_a_plan_for_what_is_no_model_is_a_sentence(tmp_path):
    (tmp_path / "in.gguf").write_bytes(b"GGUFnonsense" * 10)
    with pytest.raises(EdgeError, match=r"could not plan the quantisation of in\.gguf"):
        plan_file(tmp_path / "in.gguf", [Q6_K])


def test_an_interrupt_ends_the_child(tmp_path, f16):
    before = {child.pid for child in psutil.Process().children()}

    def interrupt(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise(f16, tmp_path / "out.gguf", Q6_K, interrupt)
    assert {child.pid for child in psutil.Process().children()} <= before


def test_a_killed_parent_takes_the_child_and_its_file_along(tmp_path, f16):
    """The target is a pipe that nobody empties, so the child stays in the midst of writing."""
    target = tmp_path / "out.gguf"
    os.mkfifo(target)
    script = (
        "import sys; from pathlib import Path;"
        "from edge.checkpoints.artefacts.gguf_quantise import quantise;"
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
