"""Valid tiny checkpoints of every kind, as files in memory, and ways to spoil them."""

import json
import random
import struct
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import mlx.core as mx
import numpy as np

from edge.model.config import ModelConfig
from tests.support.foreign_gguf import write_tiny
from tests.support.gptq_packer import STABLELM, Settings, write_gptq
from tests.support.tiny import PLAIN, quantised_tensors, random_tensors, write_checkpoint

# One layer and few tokens: a case should take some milliseconds.
SMALL = {**PLAIN, "num_hidden_layers": 1, "vocab_size": 64}
GPTQ = {**STABLELM, "num_hidden_layers": 1, "vocab_size": 64, "hidden_size": 64}
GPTQ |= {"intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
GGUF_FILE = "model.gguf"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


Files = dict[str, bytes]


def write_files(path: Path, files: Files) -> Path:
    """Put the files into a new directory."""
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def _files_of(path: Path) -> Files:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def _plain(path: Path, **changes) -> Files:
    return _files_of(write_checkpoint(path, {**SMALL, **changes}))


def _half(path: Path) -> Files:
    """bfloat16, with every switch of the family that adds tensors."""
    raw = {**SMALL, "num_key_value_heads": 2, "use_qkv_bias": True, "qk_layernorm": True}
    raw |= {"use_parallel_residual": True}
    tensors = random_tensors(ModelConfig.from_dict(raw))
    half = {name: mx.array(array).astype(mx.bfloat16) for name, array in tensors.items()}
    return _files_of(write_checkpoint(path, raw, tensors=half))


def _mlx(path: Path) -> Files:
    """As mlx-lm writes it: matrices in 4 bits and groups of 32."""
    how, tensors = {"group_size": 32, "bits": 4}, random_tensors(ModelConfig.from_dict(SMALL))
    half = {name: mx.array(array).astype(mx.float16) for name, array in tensors.items()}
    raw = {**SMALL, "quantization": how}
    return _files_of(write_checkpoint(path, raw, tensors=quantised_tensors(half, how)))


def _gptq(path: Path, act_order: bool) -> Files:
    write_gptq(path, GPTQ, Settings(group_size=32, act_order=act_order))
    return _files_of(path)


def _gguf(path: Path) -> Files:
    path.mkdir()
    return {GGUF_FILE: write_tiny(path / GGUF_FILE).read_bytes()}


BASES: dict[str, Callable[[Path], Files]] = {
    "plain": _plain,
    "half": _half,
    "tied": lambda path: _plain(path, tie_word_embeddings=True),
    "gptq": lambda path: _gptq(path, act_order=False),
    "gptq-order": lambda path: _gptq(path, act_order=True),
    "mlx": _mlx,
    "gguf": _gguf,
}


NUMBERS = (0, 1, 2, 3, -1, 31, 63, 64, 65, 128, 2**16, 2**31 - 1, 2**31, 2**53, 2**63, 10**12)
VALUES = (
    *NUMBERS,
    *(0.25, 0.5, 1e-5, 1e-300, 1e300, 64.0, True, False, None, "", "64", "false", "gptq", "../x"),
    *([], {}, [0], [[0]], {"a": 0}, "\ud800", "a\nb", "\0", "x" * 300, WEIGHTS),
    *("F64", "F32", "F16", "BF16", "I64", "I32", "U32", "U8", "BOOL", [2**62, 4], [-1, -64]),
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
)


def mutate(files: Files, rng: random.Random) -> str:
    """Spoil the files in place in one way; says which."""
    if not files:
        return "nothing"
    name = rng.choice(sorted(files))
    if rng.random() < 0.1:
        other = rng.choice((*sorted(files), *OTHER_NAMES))
        files[other] = rng.choice((files.pop(name), b"{}", b"[]", b"", b"\x80\x04.", b"null"))
        return f"{name} goes, {other} comes"
    ways = [_bytes, _length]
    if name.endswith(".json"):
        ways += [_json] * 12
    if name.endswith(".safetensors"):
        ways += [_header] * 6 + [_values] * 4
    if name.endswith(".gguf"):
        ways += [_gguf_numbers] * 12
    way = rng.choice(ways)
    files[name] = way(files[name], rng)
    return f"{way.__name__} {name}"


def _bytes(content: bytes, rng: random.Random) -> bytes:
    """A few bytes, most of them near the beginning."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 6) if data else 0):
        reach = len(data) if rng.random() < 0.5 else min(len(data), 2000)
        data[rng.randrange(reach)] = rng.choice((rng.randrange(256), 0, 0xFF, 0x22, 0x5D))
    return bytes(data)


def _length(content: bytes, rng: random.Random) -> bytes:
    at, width = rng.randint(0, len(content)), rng.choice((1, 2, 8, 100, 5000))
    before, after = content[:at], content[at:]
    longer = (content + bytes(width), before + after[:width] + after, b"PK\x03\x04" + content)
    return rng.choice((before, before + after[width:], *longer))


def _json(content: bytes, rng: random.Random) -> bytes:
    try:
        return json.dumps(_changed(json.loads(content), rng)).encode()
    except (ValueError, RecursionError):
        return content


def _value(rng: random.Random):
    """Of its own: a case must not spoil the next one's."""
    return deepcopy(rng.choice(VALUES))


def _changed(parsed, rng: random.Random):
    """The same with one thing replaced, left out, renamed, added or wrapped."""
    if not isinstance(parsed, dict | list) or not parsed or rng.random() < 0.02:
        return _value(rng)
    keys = sorted(parsed) if isinstance(parsed, dict) else range(len(parsed))
    key, other = rng.choice(keys), rng.choice(keys)
    child, way = parsed[key], rng.randrange(10)
    if isinstance(child, dict | list) and child and rng.random() < 0.7:
        parsed[key] = _changed(child, rng)
    elif way <= 4:
        parsed[key] = _value(rng)
    elif way == 5:
        del parsed[key]
    elif way == 6:
        parsed[key], parsed[other] = parsed[other], parsed[key]
    elif way <= 8 and isinstance(parsed, dict):
        parsed[rng.choice((*KEYS, *keys))] = parsed.pop(key) if way == 7 else _value(rng)
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


def _values(content: bytes, rng: random.Random) -> bytes:
    """A number of some tensor, of whatever type."""
    at = rng.randrange(len(content) // 2, len(content) - 3) & ~3 if len(content) > 9 else 0
    value = np.float32(rng.choice((np.nan, np.inf, 1e30, 65520.0, -0.0, 1e-40))).tobytes()
    value = rng.choice((value, value[-2:], b"\xff\xff\xff\xff", b"\x07\0\0\0"))
    return content[:at] + value + content[at + len(value) :]


def _gguf_numbers(content: bytes, rng: random.Random) -> bytes:
    """One number, count or type of the head, or of the data, becomes another."""
    data = bytearray(content)
    reach = len(data) if rng.random() < 0.2 else min(len(data), 3200)
    at, number = rng.randrange(max(1, reach - 8)), rng.choice(NUMBERS) & (2**64 - 1)
    words = (struct.pack("<I", number & 0xFFFFFFFF), struct.pack("<Q", number))
    stored = rng.choice((*words, bytes([number & 0xFF])))
    data[at : at + len(stored)] = stored
    return bytes(data)
