"""Which ids make a window, which of them count, and how many bytes they are."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.cli.model_path import DEMO
from edge.errors import EdgeError
from edge.quality.texts import SourceText
from edge.quality.token_bytes import TokenBytes
from edge.quality.windows import digests, make_windows
from edge.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(DEMO)
VOCAB = 4096
TEXT = "def f(x):\n    return [y for y in x if y]\n" * 20
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def cut(texts, window, tokens=None, tokenizer=TOKENIZER, vocab=VOCAB):
    sources = [SourceText(f"{i}.py", text) for i, text in enumerate(texts)]
    return make_windows(sources, tokenizer, vocab, "corpus", window, tokens)


def stream(texts):
    """Ids and whether each is a text's own, made another way."""
    ids, own = [], []
    for text in texts:
        found = TOKENIZER.encode(text, add_special_tokens=False)
        ids += [*found, TOKENIZER.eos_token_id]
        own += [True] * len(found) + [False]
    return ids, own


@given(st.lists(WORDS, min_size=1, max_size=5), st.integers(2, 9), st.integers(0, 40))
def test_no_token_is_scored_twice_and_bytes_add_up(texts, window, extra):
    ids, own = stream(texts)
    tokens = window + extra
    whole = len(ids) // window
    used = min(whole, tokens // window)
    places = [i * whole // used * window for i in range(used)] if used else []
    scored = [p + k for p in places for k in range(1, window) if own[p + k]]
    if not scored:
        with pytest.raises(EdgeError):
            cut(texts, window, tokens)
        return
    found = cut(texts, window, tokens)
    assert found.ids.tolist() == [ids[p : p + window] for p in places]
    assert len(places) == len(set(places))
    assert found.scored_tokens == len(set(scored)) == len(scored)
    assert len(found) + found.left_out == whole
    assert found.bytes.shape == found.scored.shape == (used, window - 1)
    assert not found.bytes[~found.scored].any()
    lengths = [n for text in texts for n in (*_lengths(text), 0)]
    assert found.scored_bytes == sum(lengths[i] for i in scored)


def _lengths(text):
    return TokenBytes(TOKENIZER).lengths(TOKENIZER.encode(text, add_special_tokens=False), text)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_the_bytes_of_all_tokens_are_those_of_the_text(text):
    assert sum(_lengths(text)) == len(text.encode())


def test_a_special_token_in_a_text_is_as_long_as_it_is_written():
    assert _lengths("<|endoftext|>") == [13]


class Metaspaced:
    """What TokenBytes asks of a SentencePiece tokenizer."""

    class backend_tokenizer:
        decoder = None

        @staticmethod
        def get_added_tokens_decoder():
            return {}

    names = ("\u2581def", "\u2581f", "<0x0A>", "é")

    def convert_ids_to_tokens(self, i):
        return self.names[i]


def test_sentencepiece_spaces_and_byte_tokens():
    assert TokenBytes(Metaspaced()).lengths([0, 1, 2, 3], "def f\né") == [3, 2, 1, 2]
    assert TokenBytes(Metaspaced()).lengths([0, 1], " def f") == [4, 2]


def test_windows_are_taken_from_all_over_the_corpus():
    found = cut([TEXT] * 8, 32, 96)
    ids = np.array(stream([TEXT] * 8)[0])
    whole = len(ids) // 32
    starts = [i * whole // 3 for i in range(3)]
    assert [list(row) for row in found.ids] == [ids[s * 32 : s * 32 + 32].tolist() for s in starts]
    assert found.left_out == whole - 3


def test_a_tokenizer_that_begins_with_bos_has_it_begin_every_window():
    class Beginning(Tokenizer):
        def encode(self, text, add_special_tokens=True):
            ids = super().encode(text, add_special_tokens)
            return [self.bos_token_id, *ids] if add_special_tokens else ids

    backend = TOKENIZER.backend_tokenizer
    tokenizer = Beginning(backend, {**TOKENIZER.special_tokens_map, "bos_token": "<fim_prefix>"})
    plain, begun = cut([TEXT], 16), cut([TEXT], 16, tokenizer=tokenizer)
    assert set(begun.ids[:, 0].tolist()) == {tokenizer.bos_token_id}
    assert np.array_equal(begun.ids[:, 1:], plain.ids[:, 1:])
    assert np.array_equal(begun.bytes, plain.bytes)


def test_the_corpus_digest_covers_names_and_texts():
    found = cut(["ab" * 20, "cd"], 4)
    pieces = (b"0.py", b"ab" * 20, b"1.py", b"cd")
    data = b"".join(len(p).to_bytes(8, "little") + p for p in pieces)
    assert found.corpus.sha256 == hashlib.sha256(data).hexdigest()
    assert (found.corpus.texts, found.corpus.bytes) == (2, 42)


def test_equal_windows_have_equal_digests_wherever_they_are():
    a, b = cut([TEXT], 16), cut([TEXT], 16, 64)
    assert set(digests(b)) <= set(digests(a))
    assert next(digests(a)) == next(digests(b))


@pytest.mark.parametrize(
    ("texts", "window", "tokens", "said"),
    [
        ([], 8, None, "has no text"),
        (["abc"], 512, None, "fill no window of 512"),
        ([TEXT], 1, None, "scores no token"),
        ([TEXT], 64, 63, "fills no window of 64"),
    ],
)
def test_what_gives_no_window_is_refused(texts, window, tokens, said):
    with pytest.raises(EdgeError, match=said):
        cut(texts, window, tokens)


def test_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(EdgeError, match="the network knows 50"):
        cut([TEXT], 8, vocab=50)
