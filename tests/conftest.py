import os
import signal
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import settings

# No TF32 in float32 products, also in child processes: MLX reads it when imported.
os.environ["MLX_ENABLE_TF32"] = "0"

import edge  # noqa: F401  must be imported before MLX

# isort: split
import mlx.core as mx

from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.convert.sources.find import smollm2_file
from edge.errors import EdgeError

settings.register_profile("edge", deadline=None)
settings.load_profile("edge")

# Tolerances were set on a CPU; EDGE_TEST_DEVICE=gpu runs the tests on a Mac's GPU.
mx.set_default_device(mx.gpu if os.environ.get("EDGE_TEST_DEVICE") == "gpu" else mx.cpu)


def _compute_as_on_a_gpu() -> None:
    """Metal's code paths on a CPU: half precision, padded heads, its check of the memory.

    For `EDGE_TEST_DEVICE=as-gpu pytest tests/model tests/generate`, which is slow; docs/mac.md
    lists the failures.
    """
    import mlx_lm.generate  # noqa: F401  creates a stream on the real device

    gpu = SimpleNamespace(type=mx.DeviceType.gpu)
    room_bytes = psutil.virtual_memory().total
    info = {"device_name": "a CPU", "memory_size": room_bytes}
    info["max_recommended_working_set_size"] = room_bytes
    mx.default_device = lambda: gpu
    mx.metal.is_available = lambda: True
    mx.device_info = lambda *_: info


if os.environ.get("EDGE_TEST_DEVICE") == "as-gpu":
    _compute_as_on_a_gpu()

DEMO_RECIPES = (
    "mlx-fp16",
    "mlx-int4",
    "mlx-int2",
    "gguf-f32",
    "gguf-f16",
    "gguf-q5_k_m",
    "gguf-q6_k",
)


# A shell without job control starts background jobs with SIGINT ignored, and child processes of
# the tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def demo_out(tmp_path_factory) -> Path:
    """A folder with the demo's artefacts, made once; do not write to it."""
    out = tmp_path_factory.mktemp("demo")
    recipes = [RECIPES[name] for name in DEMO_RECIPES]
    convert(open_checkpoint("demo"), recipes, out, lambda *_: None)
    return out


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """A published GGUF file that a package carries."""
    try:
        return smollm2_file()
    except EdgeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def held_out_text() -> str:
    """Python code that no model was trained on: an old copy of two files of edge."""
    return (Path(__file__).parent / "support" / "held_out.txt").read_text(encoding="utf-8")
