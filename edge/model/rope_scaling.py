"""RoPE scaling: linear (arXiv:2306.15595), dynamic NTK, YaRN (arXiv:2309.00071), Llama 3.1's.

Names and formulas are those of transformers' `modeling_rope_utils`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge.errors import EdgeError

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
LLAMA3_KEYS = ("low_freq_factor", "high_freq_factor")
YARN_KEYS = ("beta_fast", "beta_slow", "attention_factor")


@dataclass(frozen=True)
class RopeScaling:
    """Type and parameters of a scaling; `attention_factor` multiplies cosines and sines."""

    rope_type: str
    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def to_dict(self) -> dict[str, Any]:
        """`rope_scaling` as transformers and mlx-lm read it."""
        original = "original_max_position_embeddings"
        own = {"llama3": (original, *LLAMA3_KEYS), "yarn": (original, *YARN_KEYS, "truncate")}
        names = ("rope_type", "factor", *own.get(self.rope_type, ()))
        return {name: getattr(self, name) for name in names}

    def frequencies(self, dims: int, base: float, length: int = 0) -> list[float]:
        """Radians per position of the dims / 2 rotated pairs, for a context of `length`."""
        if self.rope_type == "dynamic" and dims > 2:
            stretch = max(1.0, length / self.original_max_position_embeddings)
            base *= (self.factor * stretch - (self.factor - 1)) ** (dims / (dims - 2))
        plain = [base ** (-2 * pair / dims) for pair in range(dims // 2)]
        if self.rope_type == "linear":
            return [frequency / self.factor for frequency in plain]
        if self.rope_type == "llama3":
            kept = [self._kept_by_llama3(frequency) for frequency in plain]
        elif self.rope_type == "yarn":
            kept = self._kept_by_yarn(dims, base)
        else:
            return plain
        shares = zip(plain, kept, strict=True)
        return [frequency * (share + (1 - share) / self.factor) for frequency, share in shares]

    def _kept_by_llama3(self, frequency: float) -> float:
        """Unscaled share of a frequency: 1 for short wavelengths, 0 for long ones."""
        turns = self.original_max_position_embeddings * frequency / (2 * math.pi)
        share = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return min(max(share, 0.0), 1.0)

    def _kept_by_yarn(self, dims: int, base: float) -> list[float]:
        """Unscaled shares of all pairs: 1 for fast rotations in the trained context, 0 for slow."""
        low, high = (
            dims
            * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi))
            / (2 * math.log(base))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dims - 1)
        width = high - low or 0.001
        return [1 - min(max((pair - low) / width, 0.0), 1.0) for pair in range(dims // 2)]


def read_rope_scaling(rope: Mapping[str, Any], context: int, where: str) -> RopeScaling | None:
    """The scaling in `rope_scaling` or `rope_parameters`; None without one.

    `context` is max_position_embeddings. An EdgeError names the file `where` and the value.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise EdgeError(
            f"{where}: rope scaling {kind!r} is not supported (only {', '.join(ROPE_TYPES)} are); "
            f"choose another checkpoint."
        )
    if kind == "default":
        return None
    original = _number(rope, "original_max_position_embeddings", where, context)
    if kind == "dynamic":
        original = context  # as in transformers
    factor = _number(rope, "factor", where, context / original if kind == "yarn" else None)
    given = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": int(original)}
    if kind == "llama3":
        given |= {name: _number(rope, name, where) for name in LLAMA3_KEYS}
        if given["low_freq_factor"] >= given["high_freq_factor"]:
            raise EdgeError(
                f"{where}: low_freq_factor {given['low_freq_factor']} is not below "
                f"high_freq_factor {given['high_freq_factor']}; check the file."
            )
    elif kind == "yarn":
        defaults = zip(YARN_KEYS, (32.0, 1.0, _gain(rope, factor, where)), strict=True)
        given |= {name: _number(rope, name, where, default) for name, default in defaults}
        given["truncate"] = rope.get("truncate", True) is not False
    return RopeScaling(**given)


def yarn_gain(factor: float, mscale: float = 1.0) -> float:
    """YaRN's factor of cosines and sines: 0.1 mscale ln(factor) + 1."""
    return 0.1 * mscale * math.log(max(factor, 1)) + 1


def _gain(rope: Mapping[str, Any], factor: float, where: str) -> float:
    keys = ("mscale", "mscale_all_dim")
    if any(rope.get(key) is None for key in keys):
        return yarn_gain(factor)
    over, under = (yarn_gain(factor, _number(rope, key, where)) for key in keys)
    return over / under


def _number(rope: Mapping[str, Any], name: str, where: str, default: float | None = None) -> float:
    found = rope.get(name)
    value: Any = default if found is None else found
    if type(value) not in (int, float) or not 1e-9 < value < 1e9:
        raise EdgeError(
            f"{where}: {name} of the rope scaling is {value!r}, not a positive number; "
            f"check the file."
        )
    return float(value)
