"""A StableLM or Llama GGUF file in float32, float16 or bfloat16.

llama.cpp's own converter omits `stablelm.rope.freq_base`, and llama.cpp then runs with base 10000,
which is wrong for Stable Code (1000000). llama.cpp makes quantised files from the float16 file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from edge.convert.artefacts.gguf_tokenizer import GgufTokenizer, read_tokenizer
from edge.convert.artefacts.manifest import BLANK, GGUF_KEY
from edge.convert.artefacts.recipes import Recipe
from edge.convert.checkpoint import Checkpoint
from edge.convert.sources.gguf import gguf_name, has_paired_rows, paired_rows
from edge.convert.sources.gguf_config import EPSILON, ROPE_FACTORS, rope_factors, scaling_keys
from edge.convert.sources.weights import Array
from edge.convert.stream import Block, Writer, blocks
from edge.formats.safetensors import Planned, raw_bytes
from edge.model.config import ModelConfig
from edge.model.tensors import expected_shapes

QUANTIZATION_VERSION = 2
ALIGNMENT_BYTES = 32  # GGUF's default


@dataclass(frozen=True)
class PlannedTensor(Planned):
    """One tensor of the file; `sources` are the checkpoint's tensors in it, in order."""

    sources: tuple[str, ...]


def gguf_plan(config: ModelConfig, dtype: str) -> list[PlannedTensor]:
    """Every tensor in file order, matrices as `dtype`."""
    sources: dict[str, list[str]] = {}
    shapes = expected_shapes(config)
    for name in shapes:
        sources.setdefault(gguf_name(name), []).append(name)
    plan = []
    for name, parts in sources.items():
        shape = shapes[parts[0]] if len(parts) == 1 else (len(parts), *shapes[parts[0]])
        vector = name.endswith(("_norm.weight", ".bias"))  # llama.cpp needs them in float32
        plan.append(PlannedTensor(name, "F32" if vector else dtype, shape, tuple(parts)))
    if _repeats_embedding(config):
        plan.append(PlannedTensor("output.weight", dtype, plan[0].shape, ()))
    if config.model_type == "llama" and _is_llama3(config):
        plan.append(PlannedTensor(ROPE_FACTORS, "F32", (config.rotary_dims // 2,), ()))
    return plan


def _repeats_embedding(config: ModelConfig) -> bool:
    """llama.cpp's StableLM has no tied head."""
    return config.tie_word_embeddings and config.model_type == "stablelm"


def _is_llama3(config: ModelConfig) -> bool:
    return config.rope_scaling is not None and config.rope_scaling.rope_type == "llama3"


class GgufWriter(Writer):
    """One float GGUF file."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, path: Path) -> None:
        self._checkpoint, self._recipe = checkpoint, recipe
        plan = gguf_plan(checkpoint.config, recipe.dtype)
        self._of = {source: tensor for tensor in plan for source in tensor.sources}
        _write_header(path, checkpoint, recipe, plan)
        self._digest = hashlib.sha256(path.read_bytes())
        self._file = path.open("ab")
        self._pad(path.stat().st_size)
        self._heads: list[Array] = []  # rows of q or k so far, which are written in another order

    def encode(self, block: Block) -> Sequence[Array]:
        return [block.rounded(self._of[block.name].dtype)]

    def append(self, name: str, encoded: Sequence[Array], last: bool) -> None:
        """Write rows; pad after the last of a tensor's sources."""
        tensor, config = self._of[name], self._checkpoint.config
        if config.model_type == "llama" and has_paired_rows(name):
            self._heads.append(encoded[0])
            if last:
                rows, self._heads = np.concatenate(self._heads), []
                self._write(rows[np.argsort(paired_rows(len(rows), config.head_dim))])
        else:
            self._write(encoded[0])
        if last and name == tensor.sources[-1]:
            self._pad(tensor.data_bytes)

    def finish(self) -> tuple[dict[str, str], list[str]]:
        config = self._checkpoint.config
        if _repeats_embedding(config):
            self._write_embedding_again()
        elif config.model_type == "llama" and _is_llama3(config):
            factors = rope_factors(config)
            self._write(factors)
            self._pad(factors.nbytes)
        self._file.close()
        name = self._recipe.path_in(Path()).name
        return {name: self._digest.hexdigest()}, gguf_notes(self._checkpoint)

    def close(self) -> None:
        self._file.close()

    def _write_embedding_again(self) -> None:
        name = "model.embed_tokens.weight"
        for start, stop in blocks(self._of[name].shape):
            values = self._checkpoint.weights.read(name, start, stop)
            self._write(self.encode(Block(name, values))[0])
        self._pad(self._of[name].data_bytes)

    def _write(self, array: Array) -> None:
        raw = raw_bytes(array)
        self._file.write(raw)
        self._digest.update(raw)

    def _pad(self, written_bytes: int) -> None:
        self._write(np.zeros(-written_bytes % ALIGNMENT_BYTES, np.uint8))


def check_expressible(checkpoint: Checkpoint) -> None:
    """Raise EdgeError if GGUF cannot hold the network or its tokenizer."""
    scaling_keys(checkpoint.config, checkpoint.source.name)
    read_tokenizer(checkpoint.tokenizer_files, checkpoint.config.vocab_size)


def gguf_notes(checkpoint: Checkpoint) -> list[str]:
    """Sentences on differences between the GGUF file and the checkpoint."""
    if not read_tokenizer(checkpoint.tokenizer_files, checkpoint.config.vocab_size).composes:
        return []
    return [
        "the tokenizer composes accents (Unicode NFC) before it splits text and llama.cpp does "
        "not: give it composed text, as keyboards and editors do."
    ]


def _write_header(
    path: Path, checkpoint: Checkpoint, recipe: Recipe, plan: Sequence[PlannedTensor]
) -> None:
    config = checkpoint.config
    writer = GGUFWriter(str(path), config.model_type)
    writer.add_string(GGUF_KEY, BLANK)
    _add_model(writer, checkpoint, recipe)
    _add_tokenizer(writer, read_tokenizer(checkpoint.tokenizer_files, config.vocab_size), config)
    for tensor in plan:
        kind = GGMLQuantizationType[tensor.dtype]
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.data_bytes, raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _add_model(writer: GGUFWriter, checkpoint: Checkpoint, recipe: Recipe) -> None:
    config = checkpoint.config
    assert recipe.file_type is not None  # every GGUF recipe has one
    writer.add_type("model")
    writer.add_name(checkpoint.source.name)
    writer.add_file_type(recipe.file_type)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.rotary_dims)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_float32(
        f"{config.model_type}.attention.{EPSILON[config.model_type]}", config.layer_norm_eps
    )
    if config.model_type == "stablelm":
        writer.add_parallel_residual(config.use_parallel_residual)
    for key, value in scaling_keys(config, checkpoint.source.name).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](f"{config.model_type}.{key}", value)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: GGUFWriter, tokenizer: GgufTokenizer, config: ModelConfig) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.scores:
        writer.add_token_scores(tokenizer.scores)
        writer.add_add_space_prefix(tokenizer.adds_space)
    else:
        writer.add_token_merges(tokenizer.merges)
    writer.add_add_bos_token(tokenizer.adds_bos)
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    for eos in config.eos_token_ids[:1]:
        writer.add_eos_token_id(eos)
        if tokenizer.unknown_id is None:
            writer.add_unk_token_id(eos)
    if tokenizer.unknown_id is not None:
        writer.add_unk_token_id(tokenizer.unknown_id)
    for key, token_id in tokenizer.special_ids.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
