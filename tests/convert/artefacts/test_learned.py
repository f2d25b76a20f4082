"""GPTQ on tiny networks with every switch of the family, and the text it learns from."""

import dataclasses
import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load as mlx_lm_load

from edge.convert.artefacts.learned import bundled_text, learn, sequences
from edge.convert.artefacts.recipes import RECIPES
from edge.errors import EdgeError
from edge.model.config import ModelConfig
from edge.model.load import load_model
from edge.quality.corpus import iter_texts
from tests.support.conversions import make
from tests.support.tiny import LLAMA_CONFIGS, PLAIN, write_checkpoint

WIDE = {**PLAIN, "intermediate_size": 128, "hidden_size": 128, "num_attention_heads": 4}
VARIANTS = {
    "plain": WIDE,
    "qkv-bias": {**WIDE, "use_qkv_bias": True},
    "12b": {**WIDE, "qk_layernorm": True, "use_parallel_residual": True, "num_key_value_heads": 2},
    "llama": {**LLAMA_CONFIGS["llama-grouped"], "hidden_size": 128, "intermediate_size": 128},
    "tied": {**WIDE, "tie_word_embeddings": True},
}


class Letters:
    """A tokenizer with ids that follow one another unevenly, as a language's do."""

    def encode(self, text):
        return [(7 * ord(letter) + i % 3) % 160 for i, letter in enumerate(text)]


TEXT = "the quick brown fox jumps over the lazy dog; " * 40
HELD_OUT = mx.array(Letters().encode("a lazy dog quickly jumps over the brown fox, " * 3))[None]


def write(path, raw):
    """A float checkpoint in the spelling of our own artefacts."""
    write_checkpoint(path, raw)
    (path / "config.json").write_text(json.dumps(ModelConfig.from_dict(raw).to_dict()))
    return path


def run(path, bits=4, group_size=32, progress=lambda _: None):
    recipe = dataclasses.replace(RECIPES["mlx-int4"], bits=bits, group_size=group_size)
    return learn(path, recipe, sequences(Letters(), TEXT, 32, 8), progress)


def save(source, learned, out, bits=4):
    """An artefact with the learned tensors, as the MLX writer lays it out."""
    shutil.copytree(source, out)
    mx.save_safetensors(str(out / "model.safetensors"), learned, {"format": "mlx"})
    config = json.loads((source / "config.json").read_text())
    quantization = {"group_size": 32, "bits": bits, "mode": "affine"}
    config["quantization"] = config["quantization_config"] = quantization
    (out / "config.json").write_text(json.dumps(config))
    return out


def error(path, artefact):
    """Mean squared difference of the logits from the float model's, on a text not learned from."""
    exact, approximate = (load_model(p, mx.float32)(HELD_OUT) for p in (path, artefact))
    return mx.square(exact - approximate).mean().item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_learning_is_closer_than_rounding_and_runs_everywhere(tmp_path, variant, capsys):
    path, told = write(tmp_path / variant, VARIANTS[variant]), []
    learned = run(path, progress=told.append)
    assert told == sorted(told) and told[-1] == 1 and len(told) > 2
    assert capsys.readouterr() == ("", "")  # none of mlx-lm's bars
    assert {array.dtype for array in learned.values()} == {mx.uint32, mx.float16}
    (plain,) = make(path, tmp_path / "plain", "mlx-int4", group_size=32)
    assert learned.keys() == mx.load(str(plain.path / "model.safetensors")).keys()
    artefact = save(path, learned, tmp_path / "out")
    ours = load_model(artefact, mx.float32)(HELD_OUT)
    assert np.isfinite(np.array(ours)).all()
    if variant == "tied":  # mlx-lm's StableLM has no tied head
        return
    # The embedding's rounding error, which GPTQ leaves as it is, is a part of both.
    assert error(path, artefact) < 0.95 * error(path, plain.path)
    model, _ = mlx_lm_load(str(artefact))
    model.set_dtype(mx.float32)
    np.testing.assert_allclose(np.array(model(HELD_OUT)), np.array(ours), atol=2e-4)


@pytest.mark.parametrize("bits", [2, 8])
def test_other_widths(tmp_path, bits):
    path = write(tmp_path / "m", WIDE)
    learned = save(path, run(path, bits), tmp_path / "learned", bits)
    (plain,) = make(path, tmp_path / "plain", f"mlx-int{bits}", group_size=32)
    assert error(path, learned) < 1.05 * error(path, plain.path)  # little to learn at 8


def test_a_group_size_that_divides_no_row_is_refused(tmp_path):
    with pytest.raises(EdgeError, match="do not divide into groups of 128"):
        run(write(tmp_path / "m", PLAIN), group_size=128)


# --- the text


def test_the_bundled_text_is_code_that_quality_is_not_measured_on(held_out_text):
    text = bundled_text()
    assert 100_000 < len(text.encode()) < 2_000_000
    assert "def bundled_text() -> str:" in text
    ours = set(text.splitlines())
    sample = "".join(t.text for t in iter_texts(None) if t.name.endswith(".py"))
    for measured in (held_out_text, sample):
        lines = [line for line in measured.splitlines() if len(line) > 40]
        assert len([line for line in lines if line in ours]) < 0.1 * len(lines)


def test_sequences_are_pieces_of_the_text_spread_over_it():
    text = "".join(chr(33 + i) for i in range(90))
    pieces = [Letters().encode(text)[i : i + 8] for i in range(0, 88, 8)]
    drawn = sequences(Letters(), text, 8, 5)
    assert (drawn.shape, drawn.dtype) == ((5, 8), np.int32)
    places = [pieces.index(row) for row in drawn.tolist()]
    assert len(set(places)) == 5 and max(places) > 5
    assert sequences(Letters(), text, 8, 1000).shape == (11, 8)
    with pytest.raises(EdgeError, match="has 5 tokens, one sequence needs 8"):
        sequences(Letters(), "short", 8, 1)
