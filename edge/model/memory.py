"""Memory that an artefact will take, from its headers alone, and a check that there is room.

While it loads, a model takes its weights in the compute dtype and about a dozen tensors more:
MLX works on some ten at a time, and each that is cast or joined is there twice until the next is
done (measured on a CPU with 2 and 6 layers of Stable Code 3B's shape and the demo).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from edge.device.memory import MemoryRoom, available_bytes
from edge.errors import EdgeError
from edge.formats.files import read_json_object
from edge.formats.safetensors import FLOATS, ITEM_BYTES, StoredTensor, read_header
from edge.model.config import ModelConfig
from edge.model.kv_cache import GROUP_SIZE, GROWTH_SHARE, STEP_POSITIONS
from edge.model.stablelm import current_backend, head_width

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


@dataclass(frozen=True)
class Need:
    """Memory that a model takes."""

    weights_bytes: int
    loading_bytes: int  # beside the weights while they are loaded
    cache_bytes: int  # keys and values of cache_tokens positions
    working_bytes: int  # the largest part of a prompt being computed
    cache_tokens: int
    quantised: bool  # whether any weights are codes

    @property
    def running_bytes(self) -> int:
        """Once loaded, with the cache full: what should stay resident."""
        return self.weights_bytes + self.cache_bytes + self.working_bytes + HEADROOM_BYTES

    @property
    def total_bytes(self) -> int:
        """The most at any time; loading is over before the cache fills."""
        return max(self.running_bytes, self.weights_bytes + self.loading_bytes + HEADROOM_BYTES)


def check_fits(
    path: Path, config: ModelConfig, dtype: mx.Dtype, cache_tokens: int, kv_bits: int | None = None
) -> tuple[Need, str | None]:
    """The need that `required_bytes` finds, and a warning if memory is short now.

    An EdgeError where the system can never make room for it, unless EDGE_FORCE_MEMORY=1 is set.
    """
    need, room = required_bytes(path, config, dtype, cache_tokens, kv_bits), available_bytes()
    if need.total_bytes <= room.bytes:
        return need, None
    sentence = _shortage(path, need, room)
    if need.total_bytes > room.most_bytes and os.environ.get(FORCE, "0") in ("", "0"):
        raise EdgeError(f"{sentence}, or set {FORCE}=1 to try all the same.")
    return need, f"{sentence}."


def required_bytes(
    path: Path,
    config: ModelConfig,
    dtype: mx.Dtype,
    cache_tokens: int,
    kv_bits: int | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
) -> Need:
    """Memory for loading and running an artefact: an upper bound that is meant to be tight.

    Of the files in `path` only the headers are read. `cache_tokens` are positions of context,
    `prefill_tokens` those of a prompt that are computed at a time.
    """
    entries = {name: t for file in weight_files(path).values() for name, t in file.items()}
    tensors = {name: entry for name, entry in entries.items() if not config.drops(name)}
    quantised = any(name.endswith(".scales") for name in tensors)
    width = dict.fromkeys(FLOATS, dtype.size)  # codes and scales of other types stay
    loaded = {
        name: t.data_bytes // ITEM_BYTES[t.dtype] * width.get(t.dtype, ITEM_BYTES[t.dtype])
        for name, t in tensors.items()
    }
    twice = [
        tensor.data_bytes
        for name, tensor in tensors.items()
        if tensor.data_bytes != loaded[name] or not JOINED.isdisjoint(name.split("."))
    ]
    return Need(
        weights_bytes=sum(loaded.values()),
        loading_bytes=sum(sorted(twice)[-TENSORS_IN_FLIGHT:]),
        cache_bytes=_cache_bytes(config, cache_tokens, kv_bits, dtype.size),
        working_bytes=_working_bytes(config, cache_tokens, prefill_tokens, dtype.size, quantised),
        cache_tokens=cache_tokens,
        quantised=quantised,
    )


def weight_files(path: Path) -> dict[Path, dict[str, StoredTensor]]:
    """Every *.safetensors of a directory; an EdgeError where one is missing, broken or GPTQ's."""
    files = {file: read_header(file) for file in sorted(path.glob("*.safetensors"))}
    index = path / "model.safetensors.index.json"
    listed = read_json_object(index).get("weight_map") if index.exists() else None
    named = {str(name) for name in listed.values()} if isinstance(listed, dict) else set()
    missing = sorted(named - {file.name for file in files})
    if missing or not files:
        raise EdgeError(
            f"{path} holds no {missing[0] if missing else '*.safetensors'}; convert or download "
            f"the model again."
        )
    if any(name.endswith(".qweight") for file in files.values() for name in file):
        raise EdgeError(
            f"{path} holds GPTQ weights; convert it to an MLX artefact first, with `edge convert`."
        )
    return files


def _cache_bytes(config: ModelConfig, tokens: int, kv_bits: int | None, width: int) -> int:
    """Of so many positions, with the room for growth that the last may have asked for."""
    numbers, share = head_width(config.head_dim), 0 if kv_bits else int(tokens * GROWTH_SHARE)
    groups = -(-numbers // GROUP_SIZE)
    # A quantised head has a scale and a bias in each group.
    head = groups * (GROUP_SIZE * kv_bits // 8 + 2 * width) if kv_bits else numbers * width
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * head
    return (tokens + share + STEP_POSITIONS - 1) * position


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


def _shortage(path: Path, need: Need, room: MemoryRoom) -> str:
    advice = "a smaller model" if need.quantised else "mlx-int4"
    return (
        f"{path} needs {_gb(need.total_bytes)} ({_gb(need.weights_bytes)} of weights, "
        f"{_gb(need.cache_bytes)} of cache for {need.cache_tokens} tokens), and "
        f"{_gb(room.bytes)} of {room.what} are available; close programs, choose {advice} or a "
        f"shorter context"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
