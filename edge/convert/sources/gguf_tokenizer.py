"""A GGUF file's tokenizer as tokenizer.json and tokenizer_config.json.

Two kinds: byte-level BPE ("gpt2" in GGUF), and SentencePiece's BPE with bytes for unknown
characters ("llama"), whose merges follow from the scores of its tokens. The result has no
normalizer, like GGUF and llama.cpp; GPT-NeoX's composes accents (NFC).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge.convert.sources.directory import check_tokenizer
from edge.errors import EdgeError
from edge.formats.gguf import Value
from edge.model.config import ModelConfig
from edge.tokenizer.fim_tokens import FIM_NAMES
from edge.tokenizer.splitting import IGNORE_MERGES, byte_level, pre_tokenizer
from edge.tokenizer.tokenizer import SPACE

# ggml's token types: normal, unknown, control, user defined, unused, byte.
NORMAL, UNKNOWN = 1, 2
SPECIAL_TYPES = (UNKNOWN, 3)
USER_DEFINED, UNUSED = 4, 5
# Files made before May 2024 name none. The family has two vocabularies: GPT-NeoX's with some
# 50 000 tokens, and StableLM 2's, derived from tiktoken's, with some 100 000.
UNNAMED = ("", "default")
TIKTOKEN_MIN_TOKENS = 80_000
NAMED_TOKENS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
# llama.cpp's ids of a SentencePiece tokenizer, unless the file has others.
SENTENCEPIECE_IDS = {"bos": 1, "eos": 2}
NO_ID = (0xFFFFFFFF, -1)
Tokens = dict[int, tuple[str, int]]


@dataclass(frozen=True)
class Rebuilt:
    """Files of a Hugging Face tokenizer by name; the network's config with its BOS and EOS."""

    files: Mapping[str, bytes]
    config: ModelConfig
    warnings: Sequence[str]


def rebuild_tokenizer(keys: Mapping[str, Value], config: ModelConfig, where: str) -> Rebuilt:
    """The tokenizer of a GGUF file's keys."""
    kind = keys.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise _unusable(where, f"has a tokenizer of type {kind!r}, not BPE ('gpt2' or 'llama')")
    tokens = _tokens(keys, where)
    notes: list[str] = []
    ids = _special_ids(keys, tokens, config.vocab_size, where, notes)
    settings = _settings(keys, tokens, ids, config.max_position_embeddings)
    generation = {f"{name}_token_id": ids[name] for name in ("bos", "eos") if name in ids}
    eos = (ids["eos"],) if "eos" in ids else ()
    config = replace(config, bos_token_id=ids.get("bos"), eos_token_ids=eos)
    added = {text: kind != USER_DEFINED for text, kind in tokens.values() if _is_added(text, kind)}
    vocab = {text: i for i, (text, _) in tokens.items()}
    if kind == "gpt2":
        name = _splitting(keys, len(tokens), where, notes)
        step = pre_tokenizer(name)
        if step is None:
            raise _unusable(where, f"has the pre-tokenizer {name!r}, which edge does not know")
        merges = _list_of(str, keys.get("tokenizer.ggml.merges"))
        if merges is None:
            raise _unusable(where, "has no merges")
        tokenizer = tokenizer_json(vocab, merges, added, step)
        tokenizer["model"] |= {"ignore_merges": True} if name in IGNORE_MERGES else {}
        adds_bos = keys.get("tokenizer.ggml.add_bos_token", name in IGNORE_MERGES)
    else:
        tokenizer = _sentencepiece_json(keys, tokens, added, where)
        adds_bos = keys.get("tokenizer.ggml.add_bos_token", True)
    if adds_bos is True and "bos_token" in settings:
        _begin_with(tokenizer, settings["bos_token"], vocab)
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": settings,
        "generation_config.json": generation,
    }
    encoded = {
        name: (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
        for name, content in files.items()
    }
    notes += check_tokenizer(encoded["tokenizer.json"], tokenizer, config.vocab_size, where)
    return Rebuilt(encoded, config, notes)


def _is_added(text: str, kind: int) -> bool:
    # Converters of 2023 gave Code Llama's ▁<PRE> the type "normal".
    return kind in (*SPECIAL_TYPES, USER_DEFINED) or text in FIM_NAMES


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


def _sentencepiece_json(
    keys: Mapping[str, Value], tokens: Tokens, added: Mapping[str, bool], where: str
) -> dict[str, Any]:
    """A tokenizer.json as transformers makes it of a SentencePiece model (`convert_slow`)."""
    vocab = {text: i for i, (text, _) in tokens.items()}
    given = keys.get("tokenizer.ggml.scores")
    scores = _list_of(float, given) or _list_of(int, given)
    if scores is None or len(scores) <= max(tokens):
        raise _unusable(where, "has no scores for its tokens")
    adds_space = keys.get("tokenizer.ggml.add_space_prefix", True) is True
    to_spaces = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    from_spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    begin: list[Any] = [{"type": "Prepend", "prepend": SPACE}] if adds_space else []
    end: list[Any] = (
        [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if adds_space else []
    )
    steps = [to_spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *end]
    tokenizer = tokenizer_json(vocab, _merges_of_scores(vocab, scores), added, None)
    tokenizer |= {
        "normalizer": {"type": "Sequence", "normalizers": [*begin, from_spaces]},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": steps},
    }
    unknown = next((text for text, kind in tokens.values() if kind == UNKNOWN), None)
    tokenizer["model"] |= {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    return tokenizer


def _merges_of_scores(vocab: Mapping[str, int], scores: Sequence[float]) -> list[str]:
    """Every way to make a token of two others, the best token first."""
    found: list[tuple[float, int, int, str]] = []
    for text, i in vocab.items():
        cuts = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        pairs = [(left, right) for left, right in cuts if left in vocab and right in vocab]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(scores[i], len(left), len(right), f"{left} {right}") for left, right in pairs]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [merge for *_, merge in found]


def _begin_with(tokenizer: dict[str, Any], bos: str, vocab: Mapping[str, int]) -> None:
    """Puts BOS before every text, as llama.cpp does."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [vocab[bos]], "tokens": [bos]}},
    }
    if step := tokenizer["post_processor"]:
        template = {"type": "Sequence", "processors": [step, template]}
    tokenizer["post_processor"] = template


def _tokens(keys: Mapping[str, Value], where: str) -> Tokens:
    """Text and type of tokens by id, without padding; as llama.cpp reads them."""
    texts = _list_of(str, keys.get("tokenizer.ggml.tokens")) or []
    types = _list_of(int, keys.get("tokenizer.ggml.token_type", [NORMAL] * len(texts)))
    if not texts or not types or len(types) < len(texts):
        raise _unusable(where, "has no tokens with their types")
    tokens = {
        i: (text or f"[EMPTY_{i}]", kind)
        for i, (text, kind) in enumerate(zip(texts, types, strict=False))
        # Converters of 2024 gave padding the type "user defined".
        if kind != UNUSED and text != f"[PAD{i}]"
    }
    if len({text for text, _ in tokens.values()}) < len(tokens):
        raise _unusable(where, "has one token under two ids")
    return tokens


def _special_ids(
    keys: Mapping[str, Value], tokens: Tokens, vocab_size: int, where: str, notes: list[str]
) -> dict[str, int]:
    """Ids by the names in GGUF; adds a warning about each that is not a token to `notes`."""
    defaults = SENTENCEPIECE_IDS if keys["tokenizer.ggml.model"] == "llama" else {}
    found = {}
    for name, short in NAMED_TOKENS.items():
        given = keys.get(f"tokenizer.ggml.{name}_token_id")
        usable = [i for i in (given, defaults.get(name)) if type(i) is int and i in tokens]
        if usable and usable[0] < vocab_size:
            found[name] = usable[0]
        if given is not None and found.get(name) != given and given not in NO_ID:
            notes.append(
                f"{where} has {given!r} as its {short}_token, which is not one of its tokens; "
                f"edge takes {tokens[found[name]][0] if name in found else 'none'}."
            )
    return found


def _splitting(keys: Mapping[str, Value], token_count: int, where: str, notes: list[str]) -> str:
    """llama.cpp's name of the pre-tokenizer; adds a warning if it was guessed."""
    name = keys.get("tokenizer.ggml.pre", "")
    if name not in UNNAMED:
        return str(name)
    tiktoken = token_count >= TIKTOKEN_MIN_TOKENS
    notes.append(
        f"{where} does not name its pre-tokenizer; edge takes that of "
        f"{'StableLM 2' if tiktoken else 'GPT-NeoX'} by the number of tokens, and llama.cpp "
        f"another one: prefer a newer file."
    )
    return "stablelm2" if tiktoken else "olmo"


def _settings(
    keys: Mapping[str, Value], tokens: Tokens, ids: Mapping[str, int], context: int
) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    settings: dict[str, Any] = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, token_id in ids.items():
        settings[f"{NAMED_TOKENS[name]}_token"] = tokens[token_id][0]
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
