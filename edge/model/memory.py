"""Memory that an artefact needs, from its headers alone, and a check that there is room.

Loading takes the weights in the compute dtype and about a dozen tensors more: MLX works on some
ten at a time, and each that is cast or joined exists twice until the next is done (measured on a
CPU with 2 and 6 layers of Stable Code 3B's shape and the demo).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from edge.device.memory import MemoryRoom, available_bytes
from edge.errors import EdgeError
from edge.formats.folder import read_weights
from edge.formats.safetensors import FLOATS, ITEM_BYTES, StoredTensor
from edge.model.backend import current_backend
from edge.model.config import ModelConfig
from edge.model.kv_cache import GROUP_SIZE, GROWTH_SHARE, STEP_POSITIONS
from edge.model.shard import share_bytes
from edge.model.stablelm import head_width
from edge.text import size

TENSORS_IN_FLIGHT = 12
JOINED = frozenset(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
# As in `edge.generate.decode`.
PREFILL_TOKENS = 2048
# Copies of all heads' attention scores that exist at once on a CPU: measured 2.2 to 2.8, the rest
# of a layer included. Fused attention on a GPU keeps none.
SCORES_AT_ONCE = 2.5
# The interpreter, its packages (35 MB measured) and buffers that MLX keeps for reuse.
HEADROOM_BYTES = 64 << 20
# Environment variable that turns the error into a warning, unless it is empty or 0.
FORCE = "EDGE_FORCE_MEMORY"


@dataclass(frozen=True)
class Need:
    """Memory that a model needs."""

    weights_bytes: int
    loading_bytes: int  # beside the weights while they are loaded
    cache_bytes: int  # keys and values of the whole context
    working_bytes: int  # activations of the largest part of a prompt

    @property
    def running_bytes(self) -> int:
        """Memory after loading, with a full cache: it should stay resident."""
        return self.weights_bytes + self.cache_bytes + self.working_bytes + HEADROOM_BYTES

    @property
    def total_bytes(self) -> int:
        """Peak memory; loading is over before the cache fills."""
        return max(self.running_bytes, self.weights_bytes + self.loading_bytes + HEADROOM_BYTES)


def check_fits(
    path: Path,
    config: ModelConfig,
    dtype: mx.Dtype,
    cache_tokens: int,
    kv_bits: int | None = None,
    sequences: int = 1,
    devices: int = 1,
) -> tuple[Need, str | None]:
    """The memory needed on each device, and a warning if it is short now on this one.

    Raises an EdgeError if the system can never make room, unless EDGE_FORCE_MEMORY=1 is set.
    """
    how: dict[str, int] = {"sequences": sequences, "devices": devices}
    need = required_bytes(path, config, dtype, cache_tokens, kv_bits, **how)
    times = f"{sequences} x " if sequences > 1 else ""
    cache = f", {size(need.cache_bytes)} of cache for {times}{cache_tokens} tokens"
    shorter = "a shorter context or fewer sequences" if sequences > 1 else "a shorter context"
    return need, _shortage(path, need, cache, f"choose a smaller model (mlx-int4), {shorter}")


def check_weights_fit(path: Path, dtype: mx.Dtype) -> tuple[Need, str | None]:
    """`check_fits` for a network of another architecture: its weights alone."""
    need = Need(sum(_loaded_bytes(t, dtype) for t in read_tensors(path).values()), 0, 0, 0)
    return need, _shortage(path, need, "", "choose a smaller model")


def caches_that_fit(need: Need, most: int) -> int:
    """Number of caches, up to `most` and at least one, that fit beside a loaded model now."""
    if os.environ.get(FORCE, "0") not in ("", "0"):
        return most
    room_bytes = available_bytes().bytes - need.working_bytes - HEADROOM_BYTES
    return max(1, min(most, room_bytes // need.cache_bytes))


def _shortage(path: Path, need: Need, cache: str, advice: str) -> str | None:
    total_bytes, weights = need.total_bytes, f"{size(need.weights_bytes)} of weights"
    what = f"{path} needs {size(total_bytes)} ({weights}{cache})"
    return check_room(total_bytes, available_bytes(), what, advice)


def check_room(need_bytes: int, room: MemoryRoom, what: str, advice: str) -> str | None:
    """A warning if memory is short now, an EdgeError if it always is and FORCE is not set."""
    if need_bytes <= room.bytes:
        return None
    available = f"{size(room.bytes)} of {room.what} are available"
    sentence = f"{what}, and {available}; close programs, {advice}"
    if need_bytes > room.most_bytes and os.environ.get(FORCE, "0") in ("", "0"):
        raise EdgeError(f"{sentence}, or set {FORCE}=1 to try anyway.")
    return f"{sentence}."


def required_bytes(
    path: Path,
    config: ModelConfig,
    dtype: mx.Dtype,
    cache_tokens: int,
    kv_bits: int | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
    sequences: int = 1,
    devices: int = 1,
) -> Need:
    """A tight upper bound of the memory for loading and running an artefact, from its headers.

    `cache_tokens` are positions of context for each of `sequences`, `prefill_tokens` those
    computed at a time. Of several devices each needs so much; activations are counted as on one.
    """
    tensors = {name: t for name, t in read_tensors(path).items() if not config.drops(name)}
    quantised = any(name.endswith(".scales") for name in tensors)
    loaded = {
        name: share_bytes(name, _loaded_bytes(tensor, dtype), devices)
        for name, tensor in tensors.items()
    }
    twice = [
        share_bytes(name, tensor.data_bytes, devices)
        for name, tensor in tensors.items()
        if _loaded_bytes(tensor, dtype) != tensor.data_bytes
        or not JOINED.isdisjoint(name.split("."))
    ]
    return Need(
        weights_bytes=sum(loaded.values()),
        loading_bytes=sum(sorted(twice)[-TENSORS_IN_FLIGHT:]),
        cache_bytes=sequences * _cache_bytes(config, cache_tokens, kv_bits, dtype.size) // devices,
        working_bytes=_working_bytes(config, cache_tokens, prefill_tokens, dtype.size, quantised),
    )


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Tensors of a directory by name; an EdgeError if one is broken or of GPTQ."""
    tensors = read_weights(path)
    if any(name.endswith(".qweight") for name in tensors):
        raise EdgeError(
            f"{path} has GPTQ weights; convert it to an MLX artefact first, with `edge convert`."
        )
    return tensors


def _loaded_bytes(tensor: StoredTensor, dtype: mx.Dtype) -> int:
    """Bytes in the compute dtype; codes and scales of other types stay."""
    item_bytes = ITEM_BYTES[tensor.dtype]
    return tensor.data_bytes // item_bytes * (dtype.size if tensor.dtype in FLOATS else item_bytes)


def _cache_bytes(config: ModelConfig, tokens: int, kv_bits: int | None, width: int) -> int:
    """Keys and values of `tokens` positions, with the room that the last growth may have added."""
    numbers, share = head_width(config.head_dim), 0 if kv_bits else int(tokens * GROWTH_SHARE)
    groups = -(-numbers // GROUP_SIZE)
    # A quantised head has a scale and a bias in each group.
    head = groups * (GROUP_SIZE * kv_bits // 8 + 2 * width) if kv_bits else numbers * width
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * head
    return (tokens + share + STEP_POSITIONS - 1) * position


def _working_bytes(
    config: ModelConfig, tokens: int, prefill_tokens: int, width: int, quantised: bool
) -> int:
    """Activations of one layer and its attention for the largest part of a prompt."""
    part = min(tokens, prefill_tokens)
    numbers = part * (4 * config.intermediate_size + 8 * config.hidden_size)
    if current_backend() == "cpu":
        numbers += int(SCORES_AT_ONCE * config.num_attention_heads * part * tokens)
        if quantised:  # one matrix dequantised at a time: see `cpu_linear`
            numbers += 2 * config.intermediate_size * config.hidden_size
    return (numbers + config.vocab_size) * width
