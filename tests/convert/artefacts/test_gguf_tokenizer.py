# ruff: noqa: RUF001
"""llama.cpp's tokens of our GGUF files against the tokenizers package's, over many kinds of text.

With the demo's tokenizer and others made of it, with a SentencePiece one, and with the real
GPT-NeoX tokenizer where EDGE_GPT_NEOX_TOKENIZER names its tokenizer.json. Then the tokenizer that
is read back from the file.
"""

import json
import os
import unicodedata
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edge.convert.artefacts.gguf_tokenizer import CONTROL, UNUSED, read_tokenizer
from edge.convert.sources.gguf import open_gguf
from edge.errors import EdgeError
from edge.formats.files import DEMO_PATH
from edge.llama_cpp.session import LlamaSession
from edge.llama_cpp.vocabulary import Vocabulary
from edge.tokenizer.splitting import pre_tokenizer
from tests.support.conversions import make
from tests.support.sentencepiece import sentencepiece
from tests.support.tiny import PLAIN, write_checkpoint

GPT_NEOX = os.environ.get("EDGE_GPT_NEOX_TOKENIZER")
DEMO_TOKENIZER = DEMO_PATH / "tokenizer.json"
SPACE_RUNS = range(2, 25)  # GPT-NeoX has a token for each

TEXTS = (
    'def f(a, *b):\n    """Doc."""\n    if a >= 0x1F:\n\t\treturn {k: v for k, v in b}\n',
    "代码补全模型：你好，世界！",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ 1️⃣",
    "x\u0323\u0302 q\u0307\u0323 a\u20d7 cafe\u0301 \u1112\u1161\u11ab A\u030a \u212b",
    "a\u00a0b\u2003c\u3000d \u00a0 e\u202f \U0010ffff\ufffd\uffff",
    "0 12 123 1234 12345 1234567890 1_000_000 3.14159 1e-9 0xFF 0b10 007 don't we'll I'm",
    "<fim_prefix>def f():<fim_suffix>\n    pass<fim_middle>",
    "<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n",
    "    <|endoftext|>    <fim_prefix>  x",
    "",
)
# Any text but lone surrogates, which UTF-8 cannot hold, and NUL, where a C string ends.
ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
CODE_LIKE = st.text(st.sampled_from(" \t\n\r  ab_(){}=<|>'\"0129.é字"), max_size=60)


def neox_like(demo: dict) -> dict:
    """The demo's tokenizer with what sets GPT-NeoX's apart: NFC, and tokens for runs of spaces."""
    settings = {"special": False, "normalized": True}
    settings |= {"single_word": False, "lstrip": False, "rstrip": False}
    runs = [
        {"id": 4096 + i, "content": " " * length, **settings}
        for i, length in enumerate(reversed(SPACE_RUNS))
    ]
    added = [*demo["added_tokens"], *runs]
    return {**demo, "normalizer": {"type": "NFC"}, "added_tokens": added}


MADE = {
    "demo": lambda demo: demo,
    "neox-like": neox_like,
    **{
        name: lambda demo, name=name: {**demo, "pre_tokenizer": pre_tokenizer(name)}
        for name in ("smollm", "stablelm2", "llama-bpe", "deepseek-coder")
    },
    "sentencepiece": lambda _: sentencepiece(),
}


@pytest.fixture(scope="module", params=[*MADE, *(["gpt-neox"] if GPT_NEOX else [])])
def pair(request, tmp_path_factory):
    """llama.cpp with a network of one tiny block, and the tokenizers package, on one tokenizer."""
    file = Path(GPT_NEOX) if request.param == "gpt-neox" else DEMO_TOKENIZER
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    if request.param in MADE:
        tokenizer = MADE[request.param](tokenizer)
    ids = [*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])]
    raw = {**PLAIN, "num_hidden_layers": 1, "vocab_size": max(ids) + 3}
    folder = write_checkpoint(tmp_path_factory.mktemp("tokens") / request.param, raw)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (made,) = make(folder, folder / "out", "gguf-f16")
    back = open_gguf(made.path).tokenizer_files["tokenizer.json"].decode()
    with closing(LlamaSession(made.path, 64, 1)) as session:
        texts = (json.dumps(tokenizer), back)
        yield Vocabulary(session), *map(Tokenizer.from_str, texts)


def ids_of(pair, text):
    vocabulary, tokenizer, back = pair
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if str(tokenizer.normalizer) != "NFC()":  # which GGUF does not record
        assert back.encode(text, add_special_tokens=False).ids == ids
    for skip in (False, True):
        wanted = tokenizer.decode(ids, skip)
        assert back.decode(ids, skip) == vocabulary.decode(ids, skip) == wanted
    return vocabulary.encode(text, add_special_tokens=False).ids, ids


def test_every_kind_of_text_gives_the_same_ids(pair, held_out_text):
    spaces = [" " * n for n in range(1, 41)]
    texts = [held_out_text, *TEXTS, *spaces, *("\t" * n + "x" for n in (1, 2, 3, 4, 8, 16))]
    texts += [form.format(s) for form in ("{}x", "if a:\n{}b = 1", "x{}") for s in spaces]
    for text in texts:
        ours, reference = ids_of(pair, unicodedata.normalize("NFC", text))
        assert ours == reference, text


@settings(max_examples=100)
@given(ANY_TEXT | CODE_LIKE)
def test_any_composed_text_gives_the_same_ids(pair, text):
    ours, reference = ids_of(pair, unicodedata.normalize("NFC", text))
    assert ours == reference


def test_llama_cpp_does_not_compose_characters(pair):
    for text in ("cafe\u0301", "\u1112\u1161\u11ab", "A\u030a \u212b", "o\u0323\u0302"):
        ours, reference = ids_of(pair, text)
        assert (ours != reference) == (str(pair[1].normalizer) == "NFC()")


def test_rows_the_tokenizer_lacks_are_unused():
    tokenizer = read_tokenizer({"tokenizer.json": DEMO_TOKENIZER.read_bytes()}, 4100)
    assert len(tokenizer.tokens) == len(tokenizer.types) == 4100
    assert CONTROL in tokenizer.types
    assert (tokenizer.tokens[4099], tokenizer.types[4099]) == ("[PAD4099]", UNUSED)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram tokenizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits text"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "splits text"),
        ({"normalizer": {"type": "NFKC"}}, "normalises text"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}}, "Lowercase"),
        ({"pre_tokenizer": None}, "is not a tokenizer"),
    ],
)
def test_a_tokenizer_that_cannot_be_expressed(change, words):
    tokenizer = json.loads(DEMO_TOKENIZER.read_text(encoding="utf-8"))
    with pytest.raises(EdgeError, match=words):
        read_tokenizer({"tokenizer.json": json.dumps({**tokenizer, **change}).encode()}, 4096)
