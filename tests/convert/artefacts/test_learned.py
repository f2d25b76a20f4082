"""GPTQ on tiny networks with every switch of the family."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.utils import load as mlx_lm_load

from edge.convert.artefacts.learned import Learning, learn, network
from edge.errors import EdgeError
from edge.model.config import ModelConfig
from edge.model.load import load_model
from tests.support.tiny import LLAMA_CONFIGS, PLAIN, write_checkpoint

WIDE = {**PLAIN, "intermediate_size": 128, "hidden_size": 128, "num_attention_heads": 4}
VARIANTS = {
    "plain": WIDE,
    "qkv-bias": {**WIDE, "use_qkv_bias": True},
    "12b": {
        **WIDE,
        "qk_layernorm": True,
        "use_parallel_residual": True,
        "num_key_value_heads": 2,
    },
    "llama": {**LLAMA_CONFIGS["llama-grouped"], "hidden_size": 128, "intermediate_size": 128},
}
TIED = {**WIDE, "tie_word_embeddings": True}
SHORT = {"group_size": 32, "sequences": 8, "sequence_tokens": 32}


class Letters:
    """A tokenizer with ids that follow one another unevenly, as a language's do."""

    def encode(self, text):
        return [(7 * ord(letter) + i % 3) % 160 for i, letter in enumerate(text)]


TEXT = "the quick brown fox jumps over the lazy dog; " * 40
HELD_OUT = mx.array(Letters().encode("a lazy dog quickly jumps over the brown fox, " * 3))[None]


@pytest.fixture(scope="module", params=VARIANTS)
def checkpoint(request, tmp_path_factory):
    """A float checkpoint of one variant, in the spelling of our own artefacts."""
    return write(tmp_path_factory.mktemp("learned") / request.param, VARIANTS[request.param])


def write(path, raw):
    write_checkpoint(path, raw)
    (path / "config.json").write_text(json.dumps(ModelConfig.from_dict(raw).to_dict()))
    return path


def run(path, **changes):
    learning = Learning(**{**SHORT, **changes})
    return learn(path, learning, TEXT, Letters(), lambda _: None)


def save(source, learned, out):
    """An artefact with the learned tensors, as the MLX writer lays it out."""
    shutil.copytree(source, out)
    mx.save_safetensors(str(out / "model.safetensors"), learned, {"format": "mlx"})
    config = json.loads((source / "config.json").read_text())
    quantization = {"group_size": 32, "bits": 4, "mode": "affine"}
    config["quantization"] = config["quantization_config"] = quantization
    (out / "config.json").write_text(json.dumps(config))
    return out


def rounded(path, bits=4):
    """The tensors after plain rounding."""
    tensors = {}
    for name, weight in mx.load(str(path / "model.safetensors")).items():
        if weight.ndim == 2:
            stem = name.removesuffix("weight")
            keys = (name, f"{stem}scales", f"{stem}biases")
            tensors |= zip(keys, mx.quantize(weight, group_size=32, bits=bits), strict=True)
        else:
            tensors[name] = weight
    return tensors


def error(path, tensors, bits=4):
    """Mean squared difference of the logits from the float model's, on a text not learned from."""
    config = ModelConfig.from_dict(json.loads((path / "config.json").read_text()))
    exact, approximate = network(config), network(config)
    exact.load_weights(str(path / "model.safetensors"))
    stems = {name.removesuffix(".scales") for name in tensors if name.endswith(".scales")}
    nn.quantize(
        approximate, group_size=32, bits=bits, class_predicate=lambda name, _: name in stems
    )
    approximate.load_weights(list(tensors.items()))
    approximate.set_dtype(mx.float32)
    return mx.square(exact(HELD_OUT) - approximate(HELD_OUT)).mean().item()


def test_learning_comes_closer_than_rounding_and_runs_everywhere(tmp_path, checkpoint, capsys):
    learned = run(checkpoint)
    assert capsys.readouterr() == ("", "")  # none of mlx-lm's bars
    assert {array.dtype for array in learned.values()} == {mx.uint32, mx.float16}
    plain = rounded(checkpoint)
    assert learned.keys() == plain.keys()
    # The embedding's rounding error, which GPTQ leaves as it is, is a part of both.
    assert error(checkpoint, learned) < 0.95 * error(checkpoint, plain)

    artefact = save(checkpoint, learned, tmp_path / "out")
    ours = load_model(artefact, mx.float32)(HELD_OUT)
    model, _ = mlx_lm_load(str(artefact))
    model.set_dtype(mx.float32)
    np.testing.assert_allclose(np.array(model(HELD_OUT)), np.array(ours), atol=2e-4)


def test_a_tied_head_stays_tied(tmp_path):
    path = write(tmp_path / "tied", TIED)
    learned = run(path)
    assert learned.keys() == rounded(path).keys()
    logits = load_model(save(path, learned, tmp_path / "out"), mx.float32)(HELD_OUT)
    assert np.isfinite(np.array(logits)).all()


@pytest.mark.parametrize("bits", [2, 8])
def test_other_widths(tmp_path, bits):
    path = write(tmp_path / "m", WIDE)
    learned = run(path, bits=bits)
    # At 8 bits there is next to nothing to learn.
    assert error(path, learned, bits) < 1.05 * error(path, rounded(path, bits), bits)


def test_the_seed_decides_and_progress_rises(tmp_path):
    path = write(tmp_path / "m", WIDE)

    def scales(seed):
        learning = Learning(**{**SHORT, "sequences": 2}, seed=seed)
        tensors = learn(path, learning, TEXT, Letters(), told.append)
        return np.array(tensors["model.layers.1.mlp.down_proj.scales"])

    told = []
    first = scales(0)
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(told) >= 4
    assert (first == scales(0)).all()
    assert (first != scales(1)).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 3}, "gptq cannot make 3 bits; choose from 2, 4, 8"),
        ({"group_size": 128, "sequences": 1}, "do not divide into groups of 128"),
        ({"sequence_tokens": 256}, "one sequence needs 256"),
    ],
)
def test_what_cannot_be_learned_is_a_sentence(tmp_path, changes, words):
    path = write(tmp_path / "m", PLAIN)
    with pytest.raises(EdgeError, match=words):
        learn(path, Learning(**{**SHORT, **changes}), TEXT[:200], Letters(), lambda _: None)


def test_a_quantised_model_is_refused(tmp_path):
    path = write(tmp_path / "m", WIDE)
    mx.save_safetensors(str(path / "model.safetensors"), rounded(path))
    with pytest.raises(EdgeError, match="is quantised already"):
        run(path)
