"""What an artefact will take in memory, from its headers alone, and whether there is room.

Measured on a CPU with 2 and 6 layers of Stable Code 3B's shape and the demo: while it loads, a
model takes its weights in the compute dtype and about a dozen tensors more, since MLX works on
some ten at a time, and each that is cast or joined is there twice until the next is done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from edge.device.memory import MemoryRoom, available_bytes
from edge.errors import EdgeError
from edge.formats.files import strict_json
from edge.model.config import ModelConfig
from edge.model.kv_cache import GROUP_SIZE, GROWTH_SHARE, STEP_POSITIONS
from edge.model.variant import Variant, current_backend

FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Tensors that exist twice at a time while a model loads: MLX has ten tasks under way, and the
# two tables are among the first.
TENSORS_IN_FLIGHT = 12
JOINED = frozenset(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
# What `edge.generate.decode` computes at a time unless it is told otherwise.
PREFILL_TOKENS = 2048
# Scores of all heads, masked and after the softmax, partly at once: measured 2.2 to 2.8 times
# them on a CPU, the rest of a layer included. Fused attention on a GPU keeps none.
SCORES_AT_ONCE = 2.5
# The interpreter, its packages (35 MB measured) and buffers that MLX keeps to use again.
HEADROOM_BYTES = 64 << 20
# Set to anything but nothing or 0, it makes a refusal a warning.
FORCE = "EDGE_FORCE_MEMORY"
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Need:
    """What a model takes, in bytes.

    Attributes:
        weights_bytes: as they stay in memory.
        loading_bytes: beside them while they are loaded.
        cache_bytes: keys and values of `cache_tokens` positions.
        working_bytes: the largest part of a prompt being computed.
        cache_tokens: how many positions were asked for.
        quantised: whether any weights are codes.
    """

    weights_bytes: int
    loading_bytes: int
    cache_bytes: int
    working_bytes: int
    cache_tokens: int
    quantised: bool

    @property
    def running_bytes(self) -> int:
        """Once loaded, with the cache full: what should stay resident."""
        return self.weights_bytes + self.cache_bytes + self.working_bytes + HEADROOM_BYTES

    @property
    def total_bytes(self) -> int:
        """The most at any time; loading is over before the cache fills."""
        return max(self.running_bytes, self.weights_bytes + self.loading_bytes + HEADROOM_BYTES)


@dataclass(frozen=True)
class Fit:
    """What is needed, what there is, and a sentence if that may not go well."""

    need: Need
    room: MemoryRoom
    warning: str | None


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    stored_bytes: int

    def loaded_bytes(self, width: int | None) -> int:
        """In memory with floats of `width` bytes; None leaves them as they are."""
        if width is None or self.dtype not in FLOAT_BYTES:
            return self.stored_bytes
        return self.stored_bytes // FLOAT_BYTES[self.dtype] * width


def check_fits(
    path: Path,
    config: ModelConfig,
    dtype: mx.Dtype | None,
    cache_tokens: int,
    kv_bits: int | None = None,
) -> Fit:
    """Refuse what cannot be loaded here, before it is.

    Refused is what is above all that the system can make room for; what is above the memory
    that is free now but not above that gets a warning. EDGE_FORCE_MEMORY=1 in the environment
    makes a refusal a warning too.

    Args:
        path: an MLX artefact or a Hugging Face directory.
        config: its config.json, as `edge.model.load.read_directory` gives it.
        dtype: as `required_bytes` has it, like the others.
        cache_tokens: the context that shall fit.
        kv_bits: of the cache.

    Raises:
        EdgeError: it does not fit, with the numbers; or its files cannot be read.
    """
    need, room = required_bytes(path, config, dtype, cache_tokens, kv_bits), available_bytes()
    if need.total_bytes <= room.bytes:
        return Fit(need, room, None)
    sentence = _shortage(path, need, room)
    if need.total_bytes > room.most_bytes and os.environ.get(FORCE, "0") in ("", "0"):
        raise EdgeError(f"{sentence}, or set {FORCE}=1 to try all the same.")
    return Fit(need, room, f"{sentence}.")


def required_bytes(
    path: Path,
    config: ModelConfig,
    dtype: mx.Dtype | None,
    cache_tokens: int,
    kv_bits: int | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
) -> Need:
    """What loading and running an artefact takes: an upper bound that is meant to be tight.

    Reads the headers of the safetensors files, never a tensor.

    Args:
        path: an MLX artefact or a Hugging Face directory.
        config: its config.json.
        dtype: the compute dtype; None leaves floats as the files have them.
        cache_tokens: positions of context, 0 for none.
        kv_bits: of a quantised cache, or None.
        prefill_tokens: prompt tokens computed at a time.

    Raises:
        EdgeError: a file is missing or cannot be read.
    """
    tensors = _used(_read_headers(path), config)
    width = None if dtype is None else dtype.size
    floats = [FLOAT_BYTES[t.dtype] for t in tensors.values() if t.dtype in FLOAT_BYTES]
    computed = width or max(floats, default=4)
    quantised = any(name.endswith(".scales") for name in tensors)
    return Need(
        weights_bytes=sum(t.loaded_bytes(width) for t in tensors.values()),
        loading_bytes=_in_flight(tensors, width),
        cache_bytes=_cache_bytes(config, cache_tokens, kv_bits, computed),
        working_bytes=_working_bytes(config, cache_tokens, prefill_tokens, computed, quantised),
        cache_tokens=cache_tokens,
        quantised=quantised,
    )


def position_bytes(config: ModelConfig, kv_bits: int | None, width: int) -> int:
    """Keys and values of one position in all layers.

    Args:
        config: the network.
        kv_bits: of a quantised cache, or None.
        width: bytes of a number in the compute dtype.
    """
    numbers = Variant().head_width(config.head_dim)
    if kv_bits is None:
        head = numbers * width
    else:
        groups = -(-numbers // GROUP_SIZE)
        head = groups * (GROUP_SIZE * kv_bits // 8 + 2 * width)  # a scale and a bias each
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head


def _cache_bytes(config: ModelConfig, tokens: int, kv_bits: int | None, width: int) -> int:
    """With the room for growth that the last position may have asked for."""
    if tokens == 0:
        return 0
    share = 0 if kv_bits else int(tokens * GROWTH_SHARE)
    most = tokens + share + STEP_POSITIONS - 1
    return most * position_bytes(config, kv_bits, width)


def _working_bytes(
    config: ModelConfig, tokens: int, prefill_tokens: int, width: int, quantised: bool
) -> int:
    """Activations of one layer for the largest part of a prompt, and of its attention."""
    part = min(tokens, prefill_tokens)
    numbers = part * (4 * config.intermediate_size + 8 * config.hidden_size)
    if current_backend() == "cpu":
        numbers += int(SCORES_AT_ONCE * config.num_attention_heads * part * tokens)
        if quantised:  # one matrix dequantised at a time: see `cpu_linear`
            numbers += 2 * config.intermediate_size * config.hidden_size
    return (numbers + config.vocab_size) * width


def _in_flight(tensors: Mapping[str, _Tensor], width: int | None) -> int:
    """The largest of the tensors that are cast or joined, as the files have them."""
    twice = (
        t.stored_bytes
        for name, t in tensors.items()
        if t.loaded_bytes(width) != t.stored_bytes or not JOINED.isdisjoint(name.split("."))
    )
    return sum(sorted(twice, reverse=True)[:TENSORS_IN_FLIGHT])


def _used(tensors: dict[str, _Tensor], config: ModelConfig) -> dict[str, _Tensor]:
    """Without what loading drops: see `Model.sanitize`."""
    tied = config.tie_word_embeddings
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.endswith("rotary_emb.inv_freq") or (tied and name.startswith("lm_head.")))
    }


def _read_headers(path: Path) -> dict[str, _Tensor]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise EdgeError(f"{path} holds no *.safetensors; convert or download the model again.")
    return {name: tensor for file in files for name, tensor in _read_header(file).items()}


def _read_header(file: Path) -> dict[str, _Tensor]:
    """A file's tensors; whether its data is all there is the loader's to find out."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = strict_json(opened.read(length))
        return {name: _tensor(f) for name, f in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EdgeError(
            f"{file} cannot be read ({error}); convert or download the model again."
        ) from None


def _tensor(fields: Mapping[str, Any]) -> _Tensor:
    begin, end = fields["data_offsets"]
    return _Tensor(str(fields["dtype"]), max(0, int(end) - int(begin)))


def _shortage(path: Path, need: Need, room: MemoryRoom) -> str:
    """The sentence up to where it may be forced, without a full stop."""
    parts = [f"{_gb(need.weights_bytes)} of weights"]
    if need.cache_tokens:
        parts.append(f"{_gb(need.cache_bytes)} of cache for {need.cache_tokens} tokens")
    advice = "a smaller model" if need.quantised else "mlx-int4"
    shorter = " or a shorter context" if need.cache_tokens else ""
    return (
        f"{path} needs {_gb(need.total_bytes)} ({', '.join(parts)}), and {_gb(room.bytes)} of "
        f"{room.what} are available; close programs, choose {advice}{shorter}"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
