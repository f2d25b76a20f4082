"""The processors that compute here, so that the power meter covers them.

Run as `python -m edge.bench.processors`: neither MLX nor llama.cpp is then loaded into the process
that measures.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable

from edge.child import child_main, run_child
from edge.errors import EdgeError

MODULE = "edge.bench.processors"
TIMEOUT_S = 60.0


def processors_of(frameworks: Iterable[str]) -> set[str]:
    """CPU, GPU or both, as MLX and GGUF artefacts run here; empty where that is not known.

    On macOS it is not asked: there every meter covers all of the chip.
    """
    if platform.system() == "Darwin":
        return set()
    try:
        return set(run_child(MODULE, sorted(set(frameworks)), TIMEOUT_S, "the processors"))
    except EdgeError:
        return set()  # an engine that does not load is told about where its rows fail


def _answered(frameworks: list[str]) -> list[str]:
    on_gpu = {"MLX": _mlx_on_gpu, "GGUF": _llama_cpp_on_gpu}
    return ["GPU" if on_gpu[framework]() else "CPU" for framework in frameworks]


def _mlx_on_gpu() -> bool:
    import mlx.core as mx

    return bool(mx.default_device().type == mx.DeviceType.gpu)


def _llama_cpp_on_gpu() -> bool:
    from edge.llama_cpp.session import library

    return bool(library().llama_supports_gpu_offload())


if __name__ == "__main__":
    sys.exit(child_main(_answered))
