"""Streamed text is always a prefix of the tokenizer's own decode, and all of it at the end.

Set EDGE_GPT_NEOX_TOKENIZER to a tokenizer.json of GPT-NeoX to test it as well.
"""

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from edge.formats.files import DEMO_PATH
from edge.tokenizer.detokenizer import REPLACEMENT_CHARACTER, StreamingDetokenizer

GPT_NEOX = os.environ.get("EDGE_GPT_NEOX_TOKENIZER")
UTF8_EDGES = bytes.fromhex("00 41 7f 80 8f 90 9f a0 bf c1 c2 df e0 e1 ed ef f0 f1 f4 f5 ff")
TEXTS = [
    "     ",
    "a = 1\r\n\r\n  b = 2\r\n\r",
    "a , b . c ! don 't n't",
    "你好、世界。変数 = 値 👩‍👩‍👧‍👦 🇩🇪 👍🏽 x😀y",
    "שלום עולם\u200f\x00\x01\x1b[0m\x7f\u0085\u00ad\ufeff a\ufffdb\ufffd",
    "<|im_start|>user\n  hi<|im_end|>\n<fim_prefix>a▁b Ġc <0x0A> <0x+A>",
]


def decode(tokenizer, ids):
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def check_every_prefix(tokenizer, ids, may_wait):
    """`may_wait(text, ids)` is true if that text may be held back after these ids."""
    detokenizer, emitted = StreamingDetokenizer(tokenizer), ""
    for end in range(1, len(ids) + 1):
        emitted += detokenizer.add(ids[end - 1])
        whole = decode(tokenizer, ids[:end])
        assert whole.startswith(emitted)
        assert may_wait(whole[len(emitted) :], ids[:end])
    assert emitted + detokenizer.finish() == decode(tokenizer, ids)
    assert detokenizer.finish() == ""


def one_character(text, ids):
    """True for an incomplete character; Python also waits for a surrogate's third byte."""
    return text in ("", REPLACEMENT_CHARACTER, REPLACEMENT_CHARACTER * 2)


def with_awkward_tokens():
    """The demo's with GPT-NeoX's runs of spaces and words outside of the byte alphabet."""
    backend = Tokenizer.from_file(str(DEMO_PATH / "tokenizer.json"))
    backend.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    backend.add_tokens(["日本", "Ġword", "ééé", "ab\u00a0c", "\t\t", "\r\n"])
    backend.add_special_tokens(["ÃĤ", "«end»", "<▁ends▁>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


BYTE_LEVEL = {
    "demo": lambda: load_tokenizer(DEMO_PATH),
    "awkward": with_awkward_tokens,
    **({"gpt-neox": lambda: PreTrainedTokenizerFast(tokenizer_file=GPT_NEOX)} if GPT_NEOX else {}),
}


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def tokenizer(request):
    return BYTE_LEVEL[request.param]()


def ids_of_bytes(tokenizer, data):
    """One id per byte; GPT-NeoX has none for bytes that UTF-8 does not use."""
    alphabet = bytes_to_unicode()
    ids = tokenizer.convert_tokens_to_ids([alphabet[byte] for byte in data])
    return [id_ for id_ in ids if id_ is not None]


def test_text_streams_as_it_decodes(tokenizer):
    for text in TEXTS:
        check_every_prefix(
            tokenizer, tokenizer.encode(text, add_special_tokens=False), one_character
        )


@given(data=st.data())
def test_random_ids_stream_as_they_decode(tokenizer, data):
    """Special tokens, single bytes and ids beyond the vocabulary among them."""
    size, single = len(tokenizer), ids_of_bytes(tokenizer, UTF8_EDGES)
    some = st.sampled_from([*single, *tokenizer.all_special_ids, 2**32 - 1])
    an_id = some | st.integers(0, size - 1) | st.integers(size - 60, size + 60)
    check_every_prefix(tokenizer, data.draw(st.lists(an_id, max_size=40)), one_character)


@example(b"\xed\xa0\x80 \xed\xa0")
@given(st.text().map(str.encode) | st.lists(st.sampled_from(UTF8_EDGES), max_size=12).map(bytes))
def test_valid_and_invalid_utf8_streams_as_it_decodes(tokenizer, data):
    check_every_prefix(tokenizer, ids_of_bytes(tokenizer, data), one_character)


WORDS = ["▁", "▁▁", "▁▁▁▁", "a", "b", "▁a", "▁return", "é", "世", "\n", ",", " ", "+A>", "<0x"]
A, SPACE = (259 + WORDS.index(word) for word in ("a", " "))
VOCABULARY = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
LLAMA.append(decoders.Strip(" ", 1, 0))
STREAMED = {
    "llama": decoders.Sequence(LLAMA),
    "gemma": decoders.Sequence(LLAMA[:3]),
    "nested": decoders.Sequence([decoders.Sequence(LLAMA[:2]), decoders.Sequence(LLAMA[2:])]),
    "strips three": decoders.Sequence([*LLAMA[:3], decoders.Strip(" ", 3, 0)]),
}
LATE = {
    "no decoder": None,
    "metaspace": decoders.Metaspace("▁", "always"),
    "bytes, strip": decoders.Sequence([decoders.ByteLevel(), decoders.Strip("a", 2, 0)]),
    "strips the end": decoders.Sequence([*LLAMA[:3], decoders.Strip(" ", 0, 1)]),
}


def sentencepiece(decoder):
    """A small BPE tokenizer like SentencePiece's, with byte tokens and without merges."""
    ids = {token: place for place, token in enumerate(VOCABULARY)}
    backend = Tokenizer(models.BPE(ids, [], unk_token="<unk>", byte_fallback=True))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Split("\x00", "isolated")
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_tokens(["<0x+A>", " added", "▁too"])
    if decoder is not None:
        backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend)


LATE_TOKENIZERS = {name: sentencepiece(decoder) for name, decoder in LATE.items()}
SENTENCEPIECE_IDS = st.lists(
    st.integers(0, len(VOCABULARY) + 10)
    | st.integers(259, len(VOCABULARY) + 2)
    | st.sampled_from([3 + byte for byte in "é世😀".encode()]),
    max_size=30,
)


@pytest.fixture(scope="module", params=STREAMED)
def streamed(request):
    return sentencepiece(STREAMED[request.param])


def byte_run(text, ids):
    """True after a byte token, and for an incomplete character."""
    byte_tokens = {*range(3, 259), len(VOCABULARY)}
    known = [id_ for id_ in ids if id_ < len(VOCABULARY) + 3]
    return one_character(text, ids) or known[-1] in byte_tokens


@example(ids=[3 + 0x20])  # a run at the end that is stripped
@given(ids=SENTENCEPIECE_IDS)
def test_sentencepiece_ids_stream_as_they_decode(streamed, ids):
    check_every_prefix(streamed, ids, byte_run)


@pytest.mark.parametrize("name", LATE)
@given(ids=SENTENCEPIECE_IDS)
def test_other_decoders_return_their_text_at_the_end(name, ids):
    tokenizer = LATE_TOKENIZERS[name]
    ids = [A, *ids, SPACE]  # the tokenizers package panics if there is nothing to strip
    detokenizer = StreamingDetokenizer(tokenizer)
    assert {detokenizer.add(id_) for id_ in ids} <= {""}
    assert detokenizer.finish() == decode(tokenizer, ids)
