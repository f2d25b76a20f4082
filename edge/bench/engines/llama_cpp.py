"""llama.cpp through llama_decode, as llama-bench runs it."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from edge.bench.engines.engine import Engine, Ids, Logits, Rows
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

    def __init__(self, session: LlamaSession, path: Path, threads: int):
        self._session = session
        self._path = path
        self._threads = threads
        self._ids: list[int] = []

    def prefill(self, ids: Ids) -> None:
        """Computes in batches, and logits of the last position only."""
        self._ids += ids
        self._session.decode(ids)

    def decode(self, ids: Ids, stamp: Callable[[], None]) -> None:
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


class LlamaCppBatch(LlamaCppEngine):
    """Several sequences in one context, each with a cache of its own, as in llama-batched-bench."""

    def __init__(self, session: LlamaSession, path: Path, threads: int):
        super().__init__(session, path, threads)
        self._rows: list[list[int]] = [[] for _ in range(session.sequences)]

    def prefill(self, ids: Rows) -> None:
        """Computes all rows in full batches, and logits of each one's last position."""
        self._extend(ids)
        self._session.decode_rows(ids)

    def decode(self, ids: Rows, stamp: Callable[[], None]) -> None:
        """Calls llama_decode and synchronises once for a token of every sequence."""
        self._extend(ids)
        for tokens in zip(*ids, strict=True):
            self._session.decode_rows([[token] for token in tokens])
            stamp()

    def _extend(self, ids: Rows) -> None:
        self._rows = [[*held, *row] for held, row in zip(self._rows, ids, strict=True)]

    def trim(self, length: int) -> None:
        """Removes every position from `length` on; states that cannot are computed again."""
        self._rows = [row[:length] for row in self._rows]
        if not self._session.trim(length):
            self._session.trim(0)
            if length:
                self._session.decode_rows(self._rows)

    def last_logits(self) -> Logits:
        return self._session.row_logits()

    def alone(self) -> LlamaCppEngine:
        self.trim(0)
        return LlamaCppEngine(self._session, self._path, self._threads)


def open_gguf(path: Path, context_tokens: int, threads: int, batch: int) -> LlamaCppEngine:
    """The engine of a GGUF file, or one of `batch` sequences of `context_tokens` each."""
    session = LlamaSession(path, context_tokens, threads, batch)
    return (LlamaCppBatch if batch > 1 else LlamaCppEngine)(session, path, threads)


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
