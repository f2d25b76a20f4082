"""Open an MLX artefact (or a plain Hugging Face checkpoint) as a model that runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from edge.errors import EdgeError
from edge.model.config import ModelConfig, read_json_object
from edge.model.stablelm import Model
from edge.model.tensors import check_shapes


def compute_dtype() -> mx.Dtype:
    """The dtype activations and unquantised weights should have on this device.

    float16 on Metal and CUDA. On a CPU MLX's half-precision kernels are some 30 times
    slower than its float32 ones, so float32 there.
    """
    return mx.float16 if mx.default_device().type == mx.DeviceType.gpu else mx.float32


def load_model(path: Path | str, dtype: mx.Dtype | None = None) -> Model:
    """Load the weights of an artefact directory.

    Args:
        path: a directory with config.json and *.safetensors, in MLX or Hugging Face form.
        dtype: the compute dtype; by default what suits the device.

    Raises:
        EdgeError: a file is missing or broken, or the tensors do not fit the config.
    """
    path = Path(path)
    raw = read_json_object(path / "config.json")
    weights = _read_weights(path)
    config = ModelConfig.from_dict(raw, str(path / "config.json")).matching(weights)
    quantized = {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}
    model = Model(config)
    if quantized:
        _quantize(model, raw, quantized, path)
    else:
        check_shapes(config, {name: array.shape for name, array in weights.items()}, str(path))
    _fill(model, weights, path)
    model.set_dtype(dtype or compute_dtype())
    model.eval()
    mx.eval(model.parameters())
    return model


def load(path: Path | str) -> tuple[Model, Any]:
    """Load an artefact with its tokenizer.

    Returns:
        The model, called as `model(ids, cache=None) -> logits` with ids (B, L) and logits
        (B, L, vocab), and mlx-lm's TokenizerWrapper.
    """
    from mlx_lm.utils import load_tokenizer

    model = load_model(path)
    try:
        return model, load_tokenizer(Path(path))
    except (OSError, ValueError) as error:
        raise EdgeError(
            f"{path}: the tokenizer cannot be read ({error}); convert the checkpoint again."
        ) from None


def _read_weights(path: Path) -> dict[str, mx.array]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise EdgeError(f"{path} holds no *.safetensors; convert or download the model again.")
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
    return weights


def _quantize(model: Model, raw: dict[str, Any], quantized: set[str], path: Path) -> None:
    recipe = raw.get("quantization")
    if not isinstance(recipe, dict) or not {"group_size", "bits"} <= recipe.keys():
        raise EdgeError(
            f"{path / 'config.json'} has quantised weights but no 'quantization' with "
            f"group_size and bits; convert the model again."
        )
    nn.quantize(
        model,
        group_size=recipe["group_size"],
        bits=recipe["bits"],
        mode=recipe.get("mode", "affine"),
        class_predicate=lambda name, _: name in quantized,
    )


def _fill(model: Model, weights: dict[str, mx.array], path: Path) -> None:
    try:
        weights = model.sanitize(weights)
        expected = {name: array.shape for name, array in tree_flatten(model.parameters())}
        for name, shape in expected.items():
            if weights[name].shape != shape:
                raise EdgeError(
                    f"{path}: tensor {name} has shape {list(weights[name].shape)}, config.json "
                    f"asks for {list(shape)}; convert the model again."
                )
    except KeyError as error:
        raise EdgeError(
            f"{path}: tensor {error.args[0]} is missing; convert the model again."
        ) from None
    extra = sorted(weights.keys() - expected.keys())
    if extra:
        raise EdgeError(f"{path}: unknown tensor {extra[0]}; convert the model again.")
    model.load_weights(list(weights.items()))
