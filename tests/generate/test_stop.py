"""Stop tokens by name, and stop strings in a stream cut anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from edge.errors import EdgeError
from edge.generate.stop import STOP_TOKENS, StopScanner, stop_ids
from edge.tokenizer.special_tokens import token_id
from edge.tokenizer.tokenizer import Tokenizer as OurTokenizer

# Few letters, so that stop strings occur, overlap and nearly occur.
LETTERS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def tokenizer_with(names, **special):
    vocab = {name: i for i, name in enumerate(["<unk>", "hello", *names])}
    backend = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def naive(text, stops):
    """Read character by character until a stop string is complete; the longest such goes."""
    for end in range(1, len(text) + 1):
        complete = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(complete)]
    return text


@given(LETTERS, STOPS, st.data())
def test_any_cut_gives_the_naive_result(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    scanner, passed = StopScanner(stops), ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        passed += scanner.add(text[start:end])
        assert len(scanner.held) <= max(map(len, stops), default=1) - 1
        if scanner.found is None:
            assert passed + scanner.held == text[:end]
            assert not scanner.held or any(s.startswith(scanner.held) for s in stops)
    assert passed + scanner.finish() == naive(text, stops)
    assert (scanner.found is not None) == any(stop in text for stop in stops)


def test_a_bare_string_is_one_stop_and_an_empty_one_is_refused():
    assert StopScanner("cd").add("abcd") == "ab"
    with pytest.raises(EdgeError, match="a stop string is empty; "):
        StopScanner(["a", ""])


@pytest.mark.parametrize("load", [load_tokenizer, OurTokenizer.load])
def test_the_demos_stop_tokens(load, demo_out):
    tokenizer = load(demo_out / "mlx-fp16")
    names = {tokenizer.convert_ids_to_tokens(i) for i in stop_ids(tokenizer)}
    assert names == {name for name in STOP_TOKENS if name in tokenizer.get_vocab()}
    assert {"<|endoftext|>", "<|im_end|>", "<|im_start|>", "<fim_middle>"} <= names


@pytest.mark.parametrize("unk", [None, "<unk>", "<|endoftext|>"])
def test_absent_names_stop_nothing(unk):
    """An unknown name must not become the id of the unknown token."""
    tokenizer = tokenizer_with(["<|im_end|>", "<|endoftext|>"], unk_token=unk)
    assert stop_ids(tokenizer) == {2, 3}
    assert token_id(tokenizer, "<fim_middle>") is None
    assert token_id(tokenizer, "<|im_end|>") == 2
