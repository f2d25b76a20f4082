"""Is an artefact what its source says? Judged without any of edge's readers or writers.

Files are parsed by the safetensors, gguf, json and tokenizers packages and mlx, and formats are
unpacked here from their definitions.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors import deserialize
from tokenizers import Tokenizer

from tests.support.mutations import GGUF_FILE, INDEX

NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U32": "<u4"}
SHAPE_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
GGUF_STEMS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def check_artefacts(source: Path, out: Path) -> None:
    """Compare mlx-fp16, mlx-int4 and gguf-f16 in `out` with the checkpoint.

    Raises:
        AssertionError: one is not what it should be.
    """
    config = _config(out / "mlx-fp16")
    if (source / GGUF_FILE).exists():
        tensors, orders = _of_gguf(GGUFReader(str(source / GGUF_FILE))), {}
        _check_gguf_source(GGUFReader(str(source / GGUF_FILE)), config)
    else:
        tensors, orders = _of_directory(source, config)
        _check_config(json.loads((source / "config.json").read_bytes()), config)
    _check_fp16(_stored(out / "mlx-fp16"), tensors)
    _check_int4(_stored(out / "mlx-int4"), tensors, orders)
    _check_gguf(GGUFReader(str(out / "gguf-f16.gguf")), tensors, config, out / "mlx-fp16")
    for name in ("mlx-fp16", "mlx-int4"):
        files = list((out / name).iterdir())
        assert not {file.suffix for file in files} & {".py", ".bin", ".pt", ".pkl"}
        for file in files:  # in vocab.json and added_tokens.json it is a token
            if file.name.endswith(("config.json", "_map.json")):
                assert "auto_map" not in json.loads(file.read_bytes()), file.name


def _config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_bytes())


# --- what the source holds


def _tensors_of(paths) -> dict[str, np.ndarray]:
    found = {}
    for path in paths:
        for name, entry in deserialize(path.read_bytes()):
            assert name not in found
            found[name] = _array(entry)
    return found


def _array(entry) -> np.ndarray:
    raw = bytes(entry["data"])
    if entry["dtype"] == "BF16":
        wide = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(entry["shape"])
    return np.frombuffer(raw, NUMPY[entry["dtype"]]).reshape(entry["shape"])


def _of_directory(source: Path, config: dict) -> tuple[dict, dict]:
    index = source / INDEX
    named = json.loads(index.read_bytes())["weight_map"] if index.exists() else {}
    paths = [source / n for n in sorted(set(named.values()))] or source.glob("*.safetensors")
    tensors = _tensors_of(paths)
    orders = {}
    for name in sorted(tensors):  # qweight before scales
        if name.endswith(".qweight"):
            stem = name.removesuffix(".qweight")
            parts = {k: tensors.pop(f"{stem}.{k}", None) for k in ("qweight", "qzeros", "scales")}
            dense, order = _gptq(**parts, groups=tensors.pop(f"{stem}.g_idx", None))
            tensors[f"{stem}.weight"] = dense
            orders[f"{stem}.weight"] = order
            bias = tensors.get(f"{stem}.bias")
            if bias is not None and not bias.any() and not config["use_qkv_bias"]:
                del tensors[f"{stem}.bias"]
        elif name.endswith(".scales") and f"{name[:-6]}biases" in tensors:
            stem = name.removesuffix("scales")
            codes, scales, biases = (
                tensors.pop(stem + part) for part in ("weight", "scales", "biases")
            )
            columns = _columns(f"{stem}weight", config)
            tensors[f"{stem}weight"] = _dequantised(codes, scales, biases, columns)
    if config["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    return {n: a for n, a in tensors.items() if not n.endswith("rotary_emb.inv_freq")}, orders


def _gptq(qweight, qzeros, scales, groups) -> tuple[list[np.ndarray], np.ndarray]:
    """Both meanings of the zero points, and the order that brings groups together."""
    groups_count, outputs = scales.shape
    bits = qzeros.shape[1] * 32 // outputs
    inputs = qweight.shape[0] * 32 // bits
    if groups is None or (groups_count > 1 and not groups.any()):
        groups = np.arange(inputs) // (inputs // groups_count)
    mask = (1 << bits) - 1
    codes, stored = _bits(qweight.T, bits).T, _bits(qzeros, bits)
    wide = scales.astype(np.float64)[groups]
    found = []
    for offset in (1, 0):
        zeros = (stored + offset) & (mask if bits < 8 else 0x1FF)
        found.append((wide * (codes - zeros[groups])).T.astype(np.float32))
        zeros = stored + offset
        found.append((wide * (codes - zeros[groups])).T.astype(np.float32))
    return found, np.argsort(groups, kind="stable")


def _bits(words: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of some bits from the rows of words, lowest first."""
    raw = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    numbers = raw.reshape(len(words), -1, bits).astype(np.int64)
    return (numbers << np.arange(bits)).sum(-1)


def _columns(name: str, config: dict) -> int:
    return config["intermediate_size" if "down_proj" in name else "hidden_size"]


def _dequantised(codes, scales, biases, columns: int) -> np.ndarray:
    """MLX's affine form: scale times code plus bias, exactly."""
    numbers = _bits(codes, codes.shape[1] * 32 // columns)
    size = columns // scales.shape[1]
    wide = (np.repeat(part.astype(np.float64), size, axis=1) for part in (scales, biases))
    scale, bias = wide
    return (scale * numbers + bias).astype(np.float32)


def _of_gguf(reader: GGUFReader) -> dict[str, np.ndarray]:
    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        for name, part in _hugging_face(tensor.name, values):
            tensors[name] = part
    return tensors


def _hugging_face(name: str, values: np.ndarray):
    stem, kind = name.rsplit(".", 1)
    *prefix, stem = stem.split(".")
    prefix = f"model.layers.{prefix[1]}." if prefix else ""
    full = prefix + GGUF_STEMS[stem]
    if stem in ("attn_q_norm", "attn_k_norm"):
        heads = values.reshape(-1, values.shape[-1])
        return [(f"{full}.norms.{i}.{kind}", row) for i, row in enumerate(heads)]
    return [(f"{full}.{kind}", values)]


# --- what the artefacts hold


def _check_config(raw: dict, config: dict) -> None:
    def first(*names, default):
        return next((raw[n] for n in names if raw.get(n) is not None), default)

    heads = first("num_attention_heads", "num_heads", default=None)
    rope = {k: v for k, v in (raw.get("rope_parameters") or {}).items() if v is not None}
    expected = {name: raw[name] for name in SHAPE_KEYS} | {
        "num_attention_heads": heads,
        "num_key_value_heads": first("num_key_value_heads", default=heads),
        "rope_theta": rope.get("rope_theta", first("rope_theta", default=10000)),
        "partial_rotary_factor": rope.get(
            "partial_rotary_factor", first("partial_rotary_factor", "rope_pct", default=0.25)
        ),
        "layer_norm_eps": first("layer_norm_eps", "norm_eps", default=1e-5),
        "max_position_embeddings": first("max_position_embeddings", default=4096),
        "bos_token_id": raw.get("bos_token_id"),
        "qk_layernorm": raw.get("qk_layernorm") is True,
        "use_parallel_residual": raw.get("use_parallel_residual") is True,
        "tie_word_embeddings": raw.get("tie_word_embeddings") is True,
    }
    if raw["model_type"] == "llama":
        return
    found = {name: config[name] for name in expected}
    if isinstance(raw.get("bos_token_id"), list):
        del expected["bos_token_id"], found["bos_token_id"]
    assert found == expected
    ends = raw.get("eos_token_id")
    if not isinstance(ends, list):
        assert config["eos_token_id"] == ends


def _check_gguf_source(reader: GGUFReader, config: dict) -> None:
    keys = {
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size",
        "context_length": "max_position_embeddings",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
    }
    for key, name in keys.items():
        field = reader.get_field(f"stablelm.{key}")
        assert field is None or field.contents() == config[name], key
    base = reader.get_field("stablelm.rope.freq_base")
    assert np.float32(config["rope_theta"]) == np.float32(base.contents() if base else 10000)


def _stored(folder: Path) -> dict[str, np.ndarray]:
    return _tensors_of(folder.glob("*.safetensors"))


def _half(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    assert np.isfinite(half).all()
    return half


def _candidates(values) -> list[np.ndarray]:
    return values if isinstance(values, list) else [values]


def _check_fp16(stored: dict, tensors: dict) -> None:
    assert stored.keys() == tensors.keys()
    for name, values in tensors.items():
        assert stored[name].dtype == np.float16, name
        assert any(np.array_equal(stored[name], _half(v)) for v in _candidates(values)), name


def _check_int4(stored: dict, tensors: dict, orders: dict) -> None:
    names = {name for name in stored if not name.endswith((".scales", ".biases", "_order"))}
    assert names == tensors.keys()
    for name, values in tensors.items():
        stem = name.removesuffix("weight")
        if f"{stem}scales" not in stored:
            assert any(np.array_equal(stored[name], _half(v)) for v in _candidates(values)), name
            continue
        parts = [stored[stem + part] for part in ("weight", "scales", "biases")]
        assert all(np.isfinite(part).all() for part in parts[1:])
        assert any(
            _is_rounded(parts, v) or _is_kept(parts, v, name, orders) for v in _candidates(values)
        ), name


def _is_rounded(parts: list[np.ndarray], values: np.ndarray) -> bool:
    """What MLX itself makes of the float16 weights."""
    if values.shape[1] % 64:
        return False
    with mx.stream(mx.cpu):
        expected = mx.quantize(mx.array(_half(values)), group_size=64, bits=4)
    return all(np.array_equal(a, np.asarray(b)) for a, b in zip(parts, expected, strict=True))


def _is_kept(parts: list[np.ndarray], values: np.ndarray, name: str, orders: dict) -> bool:
    """The source's own values, rows and columns in the orders of its groups."""
    kept = _dequantised(*parts, values.shape[1])
    down = orders.get(name.replace("gate_proj", "down_proj").replace("up_proj", "down_proj"))
    by_group = orders.get(name, np.arange(values.shape[1]))
    rows = down if ("gate_proj" in name or "up_proj" in name) and down is not None else None
    for columns in (by_group, np.arange(values.shape[1])):
        for lines in (rows, None):
            expected = values[:, columns] if lines is None else values[lines][:, columns]
            step = np.abs(parts[1].astype(np.float64)).max()
            if np.abs(expected.astype(np.float64) - kept).max() <= 0.13 * step + 1e-12:
                return True
    return False


def _check_gguf(reader: GGUFReader, tensors: dict, config: dict, folder: Path) -> None:
    found = _of_gguf(reader)
    if config["tie_word_embeddings"]:
        assert np.array_equal(found.pop("lm_head.weight"), found["model.embed_tokens.weight"])
    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        small = found[name].ndim == 1
        exact = (v.astype(np.float32) if small else _half(v) for v in _candidates(values))
        assert any(np.array_equal(found[name], v) for v in exact), name
    _check_tokens(reader, folder)
    keys = {"stablelm.rope.freq_base": "rope_theta", "stablelm.block_count": "num_hidden_layers"}
    keys |= {"stablelm.attention.layer_norm_epsilon": "layer_norm_eps"}
    for key, name in keys.items():
        assert np.float32(reader.get_field(key).contents()) == np.float32(config[name]), key


def _check_tokens(reader: GGUFReader, folder: Path) -> None:
    """Every id means the same token to llama.cpp as to the tokenizers package."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    for text, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        assert tokens[token_id] == text
    merges = json.loads((folder / "tokenizer.json").read_bytes())["model"]["merges"]
    written = reader.get_field("tokenizer.ggml.merges")
    texts = [m if isinstance(m, str) else " ".join(m) for m in merges]
    assert (written.contents() if written else []) == texts
