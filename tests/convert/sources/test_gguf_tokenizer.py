"""A tokenizer rebuilt from GGUF metadata against the one it was written from."""

import contextlib
import json

from mlx_lm.utils import load_tokenizer
from tokenizers import Tokenizer

from edge.convert.sources.gguf import open_gguf
from edge.formats.files import DEMO_PATH
from edge.llama_cpp.session import LlamaSession
from edge.llama_cpp.vocabulary import read_tokenizer
from tests.support.conversions import make
from tests.support.foreign_gguf import rewritten, write_tiny
from tests.support.sentencepiece import sentencepiece
from tests.support.tiny import PLAIN, write_checkpoint


def test_the_rebuilt_tokenizer_has_the_tokens_of_the_original(demo_out):
    theirs = Tokenizer.from_file(str(DEMO_PATH / "tokenizer.json"))
    files = open_gguf(demo_out / "gguf-f16.gguf").tokenizer_files
    ours = Tokenizer.from_str(files["tokenizer.json"].decode())
    template = json.loads(files["tokenizer_config.json"])["chat_template"]
    assert template == load_tokenizer(DEMO_PATH).chat_template
    assert ours.get_vocab(True) == theirs.get_vocab(True)
    added, wanted = (tokenizer.get_added_tokens_decoder() for tokenizer in (ours, theirs))
    assert {i: str(token) for i, token in added.items()} == {i: str(t) for i, t in wanted.items()}


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


def test_sentencepiece_without_ids_has_llama_cpps(tmp_path):
    raw = {**PLAIN, "num_hidden_layers": 1, "vocab_size": 1200}
    folder = write_checkpoint(tmp_path / "model", raw)
    (folder / "tokenizer.json").write_text(json.dumps(sentencepiece()))
    (made,) = make(folder, tmp_path, "gguf-f16")
    changes = {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.eos_token_id": 0xFFFFFFFF}
    path = rewritten(made.path, tmp_path / "x.gguf", changes)
    with contextlib.closing(LlamaSession(path, 64, 1)) as session:
        theirs = read_tokenizer(session)
    config = open_gguf(path).config
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))
    assert (theirs.bos_token_id, theirs.eos_token_ids) == (1, {2})
