import os
import signal
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import settings

# Float32 products are float32, in the processes that tests start too: MLX reads it when imported.
os.environ["MLX_ENABLE_TF32"] = "0"

import edge  # noqa: F401  before MLX, which it prepares

# isort: split
import mlx.core as mx

from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert

# A slow moment of a shared machine is no failure.
settings.register_profile("edge", deadline=None)
settings.load_profile("edge")

# The bounds of the tests were set on a CPU; EDGE_TEST_DEVICE=gpu runs them where a Mac computes.
mx.set_default_device(mx.gpu if os.environ.get("EDGE_TEST_DEVICE") == "gpu" else mx.cpu)


def _compute_as_on_a_gpu() -> None:
    """Metal's code paths on a CPU: half precision, padded heads, its check of the memory.

    For `EDGE_TEST_DEVICE=as-gpu pytest tests/model tests/generate`, which is slow; what fails then
    is in docs/mac.md.
    """
    import mlx_lm.generate  # noqa: F401  asks for a stream of the real device

    gpu = SimpleNamespace(type=mx.DeviceType.gpu)
    room_bytes = psutil.virtual_memory().total
    info = {"device_name": "a CPU", "memory_size": room_bytes}
    info["max_recommended_working_set_size"] = room_bytes
    mx.default_device = lambda: gpu
    mx.metal.is_available = lambda: True
    mx.device_info = lambda *_: info


if os.environ.get("EDGE_TEST_DEVICE") == "as-gpu":
    _compute_as_on_a_gpu()

DEMO_RECIPES = ("mlx-fp16", "mlx-int4", "gguf-f32", "gguf-f16", "gguf-q5_k_m", "gguf-q6_k")


# In the background of a shell that has no job control SIGINT is ignored, and so it would be in
# every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def demo_out(tmp_path_factory) -> Path:
    """A folder with the demo's artefacts, made once for the whole run; do not write to it."""
    out = tmp_path_factory.mktemp("demo")
    recipes = [RECIPES[name] for name in DEMO_RECIPES]
    convert(open_checkpoint("demo"), recipes, out, lambda *_: None)
    return out


@pytest.fixture(scope="session")
def held_out_text() -> str:
    """Python that is in nobody's training data: an old copy of two of our own files."""
    return (Path(__file__).parent / "support" / "held_out.txt").read_text(encoding="utf-8")
