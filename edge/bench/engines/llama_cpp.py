"""llama.cpp at the level of its decode loop, as llama-bench drives it."""

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from edge.bench.engines.engine import Logits
from edge.formats.gguf import GgufTensor, read_gguf
from edge.llama_cpp.session import LlamaSession, library
from edge.profile.profile import EngineFacts

EMBEDDING = "token_embd.weight"
AMX_REMARK = (
    "llama.cpp runs without AMX and weight repacking: compiled by GCC before 14 its AMX kernels "
    "crash on quantised weights"
)


class LlamaCppEngine:
    """A session with llama.cpp's own defaults: all layers offloaded, f16 cache, auto attention."""

    def __init__(self, path: Path, context_tokens: int, threads: int):
        self._session = LlamaSession(path, context_tokens, threads)
        self._path = path
        self._threads = threads

    def prefill(self, ids: Sequence[int]) -> None:
        """In batches; logits of the last position only."""
        self._session.decode(ids)

    def decode(self, ids: Sequence[int], stamp: Callable[[], None]) -> None:
        """One llama_decode and one synchronise per token."""
        for token in ids:
            self._session.decode([token])
            stamp()

    def trim(self, length: int) -> None:
        """Forget every position from `length` on."""
        self._session.trim(length)

    def last_logits(self) -> Logits:
        """Of the last decoded token."""
        return self._session.last_logits()

    def facts(self) -> EngineFacts:
        """From the file's tensors and llama.cpp's own description of the model."""
        session = self._session
        system = " ".join(library().llama_print_system_info().decode("utf-8", "replace").split())
        return EngineFacts(
            device=session.device,
            compute_dtype="as llama.cpp chooses per tensor type",
            kv_dtype="float16",
            threads=self._threads,
            weight_bytes_per_token=sum(map(_bytes_per_token, read_gguf(self._path).tensors)),
            kv_bytes_per_position=session.kv_elements_per_position * 2,
            remarks=[AMX_REMARK] if session.amx_avoided else [],
            build=f"llama-cpp-python {metadata.version('llama-cpp-python')}; {system}",
            gpu_layers=-1 if session.device == "GPU" else 0,
        )

    def peak_device_bytes(self) -> int:
        """llama.cpp keeps no count."""
        return 0

    def close(self) -> None:
        """Free the session: ggml's Metal backend asserts at exit that nothing is left to it."""
        self._session.close()


def _bytes_per_token(tensor: GgufTensor) -> int:
    """The whole tensor, but of the embedding table one row."""
    return tensor.data_bytes // (tensor.shape[0] if tensor.name == EMBEDDING else 1)
