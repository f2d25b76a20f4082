"""llama.cpp through its C interface: its log, and a session to decode with.

llama-cpp-python's `Llama` class is not used: it reuses prefixes between calls, defaults to the
CPU, and samples and detokenises in Python, which would distort measurements.
"""

import ctypes
import importlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
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
    """One GGUF model with one context: all layers on the GPU, if there is one, float16 cache.

    The context holds `sequences` of `context_tokens` each. What names none is about the first.
    """

    _context: Any = None
    _model: Any = None

    def __init__(self, path: Path, context_tokens: int, threads: int, sequences: int = 1):
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
        self._path, self._threads, self.sequences = path, threads, sequences
        # Of `decode_rows`: logits of rows that ended before the last batch, places of the others.
        self._row_logits: dict[int, Logits] = {}
        self._places: dict[int, int] = {}
        self.vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self.vocab))
        self._token = (lib.llama_token * 1)()
        self._batch_of_one = lib.llama_batch_get_one(self._token, 1)
        self.resize(context_tokens)

    def resize(self, context_tokens: int) -> None:
        """Make an empty cache of this many positions; an EdgeError leaves the present one."""
        lib = self._lib
        params = lib.llama_context_default_params()
        params.n_ctx = context_tokens * self.sequences
        params.n_seq_max = self.sequences
        params.n_batch = min(2048, params.n_ctx)
        params.n_threads = params.n_threads_batch = self._threads
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            if not self._context:
                self.close()
            raise EdgeError(
                f"llama.cpp has no memory for {params.n_ctx} positions of {self._path}."
            )
        if self._context:
            lib.llama_free(self._context)
        self._context, self.context_tokens = context, context_tokens
        self._memory = lib.llama_get_memory(context)
        self._batch = _Batch(lib, int(params.n_batch))

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
        return self._logits_at(-1).copy()

    def _logits_at(self, place: int) -> Logits:
        """Logits (vocab,) of a token of the last batch, until the next one is computed."""
        view = self._lib.llama_get_logits_ith(self._context, place)
        return np.ctypeslib.as_array(view, (self.vocab_size,))

    def decode_rows(self, rows: Sequence[Sequence[int]]) -> None:
        """Extend every sequence by its row of ids; computes the logits of each row's last.

        As in llama-batched-bench the rows follow each other in full batches.
        """
        counts = np.array([len(row) for row in rows])
        ends, tokens = counts.cumsum(), np.fromiter(chain.from_iterable(rows), np.int32)
        sequences = np.arange(len(rows)).repeat(counts)
        held = np.array([self._length(sequence) for sequence in range(len(rows))])
        positions = np.arange(len(tokens)) - (ends - counts - held).repeat(counts)
        is_last = np.zeros(len(tokens), np.int8)
        is_last[ends - 1] = 1
        size, self._row_logits = self._batch.size, {}
        for begin in range(0, len(tokens), size):
            part = slice(begin, begin + size)
            self._compute(
                self._batch.filled(tokens[part], positions[part], sequences[part], is_last[part])
            )
            ended = [row for row, end in enumerate(ends) if begin < end <= begin + size]
            self._places = {row: int(ends[row]) - 1 - begin for row in ended}
            if part.stop < len(tokens):  # the next batch writes over them
                self._row_logits |= {row: logits.copy() for row, logits in self._ended()}
        self._lib.llama_synchronize(self._context)

    def row_logits(self) -> Logits:
        """Logits (rows, vocab) after the last token of every row of `decode_rows`."""
        found = {**self._row_logits, **dict(self._ended())}
        return np.stack([found[row] for row in sorted(found)])

    def _ended(self) -> Iterator[tuple[int, Logits]]:
        return ((row, self._logits_at(place)) for row, place in self._places.items())

    def _length(self, sequence: int) -> int:
        return int(self._lib.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def all_logits(self, ids: Sequence[int]) -> Logits:
        """Extend the cache by ids in full batches; logits (len(ids), vocab)."""
        return np.concatenate([self._batch_logits(piece) for piece in self._pieces(ids)])

    def _pieces(self, ids: Sequence[int]) -> Iterator[Sequence[int]]:
        for start in range(0, len(ids), self._batch.size):
            yield ids[start : start + self._batch.size]

    def _batch_logits(self, ids: Sequence[int]) -> Logits:
        positions = np.arange(len(ids)) + self._length(0)
        self._compute(self._batch.filled(ids, positions, 0, 1))
        return np.stack([self._logits_at(place) for place in range(len(ids))])

    def _compute(self, batch: Any) -> None:
        if self._lib.llama_decode(self._context, batch) != 0:
            raise EdgeError(f"llama.cpp failed to decode ({first_error()}).")

    def trim(self, length: int) -> bool:
        """Remove every position from `length` on, of all sequences.

        False if a recurrent state cannot do that.
        """
        return all(
            self._lib.llama_memory_seq_rm(self._memory, sequence, length, -1)
            for sequence in range(self.sequences)
        )

    def close(self) -> None:
        if self._context:
            self._lib.llama_free(self._context)
            self._context = None
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None

    # With a session left ggml's Metal backend aborts the process at exit.
    __del__ = close


class _Batch:
    """Room for `size` tokens of any sequences, made once: a llama_batch and what it points to."""

    def __init__(self, lib: ModuleType, size: int):
        self.size = size
        self._tokens, self._positions, self._sequences = np.zeros((3, size), np.int32)
        self._wants_logits, self._counts = np.zeros(size, np.int8), np.ones(size, np.int32)
        # A token's sequences are an array of their own; here it has one.
        step_bytes = self._sequences.itemsize * np.arange(size, dtype=np.uintp)
        self._pointers = step_bytes + np.uintp(self._sequences.ctypes.data)
        number, numbers = ctypes.c_int32, ctypes.POINTER(ctypes.c_int32)
        self._batch = lib.llama_batch(
            token=_pointer(self._tokens, number),
            pos=_pointer(self._positions, number),
            n_seq_id=_pointer(self._counts, number),
            seq_id=_pointer(self._pointers, numbers),
            logits=_pointer(self._wants_logits, ctypes.c_int8),
        )

    def filled(self, tokens: Any, positions: Any, sequences: Any, wants_logits: Any) -> Any:
        """The llama_batch with these values, valid until the next call."""
        count = self._batch.n_tokens = len(tokens)
        self._tokens[:count], self._positions[:count] = tokens, positions
        self._sequences[:count], self._wants_logits[:count] = sequences, wants_logits
        return self._batch


def _pointer(array: Any, kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


def first_error() -> str:
    return _errors[0] if _errors else "it gave no reason"
