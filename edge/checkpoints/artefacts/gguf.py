"""Write a StableLM GGUF file in float32 or float16.

Written here rather than by llama.cpp's converter because that one leaves out
`stablelm.rope.freq_base`: llama.cpp then runs with base 10000, which is wrong for
Stable Code (1000000). K-quants are made from the float16 file by llama.cpp itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge.checkpoints.artefacts.float16 import to_float16
from edge.checkpoints.artefacts.gguf_tokenizer import GgufTokenizer, read_tokenizer
from edge.checkpoints.artefacts.manifest import GGUF_KEY, manifest_of
from edge.checkpoints.checkpoint import Checkpoint
from edge.model.config import ModelConfig
from edge.model.tensors import expected_shapes

Progress = Callable[[float], None]
QUANTIZATION_VERSION = 2
FLOAT32, FLOAT16 = 0, 1  # llama_ftype
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(checkpoint: Checkpoint, file_type: int, out: Path, progress: Progress) -> None:
    """Write the file.

    Args:
        checkpoint: where the weights come from.
        file_type: 0 for float32 weights, 1 for float16.
        out: the file to make.
        progress: told the finished fraction, 0 to 1.

    Raises:
        EdgeError: the tokenizer cannot be expressed, or a weight does not fit float16.
    """
    from gguf import GGUFWriter

    wide = file_type == FLOAT32
    config = checkpoint.config
    writer = GGUFWriter(str(out), "stablelm")
    _add_model(writer, checkpoint, file_type)
    _add_tokenizer(writer, read_tokenizer(checkpoint.path, config.vocab_size), checkpoint)
    writer.add_string(GGUF_KEY, manifest_of(checkpoint).to_json())

    plan = list(_plan(config))
    for name, shape, _ in plan:
        dtype = np.dtype(np.float32 if wide or _stays_float32(name) else np.float16)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (name, shape, sources) in enumerate(plan):
        progress(done / len(plan))
        rows = [checkpoint.read(source) for source in sources]
        array = (rows[0] if len(rows) == 1 else np.stack(rows)).reshape(shape)
        half = to_float16(array, sources[0])  # also the check that every weight is finite
        keep = wide or _stays_float32(name)
        writer.write_tensor_data(array.astype(np.float32) if keep else half)
    writer.close()
    progress(1.0)


def _plan(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], list[str]]]:
    """GGUF name, shape, and the checkpoint's tensors that fill it, in file order."""
    hidden, vocab = config.hidden_size, config.vocab_size
    shapes = expected_shapes(config)
    yield "token_embd.weight", (vocab, hidden), ["model.embed_tokens.weight"]
    for part in ("weight", "bias"):
        yield f"output_norm.{part}", (hidden,), [f"model.norm.{part}"]
    # llama.cpp's StableLM has no tied head: the embedding is written twice.
    head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    yield "output.weight", (vocab, hidden), [f"{head}.weight"]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for theirs, ours in LAYER_NAMES.items():
            for part in ("weight", "bias"):
                name = f"{prefix}{theirs}.{part}"
                if name in shapes:
                    yield f"blk.{layer}.{ours}.{part}", shapes[name], [name]
        if config.qk_layernorm:
            for letter, heads in (
                ("q", config.num_attention_heads),
                ("k", config.num_key_value_heads),
            ):
                stem = f"{prefix}self_attn.{letter}_layernorm.norms"
                rows = [f"{stem}.{i}.weight" for i in range(heads)]
                yield f"blk.{layer}.attn_{letter}_norm.weight", (heads, config.head_dim), rows


def _stays_float32(name: str) -> bool:
    """llama.cpp wants norms and biases in float32."""
    return name.endswith(("_norm.weight", ".bias"))


def _add_model(writer: Any, checkpoint: Checkpoint, file_type: int) -> None:
    config, source = checkpoint.config, checkpoint.source
    writer.add_type("model")
    writer.add_name(source.name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.rotary_dims)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_parallel_residual(config.use_parallel_residual)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, tokenizer: GgufTokenizer, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    writer.add_token_merges(tokenizer.merges)
    writer.add_add_bos_token(False)
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    for eos in config.eos_token_ids[:1]:
        writer.add_eos_token_id(eos)
        writer.add_unk_token_id(eos)
    for key, token_id in tokenizer.special_ids.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
