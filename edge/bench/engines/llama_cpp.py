"""llama.cpp through llama_decode, as llama-bench runs it."""

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from edge.bench.engines.engine import Engine, Logits
from edge.formats.gguf import GgufFile, read_model
from edge.llama_cpp.session import LlamaSession, library
from edge.profile.profile import EngineFacts

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
EXPERTS = "_exps."  # in the names of tensors with all experts of a layer
AMX_REMARK = (
    "llama.cpp runs without AMX and weight repacking: compiled by GCC before 14 its AMX kernels "
    "crash on quantised weights"
)


class LlamaCppEngine(Engine):
    """llama.cpp with its own defaults: all layers offloaded, f16 cache, automatic attention."""

    def __init__(self, path: Path, context_tokens: int, threads: int):
        self._session = LlamaSession(path, context_tokens, threads)
        self._path = path
        self._threads = threads
        self._ids: list[int] = []

    def prefill(self, ids: Sequence[int]) -> None:
        """Computes in batches, and logits of the last position only."""
        self._ids += ids
        self._session.decode(ids)

    def decode(self, ids: Sequence[int], stamp: Callable[[], None]) -> None:
        """Calls llama_decode and synchronises once per token."""
        self._ids += ids
        for token in ids:
            self._session.decode([token])
            stamp()

    def trim(self, length: int) -> None:
        """Removes every position from `length` on; a state that cannot is computed again."""
        kept, self._ids = self._ids[:length], self._ids[:length]
        if not self._session.trim(length):
            self._session.trim(0)
            if kept:
                self._session.decode(kept)

    def last_logits(self) -> Logits:
        return self._session.last_logits()

    def facts(self) -> EngineFacts:
        session = self._session
        system = " ".join(library().llama_print_system_info().decode("utf-8", "replace").split())
        return EngineFacts(
            device=session.device,
            compute_dtype="as llama.cpp chooses per tensor type",
            kv_dtype="float16",
            threads=self._threads,
            weight_bytes_per_token=_bytes_per_token(read_model(self._path)),
            kv_bytes_per_position=session.kv_elements_per_position * 2,
            remarks=[AMX_REMARK] if session.amx_avoided else [],
            build=f"llama-cpp-python {metadata.version('llama-cpp-python')}; {system}",
            gpu_layers=-1 if session.device == "GPU" else 0,
        )

    def close(self) -> None:
        """Frees the session; with one left ggml's Metal backend aborts the process at exit."""
        self._session.close()


def _bytes_per_token(file: GgufFile) -> int:
    """All weights; one row of a table that is not the head too, and the experts that are read."""
    has_head = any(tensor.name == HEAD for tensor in file.tensors)
    experts, read = (
        file.keys.get(f"{file.keys.get('general.architecture')}.{key}")
        for key in ("expert_count", "expert_used_count")
    )
    read_share = read / experts if isinstance(read, int) and isinstance(experts, int) else 1.0
    total = 0
    for tensor in file.tensors:
        if tensor.name == EMBEDDING and has_head:
            total += tensor.data_bytes // tensor.shape[0]
        else:
            total += int(tensor.data_bytes * (read_share if EXPERTS in tensor.name else 1))
    return total
