"""The tensors of a checkpoint, by Hugging Face name and shape."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

from mlx.utils import tree_flatten

from edge.errors import EdgeError
from edge.model.config import ModelConfig
from edge.model.stablelm import Model

Shape = tuple[int, ...]
LAYER = "model.layers.0."
MIN_LAYER_TENSORS = 8  # q, k, v, o, gate, up, down and a norm
# Up to these limits a config with too many tensors is accepted, so that the missing one is named;
# 10,000 layers would take seconds to build.
MAX_RATIO, MANY_TENSORS = 8, 4_000
# Permutations stored beside the weights -> the matrices whose inputs each one gathers.
ORDER_READERS = {
    "self_attn.qkv_order": ("q_proj", "k_proj", "v_proj"),
    "self_attn.o_order": ("o_proj",),
    "mlp.gate_up_order": ("gate_proj", "up_proj"),
}


@lru_cache(maxsize=4)
def expected_shapes(config: ModelConfig) -> Mapping[str, Shape]:
    """Names and shapes of all tensors that the network uses, in the order of its computation."""
    one = Model(replace(config, num_hidden_layers=1))  # MLX is lazy: its arrays are not computed
    items = [item for name, a in tree_flatten(one.parameters()) for item in _stored(name, a.shape)]
    layer = [(name, shape) for name, shape in items if name.startswith(LAYER)]
    begin, numbers = items.index(layer[0]), range(config.num_hidden_layers)
    layers = [
        (n.replace(LAYER, f"model.layers.{i}."), shape) for i in numbers for n, shape in layer
    ]
    return dict(items[:begin] + layers + items[begin + len(layer) :])


def _stored(name: str, shape: Shape) -> list[tuple[str, Shape]]:
    """One parameter as it is stored in a checkpoint, which has a tensor per head's norm."""
    if not name.endswith(("q_layernorm.weight", "k_layernorm.weight")):
        return [(name, shape)]
    heads, width = shape
    stem = name.removesuffix("weight")
    return [(f"{stem}norms.{head}.weight", (width,)) for head in range(heads)]


def input_order_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Names and shapes of the permutations (int32) that an artefact may hold beside its weights.

    Act-order GPTQ stores the columns of a matrix in another order than the network's inputs:
    column i belongs to input order[i]. down_proj has none: the rows of gate and up are permuted.
    """
    return {
        f"model.layers.{layer}.{name}": (config.hidden_size,)  # as wide as all heads, too
        for layer in range(config.num_hidden_layers)
        for name in ORDER_READERS
    }


def order_of(matrix: str) -> str | None:
    """Name of the permutation of a matrix's inputs; None for matrices that never have one."""
    layer, leaf = matrix.rsplit(".", 2)[0], matrix.rpartition(".")[2]
    found = (name for name, readers in ORDER_READERS.items() if leaf in readers)
    return next((f"{layer}.{name}" for name in found), None)


def check_count(config: ModelConfig, found: int, where: str) -> None:
    """Raises an EdgeError for far more tensors than the files hold, before they are listed."""
    heads = config.num_attention_heads + config.num_key_value_heads if config.qk_layernorm else 0
    least = config.num_hidden_layers * (MIN_LAYER_TENSORS + heads)
    if least > max(MANY_TENSORS, MAX_RATIO * found):
        raise EdgeError(
            f"{where}: config.json asks for {config.num_hidden_layers} layers and so for at least "
            f"{least} tensors, the files hold {found}; they belong to different models."
        )


def parameter_count(config: ModelConfig) -> int:
    """Number of weights; a tied head is counted once."""
    return sum(math.prod(shape) for shape in expected_shapes(config).values())


def check_shapes(config: ModelConfig, found: Mapping[str, Shape], where: str) -> None:
    """Raises an EdgeError that names the first tensor which is missing, misshapen or unknown."""
    for problem in _problems(config, found):
        raise EdgeError(
            f"{where}: tensor {problem}; the download is incomplete or config.json belongs to "
            f"another model, so download both again."
        )


def _problems(config: ModelConfig, found: Mapping[str, Shape]) -> Iterator[str]:
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if name not in found:
            yield f"{name} {list(shape)} is missing"
        elif tuple(found[name]) != shape:
            yield f"{name} has shape {list(found[name])}, config.json asks for {list(shape)}"
    for name in found:
        if name not in expected and not config.drops(name):
            yield f"{name} is not part of a {config.model_type} network"
