"""The processors that compute here, which the power meter must cover.

Run as `python -m edge.bench.processors`: opening a GPU must not happen in the measuring process.
"""

import platform
import sys
from collections.abc import Iterable

import mlx.core as mx

from edge.child import child_main, run_child
from edge.errors import EdgeError
from edge.llama_cpp.session import library

TIMEOUT_S = 60.0


def processors_of(frameworks: Iterable[str]) -> set[str]:
    """CPU, GPU or both, as MLX and GGUF artefacts run here; empty where that is not known.

    Empty on macOS too, where every meter covers the whole chip.
    """
    if platform.system() == "Darwin":
        return set()
    try:
        asked = sorted(set(frameworks))
        return set(run_child("edge.bench.processors", asked, TIMEOUT_S, "the processors"))
    except EdgeError:
        return set()  # the rows of an engine that does not load fail with the reason


def _compute(frameworks: list[str]) -> list[str]:
    on_gpu = {
        "MLX": mx.default_device().type == mx.DeviceType.gpu,
        "GGUF": "GGUF" in frameworks and library().llama_supports_gpu_offload(),
    }
    return ["GPU" if on_gpu[framework] else "CPU" for framework in frameworks]


if __name__ == "__main__":
    sys.exit(child_main(_compute))
