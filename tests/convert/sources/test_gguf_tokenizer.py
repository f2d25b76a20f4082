"""A tokenizer rebuilt from GGUF metadata against the one it was written from."""

import contextlib
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


def test_the_rebuilt_tokenizer_has_the_tokens_of_the_original(demo_out):
    theirs = Tokenizer.from_file(str(DEMO_PATH / "tokenizer.json"))
    ours = rebuilt(demo_out / "gguf-f16.gguf")
    files = open_gguf(demo_out / "gguf-f16.gguf").tokenizer_files
    template = json.loads(files["tokenizer_config.json"])["chat_template"]
    assert template == load_tokenizer(DEMO_PATH).chat_template
    assert ours.get_vocab(True) == theirs.get_vocab(True)
    added, wanted = (tokenizer.get_added_tokens_decoder() for tokenizer in (ours, theirs))
    assert {i: str(token) for i, token in added.items()} == {i: str(t) for i, t in wanted.items()}


def test_stablelm_2_splits_text_as_llama_cpp_does(demo_out, tmp_path, held_out_text):
    changes = {"tokenizer.ggml.pre": "stablelm2"}
    path = rewritten(demo_out / "gguf-f16.gguf", tmp_path / "x.gguf", changes)
    ours = rebuilt(path)
    with contextlib.closing(LlamaSession(path, 64, 1)) as session:
        for text in (held_out_text, "I'M 12345 we'Ll\r\n\n x=  y\t\tz", "a.b!!\n\n  c"):
            ids = llama_tokens(session, text)
            assert ours.encode(text).ids == ids
            assert ours.decode(ids) == text


def test_padding_is_omitted_and_an_unnamed_pre_tokenizer_is_guessed(tmp_path):
    opened = open_gguf(write_tiny(tmp_path / "x.gguf", {"tokenizer.ggml.pre": None}))
    assert "that of GPT-NeoX" in opened.warnings[-1]
    data = json.loads(opened.tokenizer_files["tokenizer.json"])
    split = data["pre_tokenizer"]
    assert (split["type"], split["use_regex"], split["add_prefix_space"]) == ("ByteLevel", 1, 0)
    assert [t["id"] for t in data["added_tokens"]] == [0, 4, 5, 6, 7, 9]
    assert [t["id"] for t in data["added_tokens"] if not t["special"]] == [7]  # user defined
    assert not {"[PAD10]", "[PAD11]"} & data["model"]["vocab"].keys()
    many = {"tokenizer.ggml.tokens": ["a", "b", "ab", *(f"t{i}" for i in range(79_997))]}
    many |= {"tokenizer.ggml.token_type": [1] * 80_000, "tokenizer.ggml.pre": "default"}
    shapes = {name: (80_000, 64) for name in ("token_embd.weight", "output.weight")}
    opened = open_gguf(write_tiny(tmp_path / "y.gguf", many, shapes))
    assert "that of StableLM 2" in opened.warnings[-1]
