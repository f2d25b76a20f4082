"""The embedded checkpoint: size, tokens, and what its card states."""

import json
import re
from itertools import takewhile

import pytest
from tokenizers import Tokenizer

import edge
from edge.convert.artefacts.gguf_tokenizer import SPECIAL_IDS
from edge.formats.files import DEMO_PATH
from edge.generate.decode import generate_tokens

CARD = (DEMO_PATH / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python (psm|spm)\n(.*?)⟦(.*?)⟧(.*?)```", CARD, re.DOTALL)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(DEMO_PATH / "tokenizer.json"))


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
