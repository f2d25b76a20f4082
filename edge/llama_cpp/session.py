"""llama.cpp through its C interface: its log, and a session to decode with.

llama-cpp-python's `Llama` class is not used: it reuses prefixes between calls, defaults to the
CPU, and samples and detokenises in Python, which would distort measurements.
"""

import ctypes
import importlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edge.errors import EdgeError

Logits = np.ndarray[Any, np.dtype[np.float32]]
ERROR_LEVEL = 4  # enum ggml_log_level
# If 1, weights are read instead of mapped into memory: for virtual Macs with macOS 14.
NO_MMAP = "EDGE_NO_MMAP"

# The last errors logged. Of one failure the first names the cause; later ones repeat it.
_errors: deque[str] = deque(maxlen=30)
_callback: Any = None


def library(on_log: Callable[[str], None] = lambda text: None) -> ModuleType:
    """The llama_cpp module, initialised once; the first call's `on_log` gets pieces of its log."""
    global _callback
    llama_cpp = importlib.import_module("llama_cpp")
    if _callback is None:

        def keep(level: int, text: bytes, user_data: object) -> None:
            line = text.decode("utf-8", "replace")
            if level == ERROR_LEVEL and line.strip():
                _errors.append(line.strip())
            on_log(line)

        _callback = llama_cpp.llama_log_callback(keep)  # ctypes needs it to stay alive
        llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


def has_amx(lib: ModuleType) -> bool:
    """True if llama.cpp has AMX kernels, which edge avoids, together with weight repacking.

    Compiled by GCC before 14 they crash, as it drops most of ggml's tile configuration as dead
    stores (llama.cpp pull request 26954).
    """
    return b"AMX_INT8 = 1" in lib.llama_print_system_info()


class LlamaSession:
    """One GGUF model with one context: all layers on the GPU, if there is one, float16 cache."""

    _context: Any = None
    _model: Any = None

    def __init__(self, path: Path, context_tokens: int, threads: int):
        lib = self._lib = library()
        _errors.clear()
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = -1
        self.amx_avoided = has_amx(lib)
        model_params.use_extra_bufts = not self.amx_avoided
        model_params.use_mmap = os.environ.get(NO_MMAP, "0") in ("", "0")
        self._model = lib.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise EdgeError(
                f"llama.cpp cannot load {path} ({first_error().rstrip('.')}); update "
                f"llama-cpp-python if the file is newer, or download another."
            )
        self._path, self._threads = path, threads
        self.vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self.vocab))
        self._token = (lib.llama_token * 1)()
        self._batch_of_one = lib.llama_batch_get_one(self._token, 1)
        self.resize(context_tokens)

    def resize(self, context_tokens: int) -> None:
        """Make an empty cache of this many positions; an EdgeError leaves the present one."""
        lib = self._lib
        params = lib.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_batch = min(2048, context_tokens)
        params.n_threads = params.n_threads_batch = self._threads
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            if not self._context:
                self.close()
            raise EdgeError(
                f"llama.cpp has no memory for {context_tokens} positions of {self._path}."
            )
        if self._context:
            lib.llama_free(self._context)
        self._context, self.context_tokens = context, context_tokens
        self._memory = lib.llama_get_memory(context)
        self._batch_tokens = int(params.n_batch)

    @property
    def device(self) -> str:
        return "GPU" if self._lib.llama_supports_gpu_offload() else "CPU"

    @property
    def trained_tokens(self) -> int:
        """Length of the context that the model was trained with."""
        return int(self._lib.llama_model_n_ctx_train(self._model))

    @property
    def chat_template(self) -> str | None:
        found = self._lib.llama_model_chat_template(self._model, None)
        return found.decode("utf-8", "replace") if found else None

    @property
    def weight_bytes(self) -> int:
        return int(self._lib.llama_model_size(self._model))

    @property
    def parameters(self) -> int:
        return int(self._lib.llama_model_n_params(self._model))

    @property
    def cache_bytes(self) -> int:
        return int(self._lib.llama_state_seq_get_size(self._context, 0))

    def metadata(self, key: str) -> str | None:
        """The value of one of the file's keys as text; None for a missing one."""
        room = ctypes.create_string_buffer(256)
        count = self._lib.llama_model_meta_val_str(self._model, key.encode(), room, len(room))
        return None if count < 0 else room.value.decode("utf-8", "replace")

    @property
    def kv_elements_per_position(self) -> int:
        """Numbers in the KV cache for one token, over all layers; 0 without attention."""
        lib, model = self._lib, self._model
        heads = lib.llama_model_n_head(model)
        if not heads:
            return 0
        default = lib.llama_model_n_embd(model) // heads
        widths = [self._number(f"attention.{name}_length", default) for name in ("key", "value")]
        return int(lib.llama_model_n_layer(model) * lib.llama_model_n_head_kv(model) * sum(widths))

    def _number(self, key: str, default: int) -> int:
        text = self.metadata(f"{self.metadata('general.architecture')}.{key}")
        return int(text) if text is not None and text.isdecimal() else default

    def decode(self, ids: Sequence[int]) -> None:
        """Extend the cache by ids and compute the logits of the last; finished on return."""
        if len(ids) == 1:
            # A batch made once saves 18 us per token; a tiny model takes 500 us.
            self._token[0] = ids[0]
            self._compute(self._batch_of_one)
        else:
            for piece in self._pieces(ids):
                tokens = (self._lib.llama_token * len(piece))(*piece)
                self._compute(self._lib.llama_batch_get_one(tokens, len(piece)))
        self._lib.llama_synchronize(self._context)

    def last_logits(self) -> Logits:
        """Logits (vocab,) after the last decoded token, as a copy."""
        view = self._lib.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(view, (self.vocab_size,)).copy()

    def all_logits(self, ids: Sequence[int]) -> Logits:
        """Extend the cache by ids in full batches; logits (len(ids), vocab)."""
        return np.concatenate([self._batch_logits(piece) for piece in self._pieces(ids)])

    def _pieces(self, ids: Sequence[int]) -> Iterator[Sequence[int]]:
        for start in range(0, len(ids), self._batch_tokens):
            yield ids[start : start + self._batch_tokens]

    def _batch_logits(self, ids: Sequence[int]) -> Logits:
        lib = self._lib
        batch = lib.llama_batch_init(len(ids), 0, 1)
        start = int(lib.llama_memory_seq_pos_max(self._memory, 0)) + 1
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
        try:
            self._compute(batch)
            rows = [lib.llama_get_logits_ith(self._context, i) for i in range(len(ids))]
            return np.stack([np.ctypeslib.as_array(row, (self.vocab_size,)) for row in rows])
        finally:
            lib.llama_batch_free(batch)

    def _compute(self, batch: Any) -> None:
        if self._lib.llama_decode(self._context, batch) != 0:
            raise EdgeError(f"llama.cpp failed to decode ({first_error()}).")

    def trim(self, length: int) -> bool:
        """Remove every position from `length` on; False if a recurrent state cannot do that."""
        return bool(self._lib.llama_memory_seq_rm(self._memory, 0, length, -1))

    def close(self) -> None:
        if self._context:
            self._lib.llama_free(self._context)
            self._context = None
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None

    # With a session left ggml's Metal backend aborts the process at exit.
    __del__ = close


def first_error() -> str:
    return _errors[0] if _errors else "it gave no reason"
