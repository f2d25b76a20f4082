"""How an artefact's matrices are quantised: `quantization` in config.json, as mlx-lm writes it.

    {"group_size": 64, "bits": 4, "mode": "affine",
     "model.embed_tokens": false,
     "model.layers.0.self_attn.v_proj": {"group_size": 64, "bits": 6}}

The values on top hold for every matrix that has scales. A path of its own overrules them: false
leaves the matrix alone, an object has its own values, where one that is missing is the mode's
default rather than the one on top.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlx import nn

from edge.errors import EdgeError

# The modes, bits and group sizes that mx.quantize has; the first of each is its default.
AFFINE_BITS = (4, 1, 2, 3, 5, 6, 8)
AFFINE_GROUP_SIZES = (64, 32, 128)
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": (AFFINE_BITS, AFFINE_GROUP_SIZES),
    "mxfp4": ((4,), (32,)),
    "nvfp4": ((4,), (16,)),
    "mxfp8": ((8,), (32,)),
}


@dataclass(frozen=True)
class Quantisation:
    """How one matrix is quantised, in the terms of `mx.quantize`."""

    group_size: int
    bits: int
    mode: str

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str) -> Quantisation:
        """Read and check an object with group_size, bits and mode.

        Raises:
            EdgeError: a value that MLX does not have.
        """
        mode = raw.get("mode", "affine")
        if not isinstance(mode, str) or mode not in MODES:
            raise _unusable(where, "mode", mode, MODES)
        bits_choices, group_sizes = MODES[mode]
        group_size = _choice(raw, "group_size", group_sizes, where)
        return cls(group_size, _choice(raw, "bits", bits_choices, where), mode)


def quantise(
    model: nn.Module, raw: Mapping[str, Any], tensors: Collection[str], where: str
) -> None:
    """Turn the layers that an artefact holds quantised into quantised ones, still unfilled.

    Args:
        model: the network with ordinary layers; changed in place.
        raw: the artefact's config.json.
        tensors: the names of its tensors; a matrix with `.scales` or `.biases` is quantised.
        where: the config's name for error messages.

    Raises:
        EdgeError: the config does not say how a matrix is quantised, says it in values that
            MLX does not have, or contradicts the tensors.
    """
    matrices = {p: m for p, m in model.named_modules() if hasattr(m, "to_quantized")}
    coded = {p for p in matrices if f"{p}.scales" in tensors or f"{p}.biases" in tensors}
    plan = _plan(matrices, _read(raw, coded, where), coded, where)
    for path, how in plan.items():
        _check_groups(path, how, matrices[path].weight.shape[-1], where)
    nn.quantize(
        model, class_predicate=lambda path, _: asdict(plan[path]) if path in plan else False
    )


def _read(raw: Mapping[str, Any], coded: Collection[str], where: str) -> Mapping[str, Any]:
    """The `quantization` object; an empty one if there is none and nothing is quantised."""
    recipe = raw.get("quantization")
    if recipe is None and not coded:
        return {}
    if recipe is None:
        raise EdgeError(
            f"{where} has no 'quantization' with group_size and bits, but there are quantised "
            f"weights; convert the model again."
        )
    if not isinstance(recipe, Mapping):
        raise EdgeError(
            f"{where}: quantization is {recipe!r}, not an object with group_size and bits; "
            f"convert the model again."
        )
    return recipe


def _plan(
    matrices: Collection[str], recipe: Mapping[str, Any], coded: Collection[str], where: str
) -> dict[str, Quantisation]:
    """Which matrices are quantised, and how."""
    plan = {}
    for path in matrices:
        own = recipe.get(path, path in coded)
        if not isinstance(own, bool | Mapping):
            raise EdgeError(
                f"{where}: quantization of {path} is {own!r}, neither true, false nor an object "
                f"with group_size and bits; convert the model again."
            )
        if (own is not False) != (path in coded):
            raise EdgeError(
                f"{where}: quantization of {path} is {own!r}, but tensor {path}.scales is "
                f"{'there' if path in coded else 'missing'}; convert the model again."
            )
        if isinstance(own, Mapping):
            plan[path] = Quantisation.from_dict(own, f"{where}: quantization of {path}")
        elif own:
            plan[path] = _on_top(recipe, where)
    return plan


def _on_top(recipe: Mapping[str, Any], where: str) -> Quantisation:
    if not {"group_size", "bits"} <= recipe.keys():
        raise EdgeError(
            f"{where}: 'quantization' lacks group_size or bits for all matrices; "
            f"convert the model again."
        )
    return Quantisation.from_dict(recipe, f"{where}: quantization")


def _check_groups(path: str, how: Quantisation, inputs: int, where: str) -> None:
    if inputs % how.group_size:
        raise EdgeError(
            f"{where}: quantization of {path} has groups of {how.group_size}, which do not "
            f"divide its {inputs} inputs; convert the model again."
        )


def _choice(raw: Mapping[str, Any], key: str, choices: tuple[int, ...], where: str) -> int:
    value = raw.get(key)
    if value is None:
        return choices[0]
    if not isinstance(value, int) or isinstance(value, bool) or value not in choices:
        raise _unusable(where, key, value, sorted(choices))
    return value


def _unusable(where: str, key: str, value: object, choices: Collection[object]) -> EdgeError:
    return EdgeError(
        f"{where} has {key} {value!r}; MLX has {', '.join(map(str, choices))}, "
        f"so convert the model again."
    )
