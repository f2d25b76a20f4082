"""Perplexity against transformers and llama.cpp's llama-perplexity, recorded and live."""

import json
from pathlib import Path

import numpy as np
import pytest

from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.formats.files import DEMO_PATH
from edge.quality.corpus import SourceText, make_windows
from edge.quality.evaluate import evaluate
from edge.quality.records import Subject
from edge.tokenizer.tokenizer import Tokenizer

HERE = Path(__file__).parent
RECORDED = json.loads((HERE / "reference_nll.json").read_text())
LLAMA_PERPLEXITY = json.loads((HERE / "llama_perplexity.json").read_text())["perplexity"]
WINDOW = RECORDED["window"]


@pytest.fixture(scope="module")
def found(demo_out, held_out_text, tmp_path_factory):
    text = SourceText("held_out", held_out_text)
    windows = make_windows([text], Tokenizer.load(DEMO_PATH), "x", WINDOW, None)
    subjects = [Subject(n, RECIPES[n].path_in(demo_out)) for n in ("mlx-fp16", *LLAMA_PERPLEXITY)]
    config, folder = open_checkpoint("demo").config, tmp_path_factory.mktemp("scores")
    return evaluate(subjects, "mlx-fp16", windows, config, folder, threads=2)


@pytest.mark.parametrize("name", ["mlx-fp16", "gguf-f16"])
def test_nll_is_that_of_transformers_in_float32(name, found):
    wanted = RECORDED["nll_of_windows"]
    assert found.scores[name]["nll"].sum(axis=1).tolist() == pytest.approx(wanted, rel=2e-4)
    mean = sum(wanted) / len(wanted) / (WINDOW - 1)
    assert found.quality[name].perplexity == pytest.approx(np.exp(mean), rel=1e-3)


def test_recorded_nll_is_that_of_transformers_here():
    pytest.importorskip("torch", reason="PyTorch is not installed: recorded figures are used alone")
    from tools.record_reference_nll import window_nlls

    assert window_nlls() == pytest.approx(RECORDED["nll_of_windows"], rel=1e-5)


@pytest.mark.parametrize("name", LLAMA_PERPLEXITY)
def test_perplexity_is_that_of_llama_perplexity(name, found):
    """llama-perplexity scores only the second half of every window."""
    half = found.scores[name]["nll"][:, WINDOW // 2 :].astype(np.float64)
    assert np.exp(half.mean()) == pytest.approx(LLAMA_PERPLEXITY[name], rel=1e-3)
