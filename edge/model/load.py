"""Open an MLX artefact (or a plain Hugging Face checkpoint) as a model that runs here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from edge.errors import EdgeError
from edge.formats.files import read_json_object
from edge.model.config import ModelConfig
from edge.model.cpu_linear import use_blas
from edge.model.memory import Need, check_fits
from edge.model.quantised import quantise
from edge.model.stablelm import Model
from edge.model.tensors import check_shapes, input_order_shapes
from edge.model.variant import Variant, current_backend
from edge.tokenizer.tokenizer import Tokenizer

# The context that must fit, if the model has so much: most chats and files stay below, and a
# cache for all of a long window would refuse machines that never fill it.
CONTEXT_TOKENS = 4096


class Loaded(NamedTuple):
    """A model, its tokenizer, and the memory that it takes while it runs."""

    model: Model
    tokenizer: Tokenizer
    need: Need


def open_model(
    path: Path, kv_bits: int | None = None, warn: Callable[[str], None] = lambda _: None
) -> Loaded:
    """Load an artefact with its tokenizer, unless it does not fit into memory.

    Args:
        path: a directory with config.json, *.safetensors and a tokenizer.
        kv_bits: of the cache that will be made for it; None as computed.
        warn: called with a sentence, before the weights are read, where memory is short.

    Raises:
        EdgeError: it does not fit, a file is missing or broken, or the tensors do not fit the
            config.
    """
    raw, config = read_directory(path)
    tokens = min(CONTEXT_TOKENS, config.max_position_embeddings)
    fit = check_fits(path, config, compute_dtype(), tokens, kv_bits)
    if fit.warning:
        warn(fit.warning)
    # The small files first: they say what is wrong before gigabytes are read.
    tokenizer = Tokenizer.load(path, raw)
    return Loaded(_load_model(path, raw, config), tokenizer, fit.need)


def compute_dtype() -> mx.Dtype:
    """The dtype activations and unquantised weights should have on this device.

    float16 on Metal and CUDA. On a CPU MLX's half-precision kernels are some 30 times
    slower than its float32 ones, so float32 there.
    """
    return mx.float16 if mx.default_device().type == mx.DeviceType.gpu else mx.float32


def load_model(
    path: Path | str, dtype: mx.Dtype | None = None, variant: Variant | None = None
) -> Model:
    """Load the weights of an artefact directory.

    Args:
        path: a directory with config.json and *.safetensors, in MLX or Hugging Face form.
        dtype: the compute dtype; by default what suits the device.
        variant: how the network runs; by default what is fastest on the device. With
            `Variant(fuse=False)` the parameters have the checkpoint's names.

    Raises:
        EdgeError: a file is missing or broken, or the tensors do not fit the config.
    """
    path = Path(path)
    return _load_model(path, *read_directory(path), dtype, variant)


def _load_model(
    path: Path,
    raw: dict[str, Any],
    config: ModelConfig,
    dtype: mx.Dtype | None = None,
    variant: Variant | None = None,
) -> Model:
    weights = _read_weights(path)
    config = config.matching(weights)
    orders = _take_input_orders(config, weights, path)
    if not any(name.endswith(".scales") for name in weights):
        check_shapes(config, {name: array.shape for name, array in weights.items()}, str(path))
    model = Model(config, variant)
    model.set_input_orders(orders)
    quantise(model, raw, weights, str(path / "config.json"))
    _fill(model, weights, path)
    weights.clear()  # an array held here would stay in memory as it was before the cast
    model.set_dtype(dtype or compute_dtype())
    model.eval()
    if model.variant.fuse:
        model.fuse()
    if current_backend() == "cpu":
        use_blas(model)
    mx.eval(model.parameters(), list(orders.values()))
    return model


def load(path: Path | str) -> tuple[Model, Tokenizer]:
    """Load an artefact with its tokenizer.

    Returns:
        The model, called as `model(ids, cache=None) -> logits` with ids (B, L) and logits
        (B, L, vocab), and its tokenizer.

    Raises:
        EdgeError: as `load_model`, or the tokenizer is missing or broken.
    """
    path = Path(path)
    raw, config = read_directory(path)
    tokenizer = Tokenizer.load(path, raw)
    return _load_model(path, raw, config), tokenizer


def has_input_orders(path: Path) -> bool:
    """Whether an artefact has matrices whose inputs are in an order of their own.

    Only our network gathers them; a loader that leaves the orders out computes nonsense.
    """
    return any(name.endswith("_order") for name in _read_weights(path))  # read when used


def read_directory(path: Path) -> tuple[dict[str, Any], ModelConfig]:
    """A model directory's config.json, as it is and as the network that it describes.

    Raises:
        EdgeError: nothing is there, or a file is; config.json is missing, broken or describes
            another network.
    """
    _check_directory(path)
    file = path / "config.json"
    raw = read_json_object(file)
    return raw, ModelConfig.from_dict(raw, str(file))


def _check_directory(path: Path) -> None:
    if path.is_dir():
        return
    if not path.exists():
        raise EdgeError(f"{path} is not there; check the path, or convert the model first.")
    kind = "a GGUF file" if _is_gguf(path) else "no directory"
    raise EdgeError(
        f"{path} is {kind}, and a model that runs here is a directory with config.json, "
        f"tokenizer.json and *.safetensors; make one with `edge convert`."
    )


def _is_gguf(path: Path) -> bool:
    if not path.is_file():  # to open a pipe would wait for ever
        return False
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _weight_files(path: Path) -> list[Path]:
    """Every *.safetensors of a directory, none of which the index misses."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise EdgeError(f"{path} holds no *.safetensors; convert or download the model again.")
    index = path / "model.safetensors.index.json"
    listed = read_json_object(index).get("weight_map") if index.exists() else None
    if isinstance(listed, dict):
        missing = sorted({str(name) for name in listed.values()} - {file.name for file in files})
        if missing:
            raise EdgeError(
                f"{path / missing[0]} is missing, which {index.name} names; copy or download the "
                f"model again."
            )
    return files


def _read_weights(path: Path) -> dict[str, mx.array]:
    files = _weight_files(path)
    weights: dict[str, mx.array] = {}
    for file in files:
        try:
            loaded = mx.load(str(file), format="safetensors")
        except (RuntimeError, ValueError, OSError) as error:
            raise EdgeError(
                f"{file} cannot be read ({error}); convert or download the model again."
            ) from None
        assert isinstance(loaded, dict)  # safetensors without metadata always is
        weights |= loaded
    if any(name.endswith(".qweight") for name in weights):
        raise EdgeError(
            f"{path} holds GPTQ weights; convert it to an MLX artefact first, with `edge convert`."
        )
    return weights


def _take_input_orders(
    config: ModelConfig, weights: dict[str, mx.array], path: Path
) -> dict[str, mx.array]:
    """The permutations among the tensors, checked; they are no weights, so they leave the dict."""
    orders = {}
    for name, (width,) in input_order_shapes(config).items():
        if name in weights:
            orders[name] = weights.pop(name)
            if not _is_permutation(orders[name], width):
                raise EdgeError(
                    f"{path}: tensor {name} is no permutation of 0 to {width - 1} in int32; "
                    f"convert the model again."
                )
    return orders


def _is_permutation(order: mx.array, width: int) -> bool:
    if order.shape != (width,) or order.dtype != mx.int32:
        return False
    return bool(mx.array_equal(mx.sort(order), mx.arange(width, dtype=mx.int32)).item())


def _fill(model: Model, weights: dict[str, mx.array], path: Path) -> None:
    try:
        weights = model.sanitize(weights)
        expected = dict(tree_flatten(model.parameters()))
        for name, array in expected.items():
            _check_tensor(name, weights[name], array, path)
    except KeyError as error:
        raise EdgeError(
            f"{path}: tensor {error.args[0]} is missing; convert the model again."
        ) from None
    extra = sorted(weights.keys() - expected.keys())
    if extra:
        raise EdgeError(f"{path}: unknown tensor {extra[0]}; convert the model again.")
    model.load_weights(list(weights.items()))


def _check_tensor(name: str, found: mx.array, expected: mx.array, path: Path) -> None:
    if found.shape != expected.shape:
        raise EdgeError(
            f"{path}: tensor {name} has shape {list(found.shape)}, config.json asks for "
            f"{list(expected.shape)}; convert the model again."
        )
    if not _can_stand_for(found.dtype, expected.dtype):
        raise EdgeError(
            f"{path}: tensor {name} is {found.dtype}, which cannot stand for {expected.dtype}; "
            f"convert the model again."
        )


def _can_stand_for(found: mx.Dtype, expected: mx.Dtype) -> bool:
    """Floating point of any width for floating point; codes only as they are."""
    if mx.issubdtype(expected, mx.floating):
        return mx.issubdtype(found, mx.floating)
    return found == expected
