"""Open an MLX artefact (or a plain Hugging Face checkpoint) as a model that runs here."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from edge.errors import EdgeError
from edge.formats.files import read_json_object
from edge.model.config import ModelConfig
from edge.model.cpu_linear import use_blas
from edge.model.memory import Need, check_fits, weight_files
from edge.model.stablelm import Model, current_backend
from edge.model.tensors import check_count, input_order_shapes
from edge.tokenizer.tokenizer import Tokenizer

# The context that must fit, if the model has so much: most chats and files stay below, and a
# cache for all of a long window would refuse machines that never fill it.
CONTEXT_TOKENS = 4096
# The group sizes and bits that mx.quantize has in each mode; the first of each is its default.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((64, 32, 128), (4, 1, 2, 3, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "nvfp4": ((16,), (4,)),
    "mxfp8": ((32,), (8,)),
}


class Loaded(NamedTuple):
    """A model, its tokenizer, and the memory that it takes while it runs."""

    model: Model
    tokenizer: Tokenizer
    need: Need


def compute_dtype() -> mx.Dtype:
    """float16 on a GPU; on a CPU float32, where MLX's half precision is some 30 times slower."""
    return mx.float32 if current_backend() == "cpu" else mx.float16


def open_model(
    path: Path, kv_bits: int | None = None, warn: Callable[[str], None] = lambda _: None
) -> Loaded:
    """Loads an artefact with its tokenizer if it and a cache of `kv_bits` fit into memory.

    `warn` gets a sentence, before the weights are read, where memory is short now. An EdgeError
    says that it can never fit, or what is missing, broken or not as config.json says.
    """
    raw, config = read_directory(path)
    tokens = min(CONTEXT_TOKENS, config.max_position_embeddings)
    need, warning = check_fits(path, config, compute_dtype(), tokens, kv_bits)
    if warning:
        warn(warning)
    return Loaded(*_load(path, raw, config), need)


def load(path: Path | str) -> tuple[Model, Tokenizer]:
    """Loads an artefact with its tokenizer, whether it fits into memory or not."""
    return _load(Path(path), *read_directory(Path(path)))


def _load(path: Path, raw: dict[str, Any], config: ModelConfig) -> tuple[Model, Tokenizer]:
    # The small files first: they say what is wrong before gigabytes are read.
    tokenizer = Tokenizer.load(path, raw)
    return _load_model(path, raw, config), tokenizer


def load_model(path: Path | str, dtype: mx.Dtype | None = None, fuse: bool = True) -> Model:
    """Loads an artefact; without `fuse` its parameters have the checkpoint's names."""
    return _load_model(Path(path), *read_directory(Path(path)), dtype, fuse)


def read_directory(path: Path) -> tuple[dict[str, Any], ModelConfig]:
    """A model directory's config.json, as it is and as the network that it describes."""
    if not path.is_dir():
        found = "is not a directory" if path.exists() else "is not there"
        raise EdgeError(
            f"{path} {found}; a model is a directory with config.json, tokenizer.json and "
            f"*.safetensors, so check the path or make one with `edge convert`."
        )
    raw = read_json_object(path / "config.json")
    return raw, ModelConfig.from_dict(raw, str(path / "config.json"))


def has_input_orders(path: Path) -> bool:
    """True where matrices have inputs in an order of their own: only our network follows it."""
    return any(name.endswith("_order") for file in weight_files(path).values() for name in file)


def _load_model(
    path: Path, raw: Any, config: ModelConfig, dtype: mx.Dtype | None = None, fuse: bool = True
) -> Model:
    weights: Any = {}
    for file in weight_files(path):
        weights |= mx.load(str(file), format="safetensors")
    check_count(config, len(weights), str(path))
    model = Model(config.matching(weights))
    try:
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
    weights.clear()  # an array held here would stay in memory as it was before the cast
    model.set_dtype(dtype or compute_dtype())
    model.eval()
    if fuse:
        model.fuse()
    if current_backend() == "cpu":
        use_blas(model)
    mx.eval(model.parameters(), list(orders.values()))
    return model


def _take_input_orders(config: ModelConfig, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """The permutations among the tensors, checked, and taken out of the dict."""
    expected = input_order_shapes(config)
    orders = {name: weights.pop(name) for name in expected.keys() & weights.keys()}
    for name, order in orders.items():
        natural = mx.arange(expected[name][0], dtype=mx.int32)
        if order.dtype != mx.int32 or not mx.array_equal(mx.sort(order), natural).item():
            raise ValueError(f"{name} is not a permutation of {natural.size} inputs in int32")
    return orders


def _quantise(model: Model, recipe: Any, tensors: Collection[str]) -> None:
    """Turns the layers that an artefact holds quantised into quantised ones, still unfilled.

    The recipe is mlx-lm's `quantization`: group_size, bits and mode on top hold for every matrix
    that has scales. A path of its own overrules them: false leaves the matrix alone, an object has
    its own values, where one that is missing is the mode's default, not the one on top.
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
    """Group size, bits and mode as mx.quantize takes them; it crashes on some that it lacks."""
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
    """Takes all tensors; any floats may stand for floats, codes only for codes."""
    weights = model.sanitize(weights)
    for name, expected in tree_flatten(model.parameters()):
        found = weights.get(name, expected).dtype
        are_floats = all(mx.issubdtype(dtype, mx.floating) for dtype in (found, expected.dtype))
        if not are_floats and found != expected.dtype:
            raise ValueError(f"{name} is {found}, not {expected.dtype}")
    model.load_weights(list(weights.items()))
