"""A tokenizer rebuilt from GGUF metadata, against the one it was written from."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.convert.sources.find import DEMO_PATH
from edge.convert.sources.gguf import open_gguf
from edge.llama_cpp.session import LlamaSession
from tests.support.foreign_gguf import rewritten, write_tiny


def reference():
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(DEMO_PATH / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizers(demo_out):
    """The demo's own, and the one rebuilt from its GGUF file."""
    from tokenizers import Tokenizer

    files = open_gguf(demo_out / "gguf-f16.gguf").companions
    return reference(), Tokenizer.from_str(files["tokenizer.json"].decode())


def check_same(tokenizers, text):
    theirs, ours = tokenizers
    ids = theirs.encode(text).ids
    assert ours.encode(text).ids == ids
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
            ids, skip_special_tokens=skip
        )


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t  \r\n",
        "héllo wörld — ünïcode 日本語 🎉 e\u0301",
        "<fim_prefix>def f():<fim_suffix>\n    pass<fim_middle>",
        "<|im_start|>user\nhi<|im_end|>\na<|endoftext|>b<|padding|>",
        "<fim_nothing> <|im_start [PAD7]",
        "don't we'll I'm 1234567890",
    ],
)
def test_the_rebuilt_tokenizer_splits_as_the_original(tokenizers, text):
    check_same(tokenizers, text)


def test_the_rebuilt_tokenizer_reads_code_alike(tokenizers, held_out_text):
    check_same(tokenizers, held_out_text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_the_rebuilt_tokenizer_reads_any_text_alike(tokenizers, text):
    check_same(tokenizers, text)


def test_the_rebuilt_tokenizer_has_the_same_tokens(tokenizers):
    theirs, ours = tokenizers
    assert ours.get_vocab(True) == theirs.get_vocab(True)
    assert {i: (t.content, t.special) for i, t in ours.get_added_tokens_decoder().items()} == {
        i: (t.content, t.special) for i, t in theirs.get_added_tokens_decoder().items()
    }


def test_the_settings_come_back(demo_out):
    files = open_gguf(demo_out / "gguf-q6_k.gguf").companions
    assert files.keys() == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    for name in ("tokenizer_config.json", "generation_config.json"):
        assert json.loads(files[name]) == json.loads((DEMO_PATH / name).read_text())


def test_padding_is_left_out_and_user_defined_tokens_are_not_special(tmp_path):
    tiny = write_tiny(tmp_path / "tiny.gguf")
    data = json.loads(open_gguf(tiny).companions["tokenizer.json"])
    assert [t["id"] for t in data["added_tokens"]] == [0, 4, 5, 6, 7, 9]
    assert [t["id"] for t in data["added_tokens"] if not t["special"]] == [7]
    assert "[PAD10]" not in data["model"]["vocab"]
    assert "[PAD11]" not in data["model"]["vocab"]  # a user-defined one, as old converters wrote


def test_the_way_of_stablelm_2_is_that_of_llama_cpp(demo_out, tmp_path, held_out_text):
    from tokenizers import Tokenizer

    path = rewritten(demo_out / "gguf-f16.gguf", tmp_path / "x.gguf", pre="stablelm2")
    ours = Tokenizer.from_str(open_gguf(path).companions["tokenizer.json"].decode())
    session = LlamaSession(path, 64, 1)
    try:
        for text in (held_out_text, "I'M 12345 we'Ll\r\n\n x=  y\t\tz", "a.b!!\n\n  c"):
            ids = session.tokenize(text)
            assert ours.encode(text).ids == ids
            assert ours.decode(ids) == text
    finally:
        session.close()
    assert ours.encode("12345").ids != reference().encode("12345").ids


def test_a_file_that_does_not_say_how_it_splits_is_warned_about(tmp_path):
    opened = open_gguf(write_tiny(tmp_path / "x.gguf", {"tokenizer.ggml.pre": None}))
    assert "GPT-NeoX's way" in opened.warnings[-1]
    split = json.loads(opened.companions["tokenizer.json"])["pre_tokenizer"]
    assert split == {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    many = {"tokenizer.ggml.tokens": ["a", "b", "ab", *(f"t{i}" for i in range(89_997))]}
    many |= {"tokenizer.ggml.token_type": [1] * 90_000}
    shapes = {name: (90_000, 64) for name in ("token_embd.weight", "output.weight")}
    many |= {"tokenizer.ggml.pre": "default"}
    opened = open_gguf(write_tiny(tmp_path / "y.gguf", many, shapes))
    assert "StableLM 2's way" in opened.warnings[-1]


def test_a_wanted_beginning_token_is_warned_about(tmp_path):
    path = write_tiny(tmp_path / "x.gguf", {"tokenizer.ggml.add_bos_token": True})
    assert "<|endoftext|> before every text" in open_gguf(path).warnings[-1]
