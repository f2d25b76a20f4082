"""Our GGUF tokenizer against the tokenizers package, through the real llama.cpp."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edge.convert.artefacts.gguf_tokenizer import CONTROL, UNUSED, read_tokenizer
from edge.convert.sources.companions import read_companions
from edge.convert.sources.find import DEMO_PATH
from edge.errors import EdgeError
from edge.llama_cpp.session import LlamaSession
from tests.support.tiny import PLAIN, write_checkpoint


@pytest.fixture(scope="module")
def session(demo_out):
    session = LlamaSession(demo_out / "gguf-q6_k.gguf", 64, 1)
    yield session
    session.close()


@pytest.fixture(scope="module")
def reference():
    return Tokenizer.from_file(str(DEMO_PATH / "tokenizer.json"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "    return x\n",
        "\t\tif a:\r\n\r\n  b  =  c",
        "héllo wörld — ünïcode 日本語 🎉",
        "x = 1234567890 + 0xFF",
        "don't we'll I'm",
        "<fim_prefix>def f():<fim_suffix>\n    pass<fim_middle>",
        "<|im_start|>user\nhi<|im_end|>\n",
        "a<|endoftext|>b",
        "<fim_nothing> <|im_start",
    ],
)
def test_llama_cpp_splits_text_as_the_tokenizer_does(session, reference, text):
    assert session.tokenize(text) == reference.encode(text).ids


def test_code_gives_the_same_ids(session, reference, held_out_text):
    assert session.tokenize(held_out_text) == reference.encode(held_out_text).ids


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="\0"), max_size=60))
def test_any_ascii_gives_the_same_ids(session, reference, text):
    assert session.tokenize(text) == reference.encode(text).ids


def test_rows_the_tokenizer_lacks_are_unused(tmp_path):
    path = write_checkpoint(tmp_path / "m", PLAIN)
    tokenizer = read_tokenizer(read_companions(path), 170)
    assert len(tokenizer.tokens) == len(tokenizer.types) == 170
    assert tokenizer.types[0] == CONTROL
    assert tokenizer.tokens[165] == "[PAD165]"
    assert tokenizer.types[165] == UNUSED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram tokenizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "convert to MLX instead"),
        ({"model": None}, "is not a tokenizer"),
        ({"pre_tokenizer": None}, "is not a tokenizer"),
    ],
)
def test_a_tokenizer_that_cannot_be_expressed_is_a_sentence(tmp_path, change, words):
    path = write_checkpoint(tmp_path / "m", PLAIN)
    data = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(EdgeError, match=words):
        read_tokenizer(read_companions(path), 160)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    path = write_checkpoint(tmp_path / "m", PLAIN)
    with pytest.raises(EdgeError, match="token id 159"):
        read_tokenizer(read_companions(path), 100)
