"""Which tensors a checkpoint holds, by Hugging Face name and shape."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edge.errors import EdgeError
from edge.model.config import TITLES, ModelConfig

Shape = tuple[int, ...]
# q, k, v, o, gate, up, down and a norm. A config may ask for this many times what the files hold
# and still be told by name which tensor is missing.
LEAST_LAYER_TENSORS = 8
ABSURD_RATIO, MANY_TENSORS = 8, 100_000

# The permutations beside the weights, and the matrices whose inputs each one gathers.
ORDER_READERS = {
    "qkv_order": ("q_proj", "k_proj", "v_proj"),
    "o_order": ("o_proj",),
    "gate_up_order": ("gate_proj", "up_proj"),
}


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor of the checkpoint that the network uses."""
    hidden, vocab = config.hidden_size, config.vocab_size
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config.num_hidden_layers):
        shapes |= _layer_shapes(config, f"model.layers.{layer}.")
    shapes |= _norm(config, "model.norm")
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def input_order_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The permutations (int32) that an artefact may hold beside its weights.

    A matrix whose columns are stored in another order than the network's inputs, as act-order
    GPTQ leaves them, has its inputs gathered by one of these: column i belongs to input
    order[i]. There is one for q, k and v, one for o, one for gate and up; none for down, whose
    order belongs into the rows of gate and up. Absent means the natural order.
    """
    widths = {
        "self_attn.qkv_order": config.hidden_size,
        "self_attn.o_order": config.num_attention_heads * config.head_dim,
        "mlp.gate_up_order": config.hidden_size,
    }
    return {
        f"model.layers.{layer}.{name}": (width,)
        for layer in range(config.num_hidden_layers)
        for name, width in widths.items()
    }


def order_of(matrix: str) -> str | None:
    """The name of the permutation that a matrix's inputs may need; None if it never does.

    Args:
        matrix: its path, such as model.layers.0.self_attn.q_proj.
    """
    block, _, leaf = matrix.rpartition(".")
    order = next((name for name, readers in ORDER_READERS.items() if leaf in readers), None)
    return order and f"{block}.{order}"


def check_count(config: ModelConfig, found: int, where: str) -> None:
    """Refuse a config that asks for absurdly many tensors, before anything lists them.

    Args:
        config: the network.
        found: how many tensors the files hold, of whatever names.
        where: the checkpoint's name for messages.

    Raises:
        EdgeError: it asks for many times what is there.
    """
    heads = config.num_attention_heads + config.num_key_value_heads if config.qk_layernorm else 0
    least = config.num_hidden_layers * (LEAST_LAYER_TENSORS + heads)
    if least > max(MANY_TENSORS, ABSURD_RATIO * found):
        raise EdgeError(
            f"{where}: config.json asks for {config.num_hidden_layers} layers and so for at least "
            f"{least} tensors, the files hold {found}; the two belong to different models, so "
            f"download both again."
        )


def parameter_count(config: ModelConfig) -> int:
    """Number of weights, a tied head counted once."""
    return sum(math.prod(shape) for shape in expected_shapes(config).values())


def is_ignored(name: str) -> bool:
    """Tensors that old checkpoints carry and no loader needs."""
    return name.endswith("rotary_emb.inv_freq")


def check_shapes(config: ModelConfig, found: Mapping[str, Shape], where: str) -> None:
    """Compare a checkpoint's tensors with what its config asks for.

    Raises:
        EdgeError: the first tensor that is missing, has the wrong shape, or is unknown.
    """
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if name not in found:
            raise EdgeError(
                f"{where}: tensor {name} {list(shape)} is missing; "
                f"the download is incomplete or config.json belongs to another model."
            )
        if tuple(found[name]) != shape:
            raise EdgeError(
                f"{where}: tensor {name} has shape {list(found[name])}, config.json asks for "
                f"{list(shape)}; the two belong to different models, so download both again."
            )
    extra = [
        name
        for name in found
        if name not in expected and not is_ignored(name) and not _is_tied_copy(name, config)
    ]
    if extra:
        raise EdgeError(
            f"{where}: tensor {extra[0]} is not part of a {TITLES[config.model_type]}"
            f"{f' (and {len(extra) - 1} more)' if len(extra) > 1 else ''}; "
            f"config.json belongs to another model, so download both again."
        )


def _is_tied_copy(name: str, config: ModelConfig) -> bool:
    """Some savers write the tied head as well."""
    return config.tie_word_embeddings and name == "lm_head.weight"


def _layer_shapes(config: ModelConfig, prefix: str) -> dict[str, Shape]:
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    widths = {
        "q": config.num_attention_heads * head,
        "k": config.num_key_value_heads * head,
        "v": config.num_key_value_heads * head,
    }
    shapes: dict[str, Shape] = {}
    for letter, width in widths.items():
        shapes |= _linear(f"{prefix}self_attn.{letter}_proj", width, hidden, config.use_qkv_bias)
    shapes |= _linear(f"{prefix}self_attn.o_proj", hidden, widths["q"], config.use_o_bias)
    if config.qk_layernorm:
        for letter in "qk":
            for i in range(widths[letter] // head):
                shapes[f"{prefix}self_attn.{letter}_layernorm.norms.{i}.weight"] = (head,)
    for name in ("gate", "up"):
        shapes |= _linear(f"{prefix}mlp.{name}_proj", inner, hidden, config.use_mlp_bias)
    shapes |= _linear(f"{prefix}mlp.down_proj", hidden, inner, config.use_mlp_bias)
    shapes |= _norm(config, f"{prefix}input_layernorm")
    if not config.use_parallel_residual:
        shapes |= _norm(config, f"{prefix}post_attention_layernorm")
    return shapes


def _linear(name: str, outputs: int, inputs: int, bias: bool) -> dict[str, Shape]:
    weight: dict[str, Shape] = {f"{name}.weight": (outputs, inputs)}
    return weight | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(config: ModelConfig, name: str) -> dict[str, Shape]:
    parts = ("weight",) if config.model_type == "llama" else ("weight", "bias")
    return {f"{name}.{part}": (config.hidden_size,) for part in parts}
