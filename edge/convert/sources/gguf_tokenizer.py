"""A GGUF file's tokenizer as tokenizer.json and tokenizer_config.json.

The result has no normalizer, like GGUF and llama.cpp; GPT-NeoX's composes accents (NFC).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edge.errors import EdgeError
from edge.formats.gguf import Value
from edge.model.config import ModelConfig

# ggml's token types: normal, unknown, control, user defined, unused, byte.
SPECIAL_TYPES = (2, 3)
USER_DEFINED, UNUSED = 4, 5
# llama.cpp's names of GPT-2's pre-tokenizer, which GPT-NeoX and Stable Code use.
GPT2_NAMES = ("olmo", "gpt-2", "gpt2", "mpt")
TIKTOKEN_NAMES = ("stablelm2",)
# Files made before May 2024 name none. The family has two vocabularies: GPT-NeoX's with some
# 50 000 tokens, and StableLM 2's, derived from tiktoken's, with some 100 000.
UNNAMED = ("", "default")
TIKTOKEN_MIN_TOKENS = 80_000
TIKTOKEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED_TOKENS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
Tokens = dict[int, tuple[str, int]]


def rebuild_tokenizer(
    keys: Mapping[str, Value], config: ModelConfig, where: str
) -> tuple[dict[str, bytes], list[str]]:
    """The files of a Hugging Face tokenizer by name, and warnings about them."""
    if (kind := keys.get("tokenizer.ggml.model")) != "gpt2":
        raise _unusable(where, f"has a tokenizer of type {kind!r}, not byte-level BPE ('gpt2')")
    tokens = _tokens(keys, config.vocab_size, where)
    splitting, warnings = _splitting(keys, len(tokens), where)
    settings = _settings(keys, tokens, config.max_position_embeddings, where)
    generation = {"bos_token_id": config.bos_token_id} if config.bos_token_id is not None else {}
    if config.eos_token_ids:
        generation["eos_token_id"] = config.eos_token_ids[0]
    kinds = (*SPECIAL_TYPES, USER_DEFINED)
    added = {text: kind in SPECIAL_TYPES for text, kind in tokens.values() if kind in kinds}
    vocab = {text: i for i, (text, _) in tokens.items()}
    files = {
        "tokenizer.json": tokenizer_json(vocab, _merges(keys, vocab, where), added, splitting),
        "tokenizer_config.json": settings,
        "generation_config.json": generation,
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
    return encoded, warnings


def tokenizer_json(
    vocab: Mapping[str, int], merges: Sequence[str], added: Mapping[str, bool], splitting: Any
) -> dict[str, Any]:
    """A byte-level BPE tokenizer.json.

    `added` are tokens of `vocab` to match before splitting, each with its `special` flag.
    """
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab[text], "content": text, **plain, "special": special}
            for text, special in sorted(added.items(), key=lambda item: vocab[item[0]])
        ],
        "normalizer": None,
        "pre_tokenizer": splitting,
        "post_processor": byte_level(use_regex=True),
        "decoder": byte_level(use_regex=True),
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def byte_level(use_regex: bool) -> dict[str, Any]:
    """GPT-2's byte alphabet as a pre-tokenizer, with or without its splitting."""
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {**step, "use_regex": use_regex}


def _tokens(keys: Mapping[str, Value], vocab_size: int, where: str) -> Tokens:
    """Text and type of tokens by id, without padding."""
    texts = _list_of(str, keys.get("tokenizer.ggml.tokens"))
    types = _list_of(int, keys.get("tokenizer.ggml.token_type"))
    if not texts or not types or len(texts) != len(types):
        raise _unusable(where, "has no tokens with their types")
    if len(texts) > vocab_size:
        raise _unusable(where, f"has {len(texts)} tokens, its embedding {vocab_size} rows")
    tokens = {
        i: (text, kind)
        for i, (text, kind) in enumerate(zip(texts, types, strict=True))
        # Converters of 2024 gave padding the type "user defined".
        if kind != UNUSED and text != f"[PAD{i}]"
    }
    if len({text for text, _ in tokens.values()}) < len(tokens):
        raise _unusable(where, "has one token under two ids")
    return tokens


def _merges(keys: Mapping[str, Value], vocab: Mapping[str, int], where: str) -> list[str]:
    merges = _list_of(str, keys.get("tokenizer.ggml.merges"))
    if merges is None:
        raise _unusable(where, "has no merges")
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocab.keys() or " " in right:
            raise _unusable(where, f"merges {merge!r}, which are not its tokens")
    return merges


def _splitting(
    keys: Mapping[str, Value], token_count: int, where: str
) -> tuple[dict[str, Any], list[str]]:
    """The pre_tokenizer, and a warning if it was guessed."""
    name, warnings = keys.get("tokenizer.ggml.pre", ""), []
    if name in UNNAMED:
        tiktoken = token_count >= TIKTOKEN_MIN_TOKENS
        name = TIKTOKEN_NAMES[0] if tiktoken else GPT2_NAMES[0]
        warnings.append(
            f"{where} does not name its pre-tokenizer; edge takes that of "
            f"{'StableLM 2' if tiktoken else 'GPT-NeoX'} by the number of tokens, and llama.cpp "
            f"another one: prefer a newer file."
        )
    if name in GPT2_NAMES:
        return byte_level(use_regex=True), warnings
    if name in TIKTOKEN_NAMES:
        regex = {"Regex": TIKTOKEN_PATTERN}
        split = {"type": "Split", "pattern": regex, "behavior": "Removed", "invert": True}
        return {"type": "Sequence", "pretokenizers": [split, byte_level(False)]}, warnings
    raise _unusable(where, f"has the pre-tokenizer {name!r}, which is not StableLM's")


def _settings(
    keys: Mapping[str, Value], tokens: Tokens, context: int, where: str
) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    settings: dict[str, Any] = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for key, short in NAMED_TOKENS.items():
        name = f"{short}_token"
        token_id = keys.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is None:
            continue
        if type(token_id) is not int or token_id not in tokens:
            raise _unusable(where, f"has {token_id!r} as its {name}, which is not its token")
        settings[name] = tokens[token_id][0]
    template = keys.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    return settings


def _list_of(kind: type, value: Any) -> list[Any] | None:
    """The value if it is a list of items of one type, else None."""
    fits = isinstance(value, list) and all(type(item) is kind for item in value)
    return value if fits else None


def _unusable(where: str, reason: str) -> EdgeError:
    return EdgeError(f"{where} {reason}; download it again or choose another file.")
