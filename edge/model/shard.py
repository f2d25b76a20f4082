"""A network split over several devices: which part of every tensor each of them holds.

As in Megatron-LM (Shoeybi et al., arXiv:1909.08053): a device has some heads, a slice of the inner
width and a slice of the vocabulary. Matrices that read the hidden state are split by rows, those
that write it by columns, so that a layer needs two sums over the devices, or one with a parallel
residual. Norms are on all devices.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from edge.errors import EdgeError
from edge.formats.safetensors import FLOATS, StoredTensor
from edge.model.config import ModelConfig

BY_ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head")
BY_COLUMNS = ("o_proj", "down_proj")
HEAD_NORMS = ("q_layernorm", "k_layernorm")
MOST_DEVICES = 64  # that are looked at for a number that would work


@dataclass
class Part:
    """One device's part of a network that `size` devices compute together.

    `sent_bytes` are those that this device sends for what was asked for so far: for a sum as in a
    ring (Patarasuk and Yuan 2009), two shares of the array to each of the others.
    """

    rank: int = 0
    size: int = 1
    sent_bytes: int = 0
    machines: int = 1

    def own(self, count: int) -> slice:
        """This device's slice of `count` things in a row."""
        each, rest = divmod(count, self.size)
        if rest:
            raise ValueError(f"{count} cannot be split over {self.size} devices")
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, x: mx.array) -> mx.array:
        """The sum of all devices' x."""
        if self.size == 1:
            return x
        self.sent_bytes += 2 * (self.size - 1) * x.nbytes // self.size
        return mx.distributed.all_sum(x)

    def join(self, x: mx.array) -> mx.array:
        """All devices' x (B, L, n), side by side -> (B, L, size * n)."""
        if self.size == 1:
            return x
        self.sent_bytes += (self.size - 1) * x.nbytes
        every = mx.distributed.all_gather(x[None])
        return every.transpose(1, 2, 0, 3).reshape(*x.shape[:2], -1)


WHOLE = Part()


def check_split(config: ModelConfig, quantization: Any, size: int, where: str) -> None:
    """Raises an EdgeError that names the numbers of devices which would work, unless `size` does.

    `quantization` is that of the artefact's config.json; matrices with settings of their own are
    checked when they are read.
    """
    group_size = quantization.get("group_size") if isinstance(quantization, Mapping) else None
    group = group_size if isinstance(group_size, int) and group_size > 0 else 1
    problem = next(iter(_problems(config, group, size)), None)
    if problem is None:
        return
    fitting = [n for n in range(2, MOST_DEVICES + 1) if not [*_problems(config, group, n)]]
    advice = f"use {_listed(fitting)}" if fitting else "run it on one"
    raise EdgeError(f"{where} cannot be split over {size} devices: {problem}; {advice}.")


def _problems(config: ModelConfig, group: int, size: int) -> Iterable[str]:
    counts = {
        "attention heads": config.num_attention_heads,
        "key and value heads": config.num_key_value_heads,
        "inner dims": config.intermediate_size,
        "tokens of the vocabulary": config.vocab_size,
    }
    for what, count in counts.items():
        if count % size:
            yield f"it has {count} {what}"
    for width in (config.hidden_size, config.intermediate_size):
        if width % group == 0 and width // size % group:  # others are not quantised
            yield f"a part of {width // size} inputs has no whole number of groups of {group}"


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last


def share_bytes(name: str, data_bytes: int, devices: int) -> int:
    """Bytes of a tensor that each of several devices holds."""
    _, owner, kind = f"..{name}".rsplit(".", 2)
    is_split = owner in BY_ROWS or (owner in BY_COLUMNS and kind != "bias")
    return data_bytes // devices if is_split else data_bytes


def read_part(
    tensors: Mapping[str, StoredTensor], part: Part, dtype: mx.Dtype
) -> dict[str, mx.array]:
    """A device's part of all tensors, floats in `dtype`; other parts are not read.

    Heads' norms are numbered from the device's first. Raises a ValueError for a tensor that cannot
    be split.
    """
    read: dict[str, mx.array] = {}
    heads = _heads_of(tensors)
    for name, tensor in tensors.items():
        own_name = _name_here(name, heads, part)
        if own_name is None:
            continue
        try:
            array = mx.array(_read(tensor, part))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        read[own_name] = array.astype(dtype) if tensor.dtype in FLOATS else array
        mx.eval(read[own_name])  # before the next is read, so that only one is here twice
    return read


def _read(tensor: StoredTensor, part: Part) -> Any:
    owner, _, kind = tensor.name.rpartition(".")
    owner, shape = owner.rpartition(".")[2], tensor.shape
    if owner in BY_ROWS and shape:
        rows = part.own(shape[0])
        return tensor.read(rows.start, rows.stop)
    if owner in BY_COLUMNS and kind == "bias":  # which is summed over the devices, too
        return tensor.read() if part.rank == 0 else tensor.read() * 0
    if owner in BY_COLUMNS and len(shape) == 2:
        columns = part.own(shape[1])
        return tensor.read_columns(columns.start, columns.stop)
    return tensor.read()


def _heads_of(names: Iterable[str]) -> dict[str, int]:
    """Number of heads with a norm of their own, by the name that begins all of them."""
    heads: dict[str, int] = {}
    for name in names:
        stem, _, rest = name.partition(".norms.")
        if rest and stem.endswith(HEAD_NORMS):
            heads[stem] = heads.get(stem, 0) + 1
    return heads


def _name_here(name: str, heads: Mapping[str, int], part: Part) -> str | None:
    """The tensor's name on this device; None for the norm of another device's head."""
    stem, _, rest = name.partition(".norms.")
    number, _, kind = rest.partition(".")
    if stem not in heads or not number.isdecimal():
        return name
    own = part.own(heads[stem])
    here = int(number) - own.start
    return f"{stem}.norms.{here}.{kind}" if 0 <= here < own.stop - own.start else None
