"""Random weights of a published shape (`synthetic:stable-code-3b`), to measure a device with."""

import hashlib
import json
from dataclasses import replace
from math import prod

import numpy as np

from edge.convert.sources.gguf_tokenizer import tokenizer_json
from edge.convert.sources.published import SHAPES
from edge.convert.sources.weights import Opened, Weights
from edge.errors import EdgeError
from edge.formats.safetensors import Array
from edge.model.config import ModelConfig
from edge.model.tensors import expected_shapes
from edge.tokenizer.splitting import byte_level

BLOCK_NUMBERS = 1 << 20  # with one place in the noise, so that any rows can be read alone
# Noise is made once and shifted: numpy would need 30 s for three billion normal numbers.
NOISE_NUMBERS = BLOCK_NUMBERS * 4
MAX_LAYERS = 1024
END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (
    *(END_OF_TEXT, "<|padding|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"),
    *("<|im_start|>", "<|im_end|>"),
)


class SyntheticWeights(Weights):
    """Normal noise, scaled so that activations keep their size through the layers."""

    def __init__(self, config: ModelConfig):
        self.shapes = expected_shapes(config)
        noise = np.random.Generator(np.random.PCG64(0)).standard_normal(NOISE_NUMBERS, np.float32)
        self._noise = noise.astype(np.float16)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        shape = self.shapes[name]
        first, last, _ = slice(start, stop).indices(shape[0])
        width = prod(shape[1:])
        values = self._numbers(name, first * width, (last - first) * width)
        if len(shape) == 2:
            values *= np.float16(shape[1] ** -0.5)
        else:  # norms and biases: near one and near zero
            values *= np.float16(0.1)
            values += np.float16(0 if name.endswith("bias") else 1)
        return values.reshape(last - first, *shape[1:])

    def _numbers(self, name: str, begin: int, count: int) -> Array:
        """Numbers begin to begin + count of a tensor's stream."""
        out, done = np.empty(count, np.float16), 0
        while done < count:
            block, inside = divmod(begin + done, BLOCK_NUMBERS)
            piece = min(count - done, BLOCK_NUMBERS - inside)
            shift = _shift(name, block) + inside
            out[done : done + piece] = self._noise[shift : shift + piece]
            done += piece
        return out


def open_synthetic(name: str, layers: int | None) -> Opened:
    """A model of a published shape with random weights; `name` is without the prefix."""
    if name not in SHAPES:
        raise EdgeError(f"there is no shape {name!r}; choose from {', '.join(SHAPES)}.")
    if layers is not None and layers > MAX_LAYERS:
        raise EdgeError(f"{layers} layers are too many; use at most {MAX_LAYERS}.")
    config = replace(SHAPES[name], num_hidden_layers=layers or SHAPES[name].num_hidden_layers)
    return Opened(config, SyntheticWeights(config), _tokenizer_files(config.eos_token_ids[0]))


def _shift(name: str, block: int) -> int:
    """The place in the noise where a block of a tensor begins."""
    digest = hashlib.sha256(f"{name} {block}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % (NOISE_NUMBERS - BLOCK_NUMBERS)


def _tokenizer_files(end_id: int) -> dict[str, bytes]:
    """A byte-level tokenizer with one merge and the family's special tokens."""
    alphabet = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 324))]
    ids = {token: i + 1 for i, token in enumerate([*SPECIAL_TOKENS[1:], *alphabet, "!!"])}
    ids[END_OF_TEXT] = end_id
    added = dict.fromkeys(SPECIAL_TOKENS, True)
    # llama.cpp refuses a tokenizer without merges.
    tokenizer = tokenizer_json(ids, ["! !"], added, byte_level(use_regex=True))
    settings = dict.fromkeys(("bos_token", "eos_token"), END_OF_TEXT)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}
    return {name: json.dumps(content).encode() for name, content in files.items()}
