"""Open a checkpoint's directory.

Nothing in it is trusted: no pickle is opened, no code is run or copied, and no name or link may
lead out of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edge.convert.sources.gptq import GptqSettings, GptqWeights, parse_settings
from edge.convert.sources.mlx import DirectoryWeights
from edge.convert.sources.weights import Opened
from edge.errors import EdgeError
from edge.formats.files import parse_json_object, read_json_object, read_small_file
from edge.formats.folder import TOKENIZER_FILES, inside, read_weights
from edge.model.config import ModelConfig
from edge.model.tensors import check_count
from edge.tokenizer.tokenizer import library_errors

TOKENIZER, QUANTIZE_CONFIG = "tokenizer.json", "quantize_config.json"
SMALL_FILES = ("config.json", QUANTIZE_CONFIG, *TOKENIZER_FILES)
# Those in which `auto_map` names classes for a loader to run; elsewhere it may be a token.
WITH_CODE = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def open_directory(path: Path) -> Opened:
    """Read config and tokenizer files, and check the headers of the weights."""
    config_file = inside(path, "config.json")
    raw = read_json_object(config_file)
    config = ModelConfig.from_dict(raw, str(config_file))
    tensors = read_weights(path)
    check_count(config, len(tensors), str(path))
    tokenizer_files, warnings = read_tokenizer_files(path, config.vocab_size)
    if settings := read_gptq_settings(raw, path):
        gptq = GptqWeights(tensors, settings, config)
        return Opened(config, gptq, tokenizer_files, (*gptq.warnings, *warnings))
    if raw.get("quantization_config") and "quantization" not in raw:  # the latter is MLX's key
        raise EdgeError(
            f"{config_file} describes a quantised checkpoint that is neither GPTQ nor MLX; "
            f"convert from the unquantised one."
        )
    return Opened(config, DirectoryWeights(tensors, config), tokenizer_files, warnings)


def read_gptq_settings(config: Mapping[str, Any], path: Path) -> GptqSettings | None:
    """Settings of config.json, quantize_config.json or both; None if it is not GPTQ's."""
    nested = config.get("quantization_config")
    nested = nested if isinstance(nested, Mapping) else {}
    file = inside(path, QUANTIZE_CONFIG)
    if file.is_file():
        return parse_settings({**read_json_object(file), **nested}, str(file))
    if nested.get("quant_method") == "gptq":
        return parse_settings(nested, str(path / "config.json"))
    return None


def read_tokenizer_files(path: Path, vocab_size: int) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Contents of the tokenizer's and generation files by name, without `auto_map`; warnings."""
    tokenizer_files, warnings = {}, tuple[str, ...]()
    for name in TOKENIZER_FILES:
        file = inside(path, name)
        if not file.exists():
            if name == TOKENIZER:
                raise EdgeError(f"{file} is missing; download it again.")
            continue
        tokenizer_files[name] = content = read_small_file(file)
        if not name.endswith(".json"):
            continue
        parsed = parse_json_object(content, str(file))
        if name == TOKENIZER:
            warnings = check_tokenizer(content, parsed, vocab_size, str(file))
        if name in WITH_CODE and "auto_map" in parsed:
            del parsed["auto_map"]
            tokenizer_files[name] = json.dumps(parsed, indent=2).encode()
    return tokenizer_files, warnings


def check_tokenizer(
    content: bytes, parsed: Mapping[str, Any], vocab_size: int, where: str
) -> tuple[str, ...]:
    """A warning about added tokens past the embedding, which no prompt may have.

    An EdgeError unless ids are unique, and those of other tokens rows of the embedding.
    """
    with library_errors(f"{where} is not a tokenizer", "download it again"):
        ids: dict[str, int] = Tokenizer.from_buffer(content).get_vocab(with_added_tokens=True)
        added = {token["content"]: token["id"] for token in parsed.get("added_tokens") or ()}
        if any(ids[text] != token_id for text, token_id in added.items()):
            raise ValueError("an added token has two ids")
        if len(set(ids.values())) < len(ids):
            raise ValueError("two tokens have one id")
    past = {text: i for text, i in ids.items() if i >= vocab_size}
    if past.keys() - added.keys():
        raise EdgeError(
            f"{where} has token id {max(past.values())}, the model's embedding has {vocab_size} "
            f"rows; download both again."
        )
    if not past:
        return ()
    return (
        f"{where} has {len(past)} added tokens beyond the {vocab_size} rows of the model's "
        f"embedding, such as {min(past)!r}; leave them out of texts, which are refused with them.",
    )
