"""The embedded checkpoint: size, tokens, loss, and logits in both engines."""

import json
import math
import re
from itertools import takewhile

import numpy as np
import pytest
from tokenizers import Tokenizer

import edge
from edge.convert.artefacts.gguf_tokenizer import SPECIAL_IDS
from edge.convert.sources.find import DEMO_PATH
from edge.generate.decode import generate_tokens
from tests.support.conversions import edge_logits, llama_logits

WINDOW = 1024
CARD = (DEMO_PATH / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python (psm|spm)\n(.*?)⟦(.*?)⟧(.*?)```", CARD, re.DOTALL)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(DEMO_PATH / "tokenizer.json"))


@pytest.fixture(scope="module")
def held_out_ids(tokenizer, held_out_text):
    ids = tokenizer.encode(held_out_text).ids[:WINDOW]
    assert len(ids) == WINDOW
    return ids


@pytest.fixture(scope="module")
def ours(demo_out, held_out_ids):
    """Logits (WINDOW, vocab) of our network in float32."""
    return edge_logits(DEMO_PATH, held_out_ids)


def nats_per_token(logits, ids):
    rows = logits[:-1].astype(np.float64)
    top = rows.max(-1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(rows - top).sum(-1))
    return float((log_sum - rows[np.arange(len(rows)), ids[1:]]).mean())


def test_it_is_small_and_has_every_special_token(tokenizer):
    assert sum(f.stat().st_size for f in DEMO_PATH.iterdir()) <= 12e6
    added = tokenizer.get_added_tokens_decoder()
    names = {token.content: token_id for token_id, token in added.items()}
    for key, texts in SPECIAL_IDS.items():
        assert key == "padding" or any(text in names for text in texts)
    for text, token_id in names.items():
        assert tokenizer.encode(text).ids == [token_id]


def test_the_card_states_the_losses_on_held_out_text():
    held_out = json.loads((DEMO_PATH / "training.json").read_text())["held_out"]
    assert held_out["nats_per_token"] < 3.2
    assert f"{held_out['nats_per_token']:.3f} nats per token" in CARD
    assert f"{held_out['bits_per_byte']:.3f} bits per byte" in CARD
    assert {order for order, *_ in EXAMPLES} == {"psm", "spm"}


@pytest.mark.parametrize(("order", "before", "middle", "after"), EXAMPLES)
def test_it_completes_the_cards_examples(demo_out, order, before, middle, after):
    model, tokenizer = edge.load(demo_out / "mlx-fp16")
    if order == "psm":
        prompt = f"<fim_prefix>{before}<fim_suffix>{after}<fim_middle>"
    else:
        prompt = f"<fim_prefix><fim_suffix>{after}<fim_middle>{before}"
    eos = model.config.eos_token_ids
    tokens = generate_tokens(model, tokenizer.encode(prompt), max_tokens=40)
    assert tokenizer.decode(list(takewhile(lambda token: token not in eos, tokens))) == middle


def test_llama_cpp_in_float32_gives_our_logits(demo_out, ours, held_out_ids):
    theirs = llama_logits(demo_out / "gguf-f32.gguf", held_out_ids)
    difference = np.abs(theirs - ours)
    assert difference[:256].max() <= 1e-4
    # Four million logits of up to some 25: rounding adds up, in both engines, with the depth.
    assert difference.max() <= 1e-5 * np.abs(ours).max()


def test_the_loss_of_each_precision_is_close_to_float32(demo_out, ours, held_out_ids):
    def loss(logits):
        return nats_per_token(logits, held_out_ids)

    measured = {n: loss(edge_logits(demo_out / n, held_out_ids)) for n in ("mlx-fp16", "mlx-int4")}
    for name in ("gguf-f16", "gguf-q6_k", "gguf-q5_k_m"):
        measured[name] = loss(llama_logits(demo_out / f"{name}.gguf", held_out_ids, exact=False))
    reference = loss(ours)
    assert reference < 3.6  # a uniform guess has 8.3
    ratio = {name: math.exp(nats - reference) for name, nats in measured.items()}
    assert ratio["mlx-fp16"] == pytest.approx(1, abs=0.002)
    assert ratio["gguf-f16"] == pytest.approx(1, abs=0.002)
    assert ratio["gguf-q6_k"] == pytest.approx(1, abs=0.02)
    assert ratio["gguf-q5_k_m"] == pytest.approx(1, abs=0.04)
    assert 0.99 < ratio["mlx-int4"] < 1.25
