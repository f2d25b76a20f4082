"""The joined stream is the tokenizer's own decode of all ids, at every moment a part of it.

With the demo's tokenizer, with one made of it that has awkward added tokens, with SentencePiece
kinds, and with the real GPT-NeoX tokenizer where EDGE_GPT_NEOX_TOKENIZER names its tokenizer.json.
"""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import edge
from edge.convert.sources.find import DEMO_PATH
from edge.tokenizer.detokenizer import StreamingDetokenizer

GPT_NEOX = os.environ.get("EDGE_GPT_NEOX_TOKENIZER")
REPLACEMENT_CHARACTER = "\ufffd"
UTF8_EDGES = bytes.fromhex("00 41 7f 80 8f 90 9f a0 bf c1 c2 df e0 e1 ed ef f0 f1 f4 f5 ff")

TEXTS = {
    "indented": "    return x",
    "one space": " x",
    "spaces only": "     ",
    "tabs": "\tif x:\n\t\treturn\t1\n",
    "crlf": "a = 1\r\n\r\n  b = 2\r\n\r",
    "space before punctuation": "a , b . c ! don 't n't",
    "accents": "naïve café, Ärger, e\u0301",
    "chinese": "你好、世界。変数 = 値",
    "emoji": "👩‍👩‍👧‍👦 🇩🇪 👍🏽 x😀y",
    "right to left": "שלום עולم\u200f",
    "controls": "\x00\x01\x1b[0m\x7f\u0085\u00ad\ufeff",
    "replacement": "a\ufffdb\ufffd",
    "special tokens": "<|im_start|>user\n  hi<|im_end|>\n<fim_prefix>",
    "marks": "a▁b Ġc <0x0A> <0x+A>",
    "nothing": "",
}


def decode(tokenizer, ids) -> str:
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def stream(tokenizer, ids) -> str:
    detokenizer = StreamingDetokenizer(tokenizer)
    return "".join([*map(detokenizer.add, ids), detokenizer.finish()])


def check_every_prefix(tokenizer, ids, held_back) -> None:
    """`held_back(text, ids)`: whether that much text may be withheld after these ids."""
    detokenizer = StreamingDetokenizer(tokenizer)
    emitted = ""
    for end in range(1, len(ids) + 1):
        emitted += detokenizer.add(ids[end - 1])
        whole = decode(tokenizer, ids[:end])
        assert whole.startswith(emitted)
        assert held_back(whole[len(emitted) :], ids[:end])
    assert emitted + detokenizer.finish() == decode(tokenizer, ids)
    assert detokenizer.finish() == ""


def one_character(text, ids) -> bool:
    """Nothing or an unfinished character; Python waits for a surrogate's third byte as well."""
    return text in ("", REPLACEMENT_CHARACTER, REPLACEMENT_CHARACTER * 2)


# --- byte-level BPE


def with_awkward_tokens() -> PreTrainedTokenizerFast:
    """The demo's, with runs of spaces as GPT-NeoX's and words that are in no byte's alphabet."""
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


def ids_of_bytes(tokenizer, data: bytes) -> list[int]:
    """One id per byte, whatever the bytes are; GPT-NeoX has none for bytes no UTF-8 has."""
    alphabet = {**{byte: chr(byte) for byte in [*range(33, 127), *range(161, 173)]}}
    alphabet |= {byte: chr(byte) for byte in range(174, 256)}
    others = [byte for byte in range(256) if byte not in alphabet]
    alphabet |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    ids = tokenizer.convert_tokens_to_ids([alphabet[byte] for byte in data])
    return [id_ for id_ in ids if id_ is not None]


@pytest.mark.skipif(not GPT_NEOX, reason="EDGE_GPT_NEOX_TOKENIZER names no tokenizer.json")
def test_the_real_tokenizer_is_among_them():
    """So that a run without it says so, once."""
    backend = Tokenizer.from_file(GPT_NEOX)
    assert backend.id_to_token(50276) == "  "
    assert backend.token_to_id("Ġthe") is not None


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_kind_of_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert stream(tokenizer, ids) == decode(tokenizer, ids)
    check_every_prefix(tokenizer, ids, one_character)


def test_the_first_spaces_are_kept(tokenizer):
    ids = tokenizer.encode("    return x", add_special_tokens=False)
    assert stream(tokenizer, ids) == "    return x"


@given(data=st.data())
def test_random_ids_stream_as_they_decode(tokenizer, data):
    """Special tokens, lone bytes and rows beyond the tokenizer among them."""
    size = len(tokenizer)
    lone = ids_of_bytes(tokenizer, UTF8_EDGES)
    an_id = st.one_of(
        st.sampled_from(lone),
        st.integers(0, size - 1),
        st.integers(size - 60, size + 60),
        st.just(2**32 - 1),
        st.sampled_from(tokenizer.all_special_ids or lone),
    )
    check_every_prefix(tokenizer, data.draw(st.lists(an_id, max_size=40)), one_character)


@given(text=st.text())
def test_any_unicode_byte_by_byte(tokenizer, text):
    ids = ids_of_bytes(tokenizer, text.encode())
    assert stream(tokenizer, ids) == text
    check_every_prefix(tokenizer, ids, one_character)


@example(b"\xed\xa0\x80 \xed\xa0")
@given(data=st.lists(st.sampled_from(UTF8_EDGES), max_size=12).map(bytes))
def test_invalid_bytes_are_replaced_as_decode_replaces_them(tokenizer, data):
    check_every_prefix(tokenizer, ids_of_bytes(tokenizer, data), one_character)


def test_code_comes_back_whole(tokenizer, held_out_text):
    sources = sorted(Path(edge.__file__).parent.rglob("*.py"))
    assert len(sources) > 20
    for text in [held_out_text, *(file.read_bytes().decode() for file in sources)]:
        for variant in (text, text.replace("\n", "\r\n"), text.replace("    ", "\t")):
            ids = tokenizer.encode(variant, add_special_tokens=False)
            assert stream(tokenizer, ids) == decode(tokenizer, ids)


def test_a_special_token_breaks_a_character(tokenizer):
    first, *rest = ids_of_bytes(tokenizer, "😀".encode())
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    detokenizer = StreamingDetokenizer(tokenizer)
    assert detokenizer.add(first) == ""
    assert detokenizer.add(end) == "\ufffd<|endoftext|>"
    assert "".join(map(detokenizer.add, rest)) == "\ufffd" * 3


def test_a_padding_row_does_not_break_a_character(tokenizer):
    first, *rest = ids_of_bytes(tokenizer, "😀".encode())
    beyond = len(tokenizer) + 1000
    detokenizer = StreamingDetokenizer(tokenizer)
    assert [detokenizer.add(id_) for id_ in (first, beyond, *rest)] == ["", "", "", "", "😀"]


def test_an_unfinished_character_comes_last(tokenizer):
    detokenizer = StreamingDetokenizer(tokenizer)
    for id_ in ids_of_bytes(tokenizer, "😀".encode()[:3]):
        assert detokenizer.add(id_) == ""
    assert detokenizer.finish() == REPLACEMENT_CHARACTER


@pytest.mark.parametrize("bad", [-1, 2**32])
def test_no_id_at_all_is_refused_as_decode_refuses_it(tokenizer, bad):
    with pytest.raises(OverflowError):
        decode(tokenizer, [bad])
    with pytest.raises(OverflowError):
        StreamingDetokenizer(tokenizer).add(bad)


# --- SentencePiece and others

WORDS = ["▁", "▁▁", "▁▁▁▁", "a", "b", "▁a", "▁return", "é", "世", "\n", ",", " ", "+A>", "<0x"]
A, SPACE = (259 + WORDS.index(word) for word in ("a", " "))
VOCABULARY = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
SPACES = decoders.Replace("▁", " ")
FALLBACK, FUSE = decoders.ByteFallback(), decoders.Fuse()
LLAMA = [SPACES, FALLBACK, FUSE, decoders.Strip(" ", 1, 0)]
STREAMED = {
    "llama": decoders.Sequence(LLAMA),
    "gemma": decoders.Sequence([SPACES, FALLBACK, FUSE]),
    "nested": decoders.Sequence([decoders.Sequence(LLAMA[:2]), decoders.Sequence(LLAMA[2:])]),
    "strips three": decoders.Sequence([SPACES, FALLBACK, FUSE, decoders.Strip(" ", 3, 0)]),
}
LATE = {
    "no decoder": None,
    "strips tokens": decoders.Sequence([SPACES, decoders.Strip(" ", 1, 0), FALLBACK]),
    "metaspace": decoders.Metaspace("▁", "always"),
    "bytes, strip": decoders.Sequence([decoders.ByteLevel(), decoders.Strip("a", 2, 0)]),
    "word piece": decoders.WordPiece(),
    "bpe": decoders.BPEDecoder(),
    "ctc": decoders.CTC(),
    "strips the end": decoders.Sequence([*LLAMA[:3], decoders.Strip(" ", 0, 1)]),
    "replaces across tokens": decoders.Sequence([FUSE, decoders.Replace("ab", "c")]),
}


def sentencepiece(decoder) -> PreTrainedTokenizerFast:
    """A small SentencePiece-like BPE with byte tokens; no word is ever merged."""
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


def byte_run(text, ids) -> bool:
    """Nothing, unless the last known id is a byte token or could be in a character."""
    byte_tokens = {*range(3, 259), len(VOCABULARY)}
    known = [id_ for id_ in ids if id_ < len(VOCABULARY) + 3]
    return one_character(text, ids) or known[-1] in byte_tokens


SENTENCEPIECE_IDS = st.lists(
    st.one_of(
        st.integers(0, len(VOCABULARY) + 10),
        st.integers(259, len(VOCABULARY) + 2),
        st.sampled_from([3 + byte for byte in "é世😀".encode()]),
    ),
    max_size=30,
)


@pytest.fixture(scope="module", params=STREAMED)
def streamed(request):
    return sentencepiece(STREAMED[request.param])


@example(ids=[3 + 0x20])  # a run that ends the stream and is stripped
@given(ids=SENTENCEPIECE_IDS)
def test_sentencepiece_ids_stream_as_they_decode(streamed, ids):
    check_every_prefix(streamed, ids, byte_run)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_sentencepiece_text_streams_as_it_decodes(streamed, text):
    check_every_prefix(streamed, streamed.encode(text, add_special_tokens=False), byte_run)


@given(text=st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"])))
def test_llamas_text_comes_back(text):
    tokenizer = LLAMA_TOKENIZER
    assert stream(tokenizer, tokenizer.encode(text, add_special_tokens=False)) == text


LLAMA_TOKENIZER = sentencepiece(STREAMED["llama"])


def test_a_byte_run_waits_for_its_end():
    """Since one bad byte turns the whole run into replacement characters."""
    you, bad = [3 + byte for byte in "世".encode()], 3 + 0xFF
    good = StreamingDetokenizer(LLAMA_TOKENIZER)
    assert [good.add(id_) for id_ in [*you, A]] == ["", "", "", "世a"]
    spoilt = StreamingDetokenizer(LLAMA_TOKENIZER)
    assert [spoilt.add(id_) for id_ in [*you, bad, A]] == ["", "", "", "", "\ufffd" * 4 + "a"]


@pytest.mark.parametrize("name", LATE)
@given(ids=SENTENCEPIECE_IDS)
def test_a_decoder_that_cannot_stream_gives_its_text_at_the_end(name, ids):
    tokenizer = LATE_TOKENIZERS[name]
    ids = [A, *ids, SPACE]  # the tokenizers package panics where there is nothing to strip
    detokenizer = StreamingDetokenizer(tokenizer)
    assert {detokenizer.add(id_) for id_ in ids} <= {""}
    assert detokenizer.finish() == decode(tokenizer, ids)


LATE_TOKENIZERS = {name: sentencepiece(decoder) for name, decoder in LATE.items()}


# --- linear time


def work(detokenizer, ids) -> int:
    """Calls made, plus the length of all text, bytes and lists that they had in hand."""
    total = 0

    def count(frame, event, _):
        nonlocal total
        total += 1
        if event == "return":
            values = [*frame.f_locals.values()]
            values += getattr(frame.f_locals.get("self"), "__dict__", {}).values()
            total += sum(len(v) for v in values if isinstance(v, str | bytes | bytearray | list))

    sys.setprofile(count)
    try:
        for id_ in ids:
            detokenizer.add(id_)
    finally:
        sys.setprofile(None)
    return total


@pytest.mark.parametrize("kind", ["demo", "llama"])
def test_the_work_per_token_does_not_grow(kind):
    """Not even within a long line, where decoding the line again would be quadratic."""
    tokenizer = BYTE_LEVEL["demo"]() if kind == "demo" else LLAMA_TOKENIZER
    ids = tokenizer.encode("naïve = '世界' + a ", add_special_tokens=False)
    detokenizer = StreamingDetokenizer(tokenizer)
    work(detokenizer, ids)
    assert len({work(detokenizer, ids) for _ in range(200)}) == 1
