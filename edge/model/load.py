"""Loading an MLX artefact or a plain Hugging Face checkpoint."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from edge.errors import EdgeError
from edge.formats.files import DEMO_PATH, read_json_object
from edge.formats.folder import inside
from edge.formats.safetensors import StoredTensor
from edge.model.backend import current_backend
from edge.model.config import ModelConfig
from edge.model.cpu_linear import use_blas
from edge.model.memory import Need, check_fits, read_tensors
from edge.model.shard import WHOLE, Part, check_split, read_part
from edge.model.stablelm import Model
from edge.model.tensors import check_count, input_order_shapes
from edge.tokenizer.tokenizer import Tokenizer

# Context that must fit, or the model's if that is shorter: most chats and files stay below, and a
# cache for a whole long window would refuse machines that never fill it.
CONTEXT_TOKENS = 4096
# Group sizes and bits that mx.quantize has in each mode; the first of each is its default.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((64, 32, 128), (4, 1, 2, 3, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "nvfp4": ((16,), (4,)),
    "mxfp8": ((32,), (8,)),
}


class Loaded(NamedTuple):
    """A model, its tokenizer and the memory that they need."""

    model: Model
    tokenizer: Tokenizer
    need: Need


def compute_dtype() -> mx.Dtype:
    """float16 on a GPU; float32 on a CPU, where MLX's half precision is some 30 times slower."""
    return mx.float32 if current_backend() == "cpu" else mx.float16


def open_model(
    path: Path,
    kv_bits: int | None = None,
    warn: Callable[[str], None] = lambda _: None,
    part: Part = WHOLE,
) -> Loaded:
    """Loads an artefact with its tokenizer if it and a cache of `kv_bits` fit into memory.

    `warn` gets a sentence, before the weights are read, where memory is short now. Raises an
    EdgeError if it can never fit, or if a file is missing, broken or contradicts config.json.
    """
    raw, config = read_directory(path)
    tokens = min(CONTEXT_TOKENS, config.max_position_embeddings)
    need, warning = check_fits(path, config, compute_dtype(), tokens, kv_bits, part.size)
    if warning:
        warn(warning)
    return Loaded(*_load(path, raw, config, part), need)


def load(path: Path | str) -> tuple[Model, Tokenizer]:
    """Loads an artefact or "demo" with its tokenizer, without a check of the memory."""
    path = DEMO_PATH if path == "demo" else Path(path)
    return _load(path, *read_directory(path))


def _load(
    path: Path, raw: dict[str, Any], config: ModelConfig, part: Part = WHOLE
) -> tuple[Model, Tokenizer]:
    # The tokenizer first: an error in its files ends this before gigabytes are read.
    tokenizer = Tokenizer.load(path, raw)
    return _load_model(path, raw, config, part=part), tokenizer


def load_model(
    path: Path, dtype: mx.Dtype | None = None, fuse: bool = True, part: Part = WHOLE
) -> Model:
    """Loads an artefact, or a device's part; without `fuse` parameters have the files' names."""
    return _load_model(path, *read_directory(path), dtype, fuse, part)


def read_directory(path: Path) -> tuple[dict[str, Any], ModelConfig]:
    """A model directory's config.json, raw and checked."""
    if not path.is_dir():
        problem = "is not a directory" if path.exists() else "does not exist"
        raise EdgeError(
            f"{path} {problem}; a model is a directory with config.json, tokenizer.json and "
            f"*.safetensors, so check the path or make one with `edge convert`."
        )
    file = inside(path, "config.json")
    raw = read_json_object(file)
    return raw, ModelConfig.from_dict(raw, str(file))


def has_input_orders(path: Path) -> bool:
    """True where matrices have permuted inputs, which mlx-lm's network cannot run."""
    return any(name.endswith("_order") for name in read_tensors(path))


def _load_model(
    path: Path,
    raw: Any,
    config: ModelConfig,
    dtype: mx.Dtype | None = None,
    fuse: bool = True,
    part: Part = WHOLE,
) -> Model:
    tensors, dtype = read_tensors(path), dtype or compute_dtype()
    check_count(config, len(tensors), str(path))
    if part.size > 1:
        check_split(config, raw.get("quantization"), part.size, str(path))
    model = Model(config.matching(tensors), part)
    try:
        weights = _weights(tensors, part, dtype)
        orders = _take_input_orders(model.config, weights)
        _quantise(model, raw.get("quantization") or {}, weights)
        _fill(model, weights)
    except (KeyError, ValueError) as error:
        is_missing = isinstance(error, KeyError)  # of a head's norm
        reason = f"{error.args[0]} is missing" if is_missing else " ".join(str(error).split())
        raise EdgeError(
            f"{path}: its tensors are not what config.json describes ({reason}); convert or "
            f"download the model again."
        ) from None
    model.set_input_orders(orders)
    weights.clear()  # arrays held here would stay in memory in their dtype before the cast
    model.set_dtype(dtype)
    model.eval()
    if fuse:
        model.fuse()
    if current_backend() == "cpu":
        use_blas(model)
    mx.eval(model.parameters(), list(orders.values()))
    return model


def _weights(
    tensors: Mapping[str, StoredTensor], part: Part, dtype: mx.Dtype
) -> dict[str, mx.array]:
    """The tensors that a device needs; where it needs all they are read when they are used."""
    if part.size > 1:
        return read_part(tensors, part, dtype)
    weights: Any = {}
    for file in dict.fromkeys(tensor.path for tensor in tensors.values()):
        weights |= mx.load(str(file), format="safetensors")
    return weights  # type: ignore[no-any-return]


def _take_input_orders(config: ModelConfig, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Takes the permutations out of the tensors and checks them."""
    expected = input_order_shapes(config)
    orders = {name: weights.pop(name) for name in expected.keys() & weights.keys()}
    for name, order in orders.items():
        natural = mx.arange(expected[name][0], dtype=mx.int32)
        if order.dtype != mx.int32 or not mx.array_equal(mx.sort(order), natural).item():
            raise ValueError(f"{name} is not a permutation of {natural.size} inputs in int32")
    return orders


def _quantise(model: Model, recipe: Any, tensors: Collection[str]) -> None:
    """Replaces the layers that an artefact stores quantised by quantised ones, not yet filled.

    The recipe is mlx-lm's `quantization`: group_size, bits and mode at the top level hold for all
    matrices with scales. A matrix's own entry overrides them: false keeps floats, an object has
    its own values; a missing one is the mode's default, not the top level's.
    """

    def how(name: str, layer: nn.Module) -> dict[str, Any] | bool:
        own = recipe.get(name, f"{name}.scales" in tensors)
        if own is False or not hasattr(layer, "to_quantized"):
            return False
        return _settings(recipe if own is True else own, name)

    if not isinstance(recipe, Mapping):
        raise ValueError(f"quantization is {recipe!r}, not an object")
    nn.quantize(model, class_predicate=how)


def _settings(values: Any, name: str) -> dict[str, Any]:
    """Group size, bits and mode as mx.quantize takes them; it crashes on some unknown values."""
    if not isinstance(values, Mapping):
        raise ValueError(f"quantization of {name} is {values!r}, not true, false or an object")
    mode = values.get("mode", "affine")
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"quantization mode {mode!r} is unknown")
    settings: dict[str, Any] = {"mode": mode}
    for key, allowed in zip(("group_size", "bits"), MODES[mode], strict=True):
        settings[key] = values.get(key) or allowed[0]
        if settings[key] not in allowed:
            raise ValueError(f"quantization in {key} {settings[key]!r} of mode {mode} is unknown")
    return settings


def _fill(model: Model, weights: dict[str, mx.array]) -> None:
    """Loads all tensors; floats may have any float dtype, codes must have the expected one."""
    weights = model.sanitize(weights)
    for name, expected in tree_flatten(model.parameters()):
        found = weights.get(name, expected).dtype
        are_floats = all(mx.issubdtype(dtype, mx.floating) for dtype in (found, expected.dtype))
        if not are_floats and found != expected.dtype:
            raise ValueError(f"{name} is {found}, not {expected.dtype}")
    model.load_weights(list(weights.items()))
