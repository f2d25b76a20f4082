import platform

import pytest

from edge.bench import processors
from edge.bench.processors import processors_of
from edge.errors import EdgeError
from edge.llama_cpp.session import library


def test_processors_of_both_frameworks_are_found_in_a_child_process(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    gguf = "GPU" if library().llama_supports_gpu_offload() else "CPU"
    assert processors_of(["GGUF"]) == {gguf}
    assert {gguf} <= processors_of(["MLX", "GGUF", "MLX"]) <= {"CPU", "GPU"}


@pytest.mark.parametrize("system", ["Linux", "Darwin"])
def test_a_mac_and_an_engine_that_does_not_load_name_no_processor(monkeypatch, system):
    def broken(*_):
        assert system == "Linux"
        raise EdgeError("it does not load.")

    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(processors, "run_child", broken)
    assert processors_of(["MLX"]) == set()
