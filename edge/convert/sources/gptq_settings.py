"""What a GPTQ checkpoint says about itself: quantize_config.json or config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.convert.sources.companions import inside
from edge.errors import EdgeError
from edge.formats.files import read_json_object
from edge.formats.gptq import BITS, FORMAT_1, FORMAT_2

QUANTIZE_CONFIG = "quantize_config.json"


@dataclass(frozen=True)
class GptqSettings:
    """What a checkpoint says about its quantisation.

    Attributes:
        bits: of a code, where no override says otherwise.
        group_size: inputs that share a scale; -1 for all of them.
        sym: zero points all lie in the middle of the range.
        desc_act: inputs were quantised in an order of their own ("act-order").
        checkpoint_format: how zero points are stored, `gptq` or `gptq_v2`.
        where: the file that says so, for messages.
    """

    bits: int
    group_size: int
    sym: bool
    desc_act: bool
    checkpoint_format: str
    where: str


def is_gptq(config: Mapping[str, Any], path: Path) -> bool:
    """Whether a checkpoint says that it is GPTQ's.

    Args:
        config: its config.json.
        path: its directory.
    """
    nested = config.get("quantization_config")
    method = nested.get("quant_method") if isinstance(nested, Mapping) else None
    return method == "gptq" or (path / QUANTIZE_CONFIG).is_file()


def read_gptq_settings(config: Mapping[str, Any], path: Path) -> GptqSettings:
    """Read config.json's quantization_config, quantize_config.json, or both.

    Args:
        config: the checkpoint's config.json.
        path: its directory.

    Raises:
        EdgeError: another method or packing, or an impossible value.
    """
    nested = config.get("quantization_config")
    beside = inside(path, QUANTIZE_CONFIG)
    raw = read_json_object(beside) if beside.is_file() else {}
    where = str(beside if raw else path / "config.json")
    if isinstance(nested, Mapping):
        raw = {**raw, **nested}
    _refuse_other_methods(raw, where)
    return GptqSettings(
        bits=_bits(raw, where),
        group_size=_group_size(raw, where),
        sym=_flag(raw, where, "sym", True),  # AutoGPTQ's defaults
        desc_act=_flag(raw, where, "desc_act", False),
        checkpoint_format=raw.get("checkpoint_format") or raw.get("format") or FORMAT_1,
        where=where,
    )


def _refuse_other_methods(raw: Mapping[str, Any], where: str) -> None:
    method = raw.get("quant_method") or "gptq"
    packing = raw.get("checkpoint_format") or raw.get("format") or FORMAT_1
    if raw.get("is_marlin_format"):
        packing = "marlin"
    if method != "gptq" or packing not in (FORMAT_1, FORMAT_2):
        kind = method if method != "gptq" else packing
        raise EdgeError(
            f"{where}: weights are quantised as {kind!r}, edge reads 'gptq' and 'gptq_v2'; "
            f"choose a GPTQ checkpoint in one of these, or the unquantised one."
        )
    if raw.get("pack_dtype", "int32") not in ("int32", "torch.int32"):
        raise EdgeError(
            f"{where}: codes are packed in {raw['pack_dtype']!r}, edge reads int32; "
            f"choose a checkpoint packed so, or the unquantised one."
        )


def _bits(raw: Mapping[str, Any], where: str) -> int:
    bits = raw.get("bits", raw.get("w_bit"))
    if not isinstance(bits, int) or bits not in BITS:
        raise EdgeError(
            f"{where}: bits is {bits!r}, GPTQ has {', '.join(map(str, BITS))}; check the file."
        )
    return bits


def _group_size(raw: Mapping[str, Any], where: str) -> int:
    size = raw.get("group_size", raw.get("q_group_size"))
    size = -1 if size is None else size
    whole = isinstance(size, int) and not isinstance(size, bool)
    if not whole or not (size == -1 or 0 < size < 2**31):
        raise EdgeError(
            f"{where}: group_size is {size!r}, neither a positive whole number nor -1; "
            f"check the file."
        )
    return int(size)


def _flag(raw: Mapping[str, Any], where: str, name: str, default: bool) -> bool:
    value = raw.get(name, default)
    if not isinstance(value, bool):
        raise EdgeError(f"{where}: {name} is {value!r}, not true or false; check the file.")
    return value
