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
LEAST_LAYER_TENSORS = 8  # q, k, v, o, gate, up, down and a norm
# A config may ask for so many times what the files hold, and is still told what is missing.
ABSURD_RATIO, MANY_TENSORS = 8, 100_000
# The permutations beside the weights, and the matrices whose inputs each one gathers.
ORDER_READERS = {
    "self_attn.qkv_order": ("q_proj", "k_proj", "v_proj"),
    "self_attn.o_order": ("o_proj",),
    "mlp.gate_up_order": ("gate_proj", "up_proj"),
}


@lru_cache(maxsize=4)
def expected_shapes(config: ModelConfig) -> Mapping[str, Shape]:
    """Every tensor of the checkpoint that the network uses, in the order of its computation."""
    one = Model(replace(config, num_hidden_layers=1))  # MLX is lazy: its arrays are not computed
    items = [item for name, a in tree_flatten(one.parameters()) for item in _stored(name, a.shape)]
    layer = [(name, shape) for name, shape in items if name.startswith(LAYER)]
    begin, numbers = items.index(layer[0]), range(config.num_hidden_layers)
    layers = [
        (n.replace(LAYER, f"model.layers.{i}."), shape) for i in numbers for n, shape in layer
    ]
    return dict(items[:begin] + layers + items[begin + len(layer) :])


def _stored(name: str, shape: Shape) -> list[tuple[str, Shape]]:
    """One array of the network as a checkpoint has it: each head's norm is a tensor of its own."""
    if not name.endswith(("q_layernorm.weight", "k_layernorm.weight")):
        return [(name, shape)]
    heads, width = shape
    stem = name.removesuffix("weight")
    return [(f"{stem}norms.{head}.weight", (width,)) for head in range(heads)]


def input_order_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The permutations (int32) that an artefact may hold beside its weights.

    Act-order GPTQ leaves the columns of a matrix in another order than the network's inputs:
    column i belongs to input order[i]. There is none for down, whose order belongs into the rows
    of gate and up.
    """
    return {
        f"model.layers.{layer}.{name}": (config.hidden_size,)  # as wide as all heads, too
        for layer in range(config.num_hidden_layers)
        for name in ORDER_READERS
    }


def order_of(matrix: str) -> str | None:
    """The permutation that the inputs of a matrix, by its path, may need; None if never any."""
    layer, leaf = matrix.rsplit(".", 2)[0], matrix.rpartition(".")[2]
    found = (name for name, readers in ORDER_READERS.items() if leaf in readers)
    return next((f"{layer}.{name}" for name in found), None)


def check_count(config: ModelConfig, found: int, where: str) -> None:
    """Refuses a config of absurdly many more tensors than the files hold, before any list."""
    heads = config.num_attention_heads + config.num_key_value_heads if config.qk_layernorm else 0
    least = config.num_hidden_layers * (LEAST_LAYER_TENSORS + heads)
    if least > max(MANY_TENSORS, ABSURD_RATIO * found):
        raise EdgeError(
            f"{where}: config.json asks for {config.num_hidden_layers} layers and so for at least "
            f"{least} tensors, the files hold {found}; they belong to different models."
        )


def parameter_count(config: ModelConfig) -> int:
    """Number of weights, a tied head counted once."""
    return sum(math.prod(shape) for shape in expected_shapes(config).values())


def check_shapes(config: ModelConfig, found: Mapping[str, Shape], where: str) -> None:
    """Names the first tensor of a checkpoint that is missing, misshapen or unknown, in an error."""
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
