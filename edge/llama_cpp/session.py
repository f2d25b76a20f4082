"""llama.cpp through its C interface: its log, and a session to decode with.

The C level rather than llama-cpp-python's `Llama` class, which reuses prefixes
between calls, defaults to the CPU, and samples and detokenises in Python: none of
that belongs in a measurement.
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
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # enum ggml_type
ERROR_LEVEL = 4  # enum ggml_log_level
# Set to 1, weights are read instead of mapped into memory: for virtual Macs with macOS 14.
NO_MMAP = "EDGE_NO_MMAP"

# The last complaints; the first of a failure names the cause, later ones only repeat it.
_complaints: deque[str] = deque(maxlen=30)
_callback: Any = None


def library(on_log: Callable[[str], None] = lambda text: None) -> ModuleType:
    """The llama_cpp module, started once, its log kept instead of printed.

    `on_log` of the first call is given every piece of the log; a line may come in pieces.
    """
    global _callback
    llama_cpp = importlib.import_module("llama_cpp")
    if _callback is None:

        def keep(level: int, text: bytes, user_data: object) -> None:
            line = text.decode("utf-8", "replace")
            if level == ERROR_LEVEL and line.strip():
                _complaints.append(line.strip())
            on_log(line)

        _callback = llama_cpp.llama_log_callback(keep)  # ctypes needs it to stay alive
        llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


def has_amx(lib: ModuleType) -> bool:
    """True if llama.cpp was built with its AMX kernels, which must then stay unused.

    GCC before 14 drops most of ggml's tile configuration as dead stores, and the first
    product with quantised weights crashes (llama.cpp pull request 26954). The switch that
    avoids them also turns off weight repacking.
    """
    return b"AMX_INT8 = 1" in lib.llama_print_system_info()


class LlamaSession:
    """One model of a GGUF file with one context, driven token by token.

    Without a choice of flash attention llama.cpp decides; its CPU kernel rounds to half precision
    inside even where the cache is float32. `gpu_layers` of -1 means all, if there is a GPU.

    Raises:
        EdgeError: the file is missing or llama.cpp cannot load it.
    """

    def __init__(
        self,
        path: Path,
        context_tokens: int,
        threads: int,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        gpu_layers: int = -1,
    ):
        lib = self._lib = library()
        if not path.is_file():
            raise EdgeError(f"{path} is not a file; convert the model again.")
        _complaints.clear()
        self._context = None
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = gpu_layers
        self.amx_avoided = has_amx(lib)
        model_params.use_extra_bufts = not self.amx_avoided
        model_params.use_mmap = os.environ.get(NO_MMAP, "0") in ("", "0")
        self._model = lib.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise EdgeError(
                f"llama.cpp cannot load {path} ({first_complaint()}); convert it again."
            )
        params = lib.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_batch = min(2048, context_tokens)
        params.n_threads = params.n_threads_batch = threads
        if flash_attention is not None:
            params.flash_attn_type = int(flash_attention)
        params.type_k = params.type_v = KV_TYPES[kv_type]
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            self.close()
            raise EdgeError(f"llama.cpp has no memory for {context_tokens} positions of {path}.")
        self._memory = lib.llama_get_memory(self._context)
        self._batch_tokens = int(params.n_batch)
        self._token = (lib.llama_token * 1)()
        self._batch_of_one = lib.llama_batch_get_one(self._token, 1)
        self.vocab_size = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model)))

    @property
    def device(self) -> str:
        """GPU or CPU."""
        return "GPU" if self._lib.llama_supports_gpu_offload() else "CPU"

    @property
    def kv_elements_per_position(self) -> int:
        """Numbers that the cache keeps for one token: keys and values of every layer."""
        lib, model = self._lib, self._model
        head_dim = lib.llama_model_n_embd(model) // lib.llama_model_n_head(model)
        return int(2 * lib.llama_model_n_layer(model) * lib.llama_model_n_head_kv(model) * head_dim)

    def decode(self, ids: Sequence[int]) -> None:
        """Extend the cache by ids and compute the last one's logits, all finished on return."""
        if len(ids) == 1:
            # A batch that is made once: 18 us less per token, of which a tiny model has 500.
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
        """Extend the cache by ids in as few batches as can be; logits (len(ids), vocab)."""
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
            raise EdgeError(f"llama.cpp failed to decode ({first_complaint()}).")

    def trim(self, length: int) -> None:
        """Forget every position from `length` on."""
        self._lib.llama_memory_seq_rm(self._memory, 0, length, -1)

    def close(self) -> None:
        """Free the context and the model."""
        if self._context:
            self._lib.llama_free(self._context)
            self._context = None
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None


def first_complaint() -> str:
    """Why llama.cpp refused, in its own words."""
    return _complaints[0] if _complaints else "it gave no reason"
