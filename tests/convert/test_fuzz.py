"""Damaged checkpoints: each is refused in one sentence, or its artefacts hold what it says.

EDGE_FUZZ_CASES=20000 runs more cases, EDGE_FUZZ_SEED=7 others.
"""

import json
import os
import random
import shutil
import time

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from mlx.utils import tree_flatten
from safetensors import deserialize
from tokenizers import Tokenizer as Backend

from edge.convert.stream import Block
from edge.errors import EdgeError
from edge.model.load import load_model
from edge.tokenizer.tokenizer import Tokenizer
from tests.support.alarm import alarm
from tests.support.conversions import MADE, check, is_sentence, make
from tests.support.mutations import BASES, GGUF_FILE, INDEX, mutate

CASES = int(os.environ.get("EDGE_FUZZ_CASES", "400"))
SEED = int(os.environ.get("EDGE_FUZZ_SEED", "0"))
DIRECTORIES = [base for base in BASES if base != "gguf"]
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U32": "<u4"}
GGUF_STEMS = {
    **{"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
    **{"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
    **{"attn_output": "self_attn.o_proj"},
    **{f"attn_{x}_norm": f"self_attn.{x}_layernorm" for x in "qk"},
    **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
DEFAULTS = {"rope_theta": 10000, "partial_rotary_factor": 0.25, "layer_norm_eps": 1e-5}
DEFAULTS |= {"max_position_embeddings": 4096, "qk_layernorm": False, "tie_word_embeddings": False}
# Decided by the tensors, or the artefact's own.
NOT_COPIED = {"use_qkv_bias", "bos_token_id", "eos_token_id", "quantization", "quantization_config"}
NOT_COPIED |= {"rope_parameters"}  # its values are compared


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The files of each base by name."""
    folder = tmp_path_factory.mktemp("bases")
    written = {name: write(folder / name) for name, write in BASES.items()}
    return {n: {f.name: f.read_bytes() for f in path.iterdir()} for n, path in written.items()}


@pytest.mark.parametrize(("names", "cases"), [(DIRECTORIES, CASES), (["gguf"], CASES // 4)])
def test_a_damaged_checkpoint_is_refused_or_converted_right(bases, tmp_path, names, cases):
    right, slowest_s = 0, 0.0
    for number in range(cases):
        rng = random.Random(f"{SEED} {number}")
        base = rng.choice(names)
        files = dict(bases[base])
        damage = [mutate(files, rng) for _ in range(rng.choice((0, 1, 1, 1, 2, 3))) if files]
        begin_s = time.monotonic()
        try:
            with alarm():
                right += is_right(files, tmp_path)
        except BaseException as error:  # the checkpoint stays in tmp_path
            error.add_note(f"case {number} of seed {SEED}: {base}, {', '.join(damage)}")
            raise
        slowest_s = max(slowest_s, time.monotonic() - begin_s)
    print(f"{right} of {cases} are right, the slowest took {slowest_s:.2f} s")
    assert 0.1 < right / cases < 0.7  # else too much or too little is damaged


@pytest.mark.parametrize("base", BASES)
def test_a_weight_that_is_one_percent_off_is_found(bases, tmp_path, monkeypatch, base):
    rounded = Block._float

    def off(block, name):
        array = rounded(block, name).copy()
        array.flat[0] *= array.dtype.type(1.01)
        return array

    monkeypatch.setattr(Block, "_float", off)
    with pytest.raises(AssertionError):
        is_right(bases[base], tmp_path)


def is_right(files, folder):
    """Convert; False if the files are refused, an AssertionError if an artefact is wrong."""
    path, out = folder / "model", folder / "out"
    for used in (path, out):
        shutil.rmtree(used, ignore_errors=True)
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    source = path / GGUF_FILE if GGUF_FILE in files else path
    if source == path:
        check_loaded(path)
    try:
        make(source, out, *MADE)
    except EdgeError as error:
        assert not out.exists() or list(out.iterdir()) == []
        assert is_sentence(str(error)), error
        return False
    assert check(out / "mlx-int4", source).problems == ()
    compare(source, out / "mlx-fp16", out / "gguf-f16.gguf")
    return True


def check_loaded(path):
    """Load the files as they are; an AssertionError if a parameter is not the stored tensor."""
    try:
        Tokenizer.load(path)
        model = load_model(path, mx.float32, fuse=False)
    except EdgeError as error:
        assert is_sentence(str(error)), error
        return
    tensors = of_files(model_files(path))
    for name, array in tree_flatten(model.parameters()):
        stem, norm, kind = name.rpartition("_layernorm.")
        if name not in tensors and norm:  # of each head
            heads = range(array.shape[0])
            tensors[name] = np.stack([tensors.pop(f"{stem}{norm}norms.{i}.{kind}") for i in heads])
        stored = tensors.pop(name)
        wanted = stored if stored.dtype == np.uint32 else stored.astype(np.float32)
        assert np.array_equal(np.array(array), wanted, equal_nan=stored.dtype != np.uint32), name
    unused = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert tensors.keys() <= unused


def compare(source, fp16, gguf):
    """Compare what the artefacts hold with the source, read by other packages than edge."""
    config = json.loads((fp16 / "config.json").read_bytes())
    copy = GGUFReader(str(gguf))
    if source.is_file():
        try:
            reader = GGUFReader(str(source))
        except UnicodeDecodeError:  # in a key, which llama.cpp does not mind
            return
        tensors = {name: [values] for name, values in of_gguf(reader).items()}
        for key in copy.fields.keys() & reader.fields.keys():
            if key.startswith("stablelm."):
                assert copy.fields[key].contents() == reader.fields[key].contents(), key
    else:
        tensors = of_directory(source, config)
        raw = json.loads((source / "config.json").read_bytes())
        config |= config.get("rope_parameters") or {}
        given = raw | (raw.get("rope_parameters") or {})
        given = DEFAULTS | {key: value for key, value in given.items() if value is not None}
        for key in given.keys() & config.keys() - NOT_COPIED:
            assert config[key] == given[key], key
    stored = of_files(fp16.glob("*.safetensors"))
    assert stored.keys() == tensors.keys()
    for name, meanings in tensors.items():
        assert any(np.array_equal(stored[name], half(values)) for values in meanings), name
    written = of_gguf(copy)
    if config["tie_word_embeddings"]:
        assert np.array_equal(written.pop("lm_head.weight"), written["model.embed_tokens.weight"])
    assert written.keys() == stored.keys()
    for name, values in stored.items():
        assert np.array_equal(half(written[name]), values), name
    tokenizer = Backend.from_file(str(fp16 / "tokenizer.json"))
    tokens = copy.fields["tokenizer.ggml.tokens"].contents()
    for text, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        if token_id < config["vocab_size"]:  # added ones may be beyond
            assert tokens[token_id] == text


def of_files(paths):
    """Tensors by name, as the safetensors package reads them."""
    found = {}
    for path in paths:
        for name, entry in deserialize(path.read_bytes()):
            raw, dtype = bytes(entry["data"]), entry["dtype"]
            if dtype == "BF16":
                values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(raw, NUMPY[dtype])
            found[name] = values.reshape(entry["shape"])
    return found


def model_files(path):
    """The files that the index lists, if one is there, else the one that is a model's."""
    index = path / INDEX
    listed = json.loads(index.read_bytes())["weight_map"].values() if index.exists() else ()
    found = [path / name for name in set(listed) if (path / name).exists()]
    return found or [
        f for f in path.glob("*.safetensors") if not f.name.startswith((".", "adapter"))
    ]


def of_directory(source, config):
    """The values that each tensor may have, by name; more than one where GPTQ is ambiguous."""
    tensors, found = of_files(model_files(source)), {}
    for name in sorted(tensors):  # qweight before scales
        stem = name.rpartition(".")[0]
        if name.endswith(".qweight"):
            parts = ("qweight", "qzeros", "scales", "g_idx")
            found[f"{stem}.weight"] = of_gptq(*(tensors.pop(f"{stem}.{p}", None) for p in parts))
        elif name.endswith(".scales") and f"{stem}.biases" in tensors:
            parts = (tensors.pop(f"{stem}.{part}") for part in ("weight", "scales", "biases"))
            columns = config["intermediate_size" if "down_proj" in name else "hidden_size"]
            found[f"{stem}.weight"] = [of_mlx(*parts, columns)]
    found |= {name: [array] for name, array in tensors.items()}
    if config["tie_word_embeddings"]:
        found.pop("lm_head.weight", None)
    return found


def of_gptq(qweight, qzeros, scales, groups):
    """Both meanings of the zero points, with and without overflow."""
    outputs = scales.shape[1]
    bits = qzeros.shape[1] * 32 // outputs
    inputs = qweight.shape[0] * 32 // bits
    if groups is None or not groups.any():
        groups = np.arange(inputs) // (inputs // len(scales))
    codes, stored = numbers(qweight.T, bits).T, numbers(qzeros, bits)
    wide = scales.astype(np.float64)[groups]
    zeros = [z for offset in (1, 0) for z in ((stored + offset) % 2**bits, stored + offset)]
    return [(wide * (codes - zero[groups])).T.astype(np.float32) for zero in zeros]


def of_mlx(codes, scales, biases, columns):
    """MLX's affine form: scale times code plus bias, exactly."""
    codes = numbers(codes, codes.shape[1] * 32 // columns)
    size = columns // scales.shape[1]
    scale, bias = (np.repeat(part.astype(np.float64), size, axis=1) for part in (scales, biases))
    return (scale * codes + bias).astype(np.float32)


def numbers(words, bits):
    """Numbers of some bits from the rows of words, lowest first."""
    raw = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return (raw.reshape(len(words), -1, bits).astype(np.int64) << np.arange(bits)).sum(-1)


def of_gguf(reader):
    """Tensors by their names in a checkpoint, as the gguf package reads them."""
    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        *block, stem, kind = tensor.name.split(".")
        name = (f"model.layers.{block[1]}." if block else "") + GGUF_STEMS[stem]
        if stem in ("attn_q_norm", "attn_k_norm"):
            heads = values.reshape(-1, values.shape[-1])
            tensors |= {f"{name}.norms.{i}.{kind}": row for i, row in enumerate(heads)}
        else:
            tensors[f"{name}.{kind}"] = values
    return tensors


def half(values):
    """float16, without infinities."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    assert np.isfinite(rounded).all()
    return rounded
