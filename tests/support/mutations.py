"""Valid tiny checkpoints of every kind, and random damage to their files."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors.numpy import load_file, save_file

from edge.model.config import ModelConfig
from tests.support.foreign_gguf import write_tiny
from tests.support.gptq_packer import STABLELM, Settings, write_gptq
from tests.support.tiny import PLAIN, quantised_tensors, random_tensors, write_checkpoint

# One layer and few tokens: a case takes some milliseconds.
SMALL = {**PLAIN, "num_hidden_layers": 1, "vocab_size": 64}
# With every switch of the family that adds tensors.
SWITCHES = {**SMALL, "num_key_value_heads": 2, "use_qkv_bias": True, "qk_layernorm": True}
GPTQ = {**STABLELM, "num_hidden_layers": 1, "vocab_size": 64, "hidden_size": 64}
GPTQ |= {"intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
GGUF_FILE = "model.gguf"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def _half_tensors(raw: dict, dtype: mx.Dtype) -> dict[str, mx.array]:
    tensors = random_tensors(ModelConfig.from_dict(raw))
    return {name: mx.array(array).astype(dtype) for name, array in tensors.items()}


def _bfloat16(path: Path) -> Path:
    return write_checkpoint(path, SWITCHES, tensors=_half_tensors(SWITCHES, mx.bfloat16))


def _tied(path: Path) -> Path:
    """With transformers 5's spelling of the rotary settings."""
    raw = {**SMALL, "tie_word_embeddings": True}
    rope = {"rope_theta": 500.0, "partial_rotary_factor": raw.pop("partial_rotary_factor") * 2}
    del raw["rope_theta"]
    return write_checkpoint(path, {**raw, "rope_parameters": {"rope_type": "default", **rope}})


def _sharded(path: Path) -> Path:
    """Two files whose names say nothing, and an index."""
    tensors = load_file(write_checkpoint(path, SMALL) / WEIGHTS)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, path / file)
    (path / WEIGHTS).unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def _mlx(path: Path) -> Path:
    how = {"group_size": 32, "bits": 4, "mode": "affine"}
    tensors = quantised_tensors(_half_tensors(SMALL, mx.float16), how)
    own = {"model.layers.0.mlp.down_proj": dict(how)}
    return write_checkpoint(path, {**SMALL, "quantization": how | own}, tensors=tensors)


def _gptq(path: Path) -> Path:
    write_gptq(path, GPTQ, Settings(group_size=32))
    return path


def _gguf(path: Path) -> Path:
    path.mkdir()
    write_tiny(path / GGUF_FILE)
    return path


# Each writes a directory; the GGUF file is in one by itself.
BASES: dict[str, Callable[[Path], Path]] = {
    "bfloat16": _bfloat16,
    "tied": _tied,
    "sharded": _sharded,
    "mlx": _mlx,
    "gptq": _gptq,
    "gguf": _gguf,
}


NUMBERS = (0, 1, 2, 3, -1, 31, 63, 64, 65, 128, 2**16, 2**31 - 1, 2**31, 2**53, 2**63, 10**12)
VALUES = (
    *NUMBERS,
    *(0.25, 0.5, 1e-5, 1e-300, 1e300, 64.0, True, False, None, "", "64", "false", "gptq", "../x"),
    *([], {}, [0], [[0]], {"a": 0}, {"rope_theta": 500.0}, "\ud800", "a\nb", "\0", "x" * 300),
    *("F64", "F32", "F16", "BF16", "I64", "I32", "U32", "U8", "BOOL", [2**62, 4], [-1, -64]),
    *("mxfp4", "nvfp4", "mxfp8", 4, 6, 8, 16, 32),
)
KEYS = (
    *("rope_theta", "rope_scaling", "rope_parameters", "quantization", "quantization_config"),
    *("qk_layernorm", "tie_word_embeddings", "head_dim", "auto_map", "bits", "group_size", "sym"),
    *("desc_act", "checkpoint_format", "model_type", "normalizer", "added_tokens", "vocab"),
    *("__metadata__", "lm_head.weight", "model.norm.scales", "dtype", "shape", "data_offsets"),
)
OTHER_NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json", INDEX),
    *("quantize_config.json", "config.json", "extra.safetensors", WEIGHTS, "a.bin"),
    *("adapter_model.safetensors", f"._{WEIGHTS}"),
)


def mutate(files: dict[str, bytes], rng: random.Random) -> str:
    """Damage the files in place in one way; says which."""
    name = rng.choice(sorted(files))
    if rng.random() < 0.1 and name != GGUF_FILE:
        other = rng.choice((*sorted(files), *OTHER_NAMES))
        files[other] = rng.choice((files.pop(name), b"{}", b"[]", b"", b"\x80\x04.", b"null"))
        return f"{other} instead of {name}"
    ways = [_overwritten] * 5 + [_resized]
    if name.endswith(".json"):
        ways += [_json] * 30
    if name.endswith(".safetensors"):
        ways += [_header] * 6
    way = rng.choice(ways)
    files[name] = way(files[name], rng)
    return f"{way.__name__} {name}"


def _overwritten(content: bytes, rng: random.Random) -> bytes:
    """One number, count, type or character becomes another, often near the beginning."""
    data, number = bytearray(content), rng.choice(NUMBERS)
    reach = len(data) if rng.random() < 0.5 else min(len(data), 3200)
    at = rng.randrange(max(1, reach - 8))
    if rng.random() < 0.2:
        stored = np.float32(rng.choice((np.nan, np.inf, 1e30, 65520.0, -0.0, 1e-40))).tobytes()
        stored = rng.choice((stored, stored[-2:]))  # bfloat16's
        at &= ~3
    else:
        stored = (number % 2**64).to_bytes(8, "little")[: rng.choice((1, 1, 4, 8))]
    data[at : at + len(stored)] = stored
    return bytes(data)


def _resized(content: bytes, rng: random.Random) -> bytes:
    at, width = rng.randint(0, len(content)), rng.choice((1, 2, 8, 100, 5000))
    before, after = content[:at], content[at:]
    longer = (content + bytes(width), before + after[:width] + after, b"PK\x03\x04" + content)
    return rng.choice((before, before + after[width:], *longer))


def _json(content: bytes, rng: random.Random) -> bytes:
    try:
        return json.dumps(_changed(json.loads(content), rng)).encode()
    except ValueError:  # damaged before
        return content


def _changed(parsed, rng: random.Random):
    """The same with one thing replaced, left out, renamed, added or wrapped."""
    if not isinstance(parsed, dict | list) or not parsed or rng.random() < 0.02:
        return rng.choice(VALUES)
    keys = sorted(parsed) if isinstance(parsed, dict) else range(len(parsed))
    key, other = rng.choice(keys), rng.choice(keys)
    child, way = parsed[key], rng.randrange(10)
    if isinstance(child, dict | list) and child and rng.random() < 0.7:
        parsed[key] = _changed(child, rng)
    elif way <= 4:
        parsed[key] = rng.choice(VALUES)
    elif way == 5:
        del parsed[key]
    elif way == 6:
        parsed[key], parsed[other] = parsed[other], parsed[key]
    elif way <= 8 and isinstance(parsed, dict):
        parsed[rng.choice((*KEYS, *keys))] = parsed.pop(key) if way == 7 else rng.choice(VALUES)
    elif type(child) is int:
        parsed[key] = child + rng.choice((-1, 1, 64, -64))
    else:
        parsed[key] = rng.choice(([child], {"a": child}, str(child)))
    return parsed


def _header(content: bytes, rng: random.Random) -> bytes:
    """One thing in a safetensors header, with the data left as they are."""
    begin = 8 + int.from_bytes(content[:8], "little")
    text = _json(content[8:begin], rng)
    return len(text).to_bytes(8, "little") + text + content[begin:]
