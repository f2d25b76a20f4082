"""A tokenizer rebuilt from GGUF metadata, against the one it was written from."""

import json

from mlx_lm.utils import load_tokenizer
from tokenizers import Tokenizer

from edge.convert.sources.find import DEMO_PATH
from edge.convert.sources.gguf import open_gguf
from edge.llama_cpp.session import LlamaSession
from tests.support.conversions import llama_tokens
from tests.support.foreign_gguf import rewritten, write_tiny


def rebuilt(path):
    return Tokenizer.from_str(open_gguf(path).tokenizer_files["tokenizer.json"].decode())


def test_the_rebuilt_tokenizer_is_the_one_the_file_was_made_from(demo_out, held_out_text):
    theirs = Tokenizer.from_file(str(DEMO_PATH / "tokenizer.json"))
    ours = rebuilt(demo_out / "gguf-f16.gguf")
    settings = json.loads(
        open_gguf(demo_out / "gguf-f16.gguf").tokenizer_files["tokenizer_config.json"]
    )
    assert settings["chat_template"] == load_tokenizer(DEMO_PATH).chat_template
    assert ours.get_vocab(True) == theirs.get_vocab(True)
    added, wanted = (tokenizer.get_added_tokens_decoder() for tokenizer in (ours, theirs))
    assert {i: str(token) for i, token in added.items()} == {i: str(t) for i, t in wanted.items()}
    for text in (
        *("", " \n\t  \r\n", "héllo wörld — ünïcode 日本語 🎉 e\u0301", held_out_text),
        "<fim_prefix>def f():<fim_suffix>\n    pass<fim_middle>",
        "<|im_start|>user\nhi<|im_end|>\na<|endoftext|>b<|padding|>",
        "<fim_nothing> <|im_start [PAD7] don't we'll I'm 1234567890",
    ):
        ids = theirs.encode(text).ids
        assert ours.encode(text).ids == ids
        for skip in (False, True):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip)


def test_padding_is_left_out_and_user_defined_tokens_are_not_special(tmp_path):
    data = json.loads(open_gguf(write_tiny(tmp_path / "x.gguf")).tokenizer_files["tokenizer.json"])
    assert [t["id"] for t in data["added_tokens"]] == [0, 4, 5, 6, 7, 9]
    assert [t["id"] for t in data["added_tokens"] if not t["special"]] == [7]
    # 11 is user defined, as old converters wrote.
    assert not {"[PAD10]", "[PAD11]"} & data["model"]["vocab"].keys()


def test_the_way_of_stablelm_2_is_that_of_llama_cpp(demo_out, tmp_path, held_out_text):
    path = rewritten(demo_out / "gguf-f16.gguf", tmp_path / "x.gguf", pre="stablelm2")
    ours, session = rebuilt(path), LlamaSession(path, 64, 1)
    for text in (held_out_text, "I'M 12345 we'Ll\r\n\n x=  y\t\tz", "a.b!!\n\n  c"):
        ids = llama_tokens(session, text)
        assert ours.encode(text).ids == ids
        assert ours.decode(ids) == text
    session.close()


def test_an_unnamed_way_is_guessed_from_the_number_of_tokens(tmp_path):
    opened = open_gguf(write_tiny(tmp_path / "x.gguf", {"tokenizer.ggml.pre": None}))
    assert "GPT-NeoX's way" in opened.warnings[-1]
    split = json.loads(opened.tokenizer_files["tokenizer.json"])["pre_tokenizer"]
    assert (split["type"], split["use_regex"], split["add_prefix_space"]) == ("ByteLevel", 1, 0)
    many = {"tokenizer.ggml.tokens": ["a", "b", "ab", *(f"t{i}" for i in range(79_997))]}
    many |= {"tokenizer.ggml.token_type": [1] * 80_000, "tokenizer.ggml.pre": "default"}
    shapes = {name: (80_000, 64) for name in ("token_embd.weight", "output.weight")}
    opened = open_gguf(write_tiny(tmp_path / "y.gguf", many, shapes))
    assert "StableLM 2's way" in opened.warnings[-1]
