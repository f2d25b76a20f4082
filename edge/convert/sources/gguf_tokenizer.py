"""A GGUF file's tokenizer as tokenizer.json and tokenizer_config.json.

The reverse of what is written into GGUF files, with one loss: GGUF does not record a
normalizer and llama.cpp applies none, so none is rebuilt. GPT-NeoX's composes accents
(NFC), which changes nothing in text that is composed already, as nearly all is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edge.errors import EdgeError
from edge.formats.gguf import Value
from edge.model.config import ModelConfig

# ggml's token types: normal, unknown, control, user defined, unused, byte.
SPECIAL_TYPES = (2, 3)
USER_DEFINED, UNUSED = 4, 5
# llama.cpp's names for GPT-2's way to split text; GPT-NeoX's, and so Stable Code's, is that.
GPT2_NAMES = ("olmo", "gpt-2", "gpt2", "mpt")
TIKTOKEN_NAMES = ("stablelm2",)
# Files made before May 2024 name none. The family has two vocabularies: GPT-NeoX's with some
# 50 000 tokens, and StableLM 2's, made after tiktoken's, with some 100 000.
UNNAMED = ("", "default")
TIKTOKEN_MIN_TOKENS = 80_000
TIKTOKEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}


@dataclass(frozen=True)
class RebuiltTokenizer:
    """Contents by file name, and what the user should know about them."""

    files: dict[str, bytes]
    warnings: tuple[str, ...]


def rebuild_tokenizer(
    keys: Mapping[str, Value], config: ModelConfig, where: str
) -> RebuiltTokenizer:
    """Make the files of a Hugging Face tokenizer.

    Args:
        keys: the GGUF file's.
        config: the network's; its vocabulary bounds the ids.
        where: the file's name for error messages.

    Raises:
        EdgeError: the tokenizer is missing, of another kind, or contradicts itself.
    """
    kind = keys.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise EdgeError(
            f"{where} has a tokenizer of type {kind!r}; StableLM's is byte-level BPE ('gpt2'), so "
            f"choose another file."
        )
    tokens = _tokens(keys, config.vocab_size, where)
    merges = _merges(keys, {text for text, _ in tokens.values()}, where)
    splitting, warnings = _splitting(keys, len(tokens), where)
    settings = _settings(keys, tokens, config.max_position_embeddings, where)
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": _eos(config)}
    files = {
        "tokenizer.json": _tokenizer(tokens, merges, splitting),
        "tokenizer_config.json": settings,
        "generation_config.json": {k: v for k, v in generation.items() if v is not None},
    }
    if keys.get("tokenizer.ggml.add_bos_token") is True:
        warnings.append(
            f"{where} wants {settings.get('bos_token', 'a beginning token')} before every text; "
            f"the rebuilt tokenizer does not add it, so write it into the prompt."
        )
    encoded = {
        name: (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
        for name, content in files.items()
    }
    return RebuiltTokenizer(encoded, tuple(warnings))


def _tokens(keys: Mapping[str, Value], vocab_size: int, where: str) -> dict[int, tuple[str, int]]:
    """Text and type of every token that is one, by id."""
    texts = _list_of(str, keys.get("tokenizer.ggml.tokens"))
    types = _list_of(int, keys.get("tokenizer.ggml.token_type"))
    if not texts or not types or len(texts) != len(types):
        raise EdgeError(f"{where} has no tokens with their types; choose another file.")
    if len(texts) > vocab_size:
        raise EdgeError(
            f"{where} has {len(texts)} tokens, its embedding {vocab_size} rows; download it again."
        )
    tokens = {
        i: (text, kind)
        for i, (text, kind) in enumerate(zip(texts, types, strict=True))
        # Converters of 2024 called the padding user defined.
        if kind != UNUSED and text != f"[PAD{i}]"
    }
    if len({text for text, _ in tokens.values()}) < len(tokens):
        raise EdgeError(f"{where} has one token under two ids; download it again.")
    return tokens


def _merges(keys: Mapping[str, Value], texts: set[str], where: str) -> list[str]:
    merges = _list_of(str, keys.get("tokenizer.ggml.merges"))
    if merges is None:
        raise EdgeError(f"{where} has no merges, so no byte-level BPE; choose another file.")
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= texts or " " in right:
            raise EdgeError(
                f"{where} merges {merge!r}, which are no tokens of it; download it again."
            )
    return merges


def _splitting(
    keys: Mapping[str, Value], token_count: int, where: str
) -> tuple[dict[str, Any], list[str]]:
    """The pre_tokenizer, and a warning where it had to be guessed."""
    name, warnings = keys.get("tokenizer.ggml.pre", ""), []
    if name in UNNAMED:
        tiktoken = token_count >= TIKTOKEN_MIN_TOKENS
        name = TIKTOKEN_NAMES[0] if tiktoken else GPT2_NAMES[0]
        warnings.append(
            f"{where} does not say how its tokenizer splits text; edge takes "
            f"{'StableLM 2' if tiktoken else 'GPT-NeoX'}'s way after the number of tokens, while "
            f"llama.cpp splits such a file in a way of its own: prefer a newer file."
        )
    if name in GPT2_NAMES:
        return _byte_level(use_regex=True), warnings
    if name in TIKTOKEN_NAMES:
        split = {
            "type": "Split",
            "pattern": {"Regex": TIKTOKEN_PATTERN},
            "behavior": "Removed",
            "invert": True,
        }
        steps = [split, _byte_level(use_regex=False)]
        return {"type": "Sequence", "pretokenizers": steps}, warnings
    raise EdgeError(
        f"{where} splits text in the way {name!r}, which no StableLM does; choose another file."
    )


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _tokenizer(
    tokens: dict[int, tuple[str, int]], merges: list[str], splitting: dict[str, Any]
) -> dict[str, Any]:
    """The contents of tokenizer.json.

    Added tokens are in the vocabulary too: the tokenizers package numbers by that.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added(tokens)),
        "normalizer": None,
        "pre_tokenizer": splitting,
        "post_processor": _byte_level(use_regex=True),
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, (text, _) in tokens.items()},
            "merges": merges,
        },
    }


def _added(tokens: dict[int, tuple[str, int]]) -> Iterator[dict[str, Any]]:
    for i, (text, kind) in tokens.items():
        if kind in SPECIAL_TYPES or kind == USER_DEFINED:
            yield {
                "id": i,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind in SPECIAL_TYPES,
            }


def _settings(
    keys: Mapping[str, Value], tokens: dict[int, tuple[str, int]], context: int, where: str
) -> dict[str, Any]:
    """The contents of tokenizer_config.json."""
    settings: dict[str, Any] = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, key in NAMED_TOKENS.items():
        token_id = keys.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is None:
            continue
        if type(token_id) is not int or token_id not in tokens:
            raise EdgeError(
                f"{where} has {token_id!r} as its {name}, which is no token of it; "
                f"download it again."
            )
        settings[name] = tokens[token_id][0]
    template = keys.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    return settings


def _eos(config: ModelConfig) -> int | None:
    return config.eos_token_ids[0] if config.eos_token_ids else None


def _list_of(kind: type, value: Any) -> list[Any] | None:
    """The value if it is a list whose items are of a type."""
    fits = isinstance(value, list) and all(type(item) is kind for item in value)
    return value if fits else None
