"""llama.cpp's quantiser in its child process."""

import os
import select
import signal
import subprocess
import sys

import psutil
import pytest

from edge.llama_cpp import quantise as module
from edge.llama_cpp.quantise import fallback_warning, quantise, run_quantiser
from tests.support.conversions import make
from tests.support.tiny import PLAIN, write_checkpoint

Q4_0, Q8_0, Q4_K_M, Q6_K = 2, 7, 15, 18


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
def test_rows_that_blocks_do_not_divide_are_reported(tmp_path, width, file_type, kind):
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
