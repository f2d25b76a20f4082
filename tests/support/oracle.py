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
GGUF_STEMS = {
    **{"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
    **{"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
    **{"attn_output": "self_attn.o_proj"},
    **{f"attn_{x}_norm": f"self_attn.{x}_layernorm" for x in "qk"},
    **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
# Keys of a config, under all their names, and what they are where absent.
CONFIG = {
    **{(n,): None for n in ("vocab_size", "hidden_size", "intermediate_size", "bos_token_id")},
    ("num_hidden_layers",): None,
    ("num_attention_heads", "num_heads"): None,
    ("rope_theta",): 10000,
    ("partial_rotary_factor", "rope_pct"): 0.25,
    ("layer_norm_eps", "norm_eps"): 1e-5,
    ("max_position_embeddings",): 4096,
    **{(n,): False for n in ("qk_layernorm", "use_parallel_residual", "tie_word_embeddings")},
}
GGUF_CONFIG = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_epsilon": "layer_norm_eps",
}


def check_artefacts(source: Path, out: Path) -> None:
    """Compare mlx-fp16, mlx-int4 and gguf-f16 in `out` with the checkpoint."""
    config = json.loads((out / "mlx-fp16" / "config.json").read_bytes())
    if (source / GGUF_FILE).exists():
        reader = GGUFReader(str(source / GGUF_FILE))
        tensors = {name: [values] for name, values in _of_gguf(reader).items()}
        _check_keys(reader, config)
    else:
        tensors = _of_directory(source, config)
        _check_config(json.loads((source / "config.json").read_bytes()), config)
    _check_fp16(_stored(out / "mlx-fp16"), tensors)
    _check_int4(_stored(out / "mlx-int4"), tensors)
    _check_gguf(GGUFReader(str(out / "gguf-f16.gguf")), tensors, config, out / "mlx-fp16")
    for name in ("mlx-fp16", "mlx-int4"):
        for file in (out / name).iterdir():
            assert file.suffix not in (".py", ".bin", ".pt", ".pkl")
            if file.name.endswith(("config.json", "_map.json")):  # in vocab.json it is a token
                assert "auto_map" not in json.loads(file.read_bytes()), file.name


def _stored(folder: Path) -> dict[str, np.ndarray]:
    return _tensors_of(folder.glob("*.safetensors"))


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


def _of_directory(source: Path, config: dict) -> dict[str, list[np.ndarray]]:
    index = source / INDEX
    named = json.loads(index.read_bytes())["weight_map"] if index.exists() else {}
    paths = [source / n for n in sorted(set(named.values()))] or source.glob("*.safetensors")
    tensors, found = _tensors_of(paths), {}
    for name in sorted(tensors):  # qweight before scales
        stem = name.rpartition(".")[0]
        if name.endswith(".qweight"):
            parts = [
                tensors.pop(f"{stem}.{k}", None) for k in ("qweight", "qzeros", "scales", "g_idx")
            ]
            found[f"{stem}.weight"] = _gptq(*parts)
            bias = tensors.get(f"{stem}.bias")
            if bias is not None and not bias.any() and not config["use_qkv_bias"]:
                del tensors[f"{stem}.bias"]
        elif name.endswith(".scales") and f"{stem}.biases" in tensors:
            parts = [tensors.pop(f"{stem}.{part}") for part in ("weight", "scales", "biases")]
            columns = config["intermediate_size" if "down_proj" in name else "hidden_size"]
            found[f"{stem}.weight"] = [_dequantised(*parts, columns)]
    found |= {name: [array] for name, array in tensors.items()}
    if config["tie_word_embeddings"]:
        found.pop("lm_head.weight", None)
    return {n: a for n, a in found.items() if not n.endswith("rotary_emb.inv_freq")}


def _gptq(qweight, qzeros, scales, groups) -> list[np.ndarray]:
    """Both meanings of the zero points, with and without overflow."""
    groups_count, outputs = scales.shape
    bits = qzeros.shape[1] * 32 // outputs
    inputs = qweight.shape[0] * 32 // bits
    if groups is None or (groups_count > 1 and not groups.any()):
        groups = np.arange(inputs) // (inputs // groups_count)
    codes, stored = _bits(qweight.T, bits).T, _bits(qzeros, bits)
    mask = (1 << bits) - 1 if bits < 8 else 0x1FF
    wide = scales.astype(np.float64)[groups]
    zeros = [z for offset in (1, 0) for z in ((stored + offset) & mask, stored + offset)]
    return [(wide * (codes - z[groups])).T.astype(np.float32) for z in zeros]


def _bits(words: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of some bits from the rows of words, lowest first."""
    raw = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    numbers = raw.reshape(len(words), -1, bits).astype(np.int64)
    return (numbers << np.arange(bits)).sum(-1)


def _dequantised(codes, scales, biases, columns: int) -> np.ndarray:
    """MLX's affine form: scale times code plus bias, exactly."""
    numbers = _bits(codes, codes.shape[1] * 32 // columns)
    size = columns // scales.shape[1]
    scale, bias = (np.repeat(p.astype(np.float64), size, axis=1) for p in (scales, biases))
    return (scale * numbers + bias).astype(np.float32)


def _of_gguf(reader: GGUFReader) -> dict[str, np.ndarray]:
    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        stem, kind = tensor.name.rsplit(".", 1)
        *prefix, stem = stem.split(".")
        name = (f"model.layers.{prefix[1]}." if prefix else "") + GGUF_STEMS[stem]
        if stem in ("attn_q_norm", "attn_k_norm"):
            heads = values.reshape(-1, values.shape[-1])
            tensors |= {f"{name}.norms.{i}.{kind}": row for i, row in enumerate(heads)}
        else:
            tensors[f"{name}.{kind}"] = values
    return tensors


def _check_config(raw: dict, config: dict) -> None:
    if raw["model_type"] == "llama":
        return
    rope = {k: v for k, v in (raw.get("rope_parameters") or {}).items() if v is not None}
    given = {k: v for k, v in raw.items() if v is not None} | rope
    for names, default in CONFIG.items():
        expected = next((given[name] for name in names if name in given), default)
        if not isinstance(expected, list):  # of bos_token_id
            assert config[names[0]] == expected, names
    heads = given.get("num_key_value_heads", config["num_attention_heads"])
    assert config["num_key_value_heads"] == heads
    if not isinstance(raw.get("eos_token_id"), list):
        assert config["eos_token_id"] == raw.get("eos_token_id")


def _check_keys(reader: GGUFReader, config: dict) -> None:
    for key, name in GGUF_CONFIG.items():
        field = reader.get_field(f"stablelm.{key}")
        assert field is None or np.float32(field.contents()) == np.float32(config[name]), key
    if reader.get_field("stablelm.rope.freq_base") is None:
        assert config["rope_theta"] == 10000


def _half(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    assert np.isfinite(half).all()
    return half


def _check_fp16(stored: dict, tensors: dict) -> None:
    assert stored.keys() == tensors.keys()
    for name, meanings in tensors.items():
        assert stored[name].dtype == np.float16, name
        assert any(np.array_equal(stored[name], _half(values)) for values in meanings), name


def _check_int4(stored: dict, tensors: dict) -> None:
    names = {name for name in stored if not name.endswith((".scales", ".biases", "_order"))}
    assert names == tensors.keys()
    floats = {name for name in names if f"{name.removesuffix('weight')}scales" not in stored}
    _check_fp16({n: stored[n] for n in floats}, {n: tensors[n] for n in floats})
    for name in names - floats:
        parts = [stored[name.removesuffix("weight") + p] for p in ("weight", "scales", "biases")]
        assert all(np.isfinite(part).all() for part in parts[1:])
        assert any(_is_rounded(parts, v) or _is_kept(parts, v) for v in tensors[name]), name


def _is_rounded(parts: list[np.ndarray], values: np.ndarray) -> bool:
    """What MLX itself makes of the float16 weights."""
    if values.shape[1] % 64:
        return False
    with mx.stream(mx.cpu):
        expected = mx.quantize(mx.array(_half(values)), group_size=64, bits=4)
    return all(np.array_equal(a, np.asarray(b)) for a, b in zip(parts, expected, strict=True))


def _is_kept(parts: list[np.ndarray], values: np.ndarray) -> bool:
    """The source's own values; rows and columns may be in the orders of its groups."""
    kept = _dequantised(*parts, values.shape[1]).astype(np.float64)
    step = np.abs(parts[1].astype(np.float64)).max()
    return bool(np.abs(np.sort(values, axis=None) - np.sort(kept, axis=None)).max() <= 0.13 * step)


def _check_gguf(reader: GGUFReader, tensors: dict, config: dict, folder: Path) -> None:
    found = _of_gguf(reader)
    if config["tie_word_embeddings"]:
        assert np.array_equal(found.pop("lm_head.weight"), found["model.embed_tokens.weight"])
    assert found.keys() == tensors.keys()
    for name, meanings in tensors.items():
        exact = [v.astype(np.float32) if v.ndim == 1 else _half(v) for v in meanings]
        assert any(np.array_equal(found[name], values) for values in exact), name
    _check_keys(reader, config)
    # Every id means the same token to llama.cpp as to the tokenizers package.
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    for text, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        assert tokens[token_id] == text
    merges = json.loads((folder / "tokenizer.json").read_bytes())["model"]["merges"]
    written = reader.get_field("tokenizer.ggml.merges")
    texts = [m if isinstance(m, str) else " ".join(m) for m in merges]
    assert (written.contents() if written else []) == texts
