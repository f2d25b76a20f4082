"""GPTQ on tiny networks with every switch of the family, and the text it learns from."""

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer

from edge.convert.artefacts.learned import bundled_text
from edge.quality.corpus import iter_texts
from tests.support.conversions import edge_logits, make, mlx_lm_logits
from tests.support.tiny import LLAMA_CONFIGS, PLAIN, write_checkpoint

WIDE = {**PLAIN, "intermediate_size": 128, "hidden_size": 128, "num_attention_heads": 4}
VARIANTS = {
    "plain": WIDE,
    "qkv-bias": {**WIDE, "use_qkv_bias": True},
    "12b": {**WIDE, "qk_layernorm": True, "use_parallel_residual": True, "num_key_value_heads": 2},
    "llama": {**LLAMA_CONFIGS["llama-grouped"], "hidden_size": 128, "intermediate_size": 128},
    "tied": {**WIDE, "tie_word_embeddings": True},
}


# More letters than one sequence has tokens.
TEXT = "the quick brown fox jumps over the lazy dog; " * 40
HELD_OUT = "a lazy dog quickly jumps over the brown fox, " * 3


def learned_and_plain(tmp_path, raw):
    """Artefacts made with and without GPTQ, and their errors."""
    source, text = write_checkpoint(tmp_path / "m", raw), tmp_path / "text.txt"
    text.write_text(TEXT)
    how = {"group_size": 32, "learned": True, "calibration": text}
    (learned,) = make(source, tmp_path / "learned", "mlx-int4", **how)
    (plain,) = make(source, tmp_path / "plain", "mlx-int4", group_size=32)
    ids = Tokenizer.from_file(str(source / "tokenizer.json")).encode(HELD_OUT).ids
    exact = edge_logits(source, ids)
    errors = [np.square(edge_logits(a.path, ids) - exact).mean() for a in (learned, plain)]
    return learned.path, plain.path, errors


@pytest.mark.parametrize("variant", VARIANTS)
def test_learning_is_closer_than_rounding_and_runs_everywhere(tmp_path, variant, capsys):
    learned, plain, errors = learned_and_plain(tmp_path, VARIANTS[variant])
    assert capsys.readouterr() == ("", "")  # none of mlx-lm's bars
    a, b = (mx.load(str(path / "model.safetensors")) for path in (learned, plain))
    assert {n: (t.dtype, t.shape) for n, t in a.items()} == {
        n: (t.dtype, t.shape) for n, t in b.items()
    }
    # GPTQ leaves the embedding's rounding error as it is.
    assert errors[0] < 0.95 * errors[1]
    if variant != "tied":  # mlx-lm's StableLM has no tied head
        np.testing.assert_allclose(mlx_lm_logits(learned), edge_logits(learned), atol=2e-4)


def test_the_bundled_text_is_code_that_quality_is_not_measured_on(held_out_text):
    text = bundled_text()
    assert 100_000 < len(text.encode()) < 2_000_000
    assert "def bundled_text() -> str:" in text
    ours = set(text.splitlines())
    sample = "".join(t.text for t in iter_texts(None) if t.name.endswith(".py"))
    for measured in (held_out_text, sample):
        lines = [line for line in measured.splitlines() if len(line) > 40]
        assert len([line for line in lines if line in ours]) < 0.1 * len(lines)
