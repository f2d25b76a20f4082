# ruff: noqa: RUF001
"""llama.cpp's tokens of our GGUF files against the tokenizers package's, over many kinds of text.

With the demo's tokenizer, with a GPT-NeoX-like one made of it, and with the real GPT-NeoX
tokenizer where EDGE_GPT_NEOX_TOKENIZER names its tokenizer.json.
"""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from edge.convert.artefacts.gguf_tokenizer import read_tokenizer
from edge.convert.artefacts.recipes import RECIPES
from edge.convert.checkpoint import open_checkpoint
from edge.convert.convert import convert
from edge.convert.sources.find import DEMO_PATH
from edge.errors import EdgeError
from edge.llama_cpp.session import LlamaSession
from edge.model.config import ModelConfig
from tests.support.tiny import PLAIN, random_tensors

GPT_NEOX = os.environ.get("EDGE_GPT_NEOX_TOKENIZER")
DEMO_TOKENIZER = DEMO_PATH / "tokenizer.json"
SPACE_RUNS = range(2, 25)  # GPT-NeoX has a token for each

CODE = {
    "python": 'def f(a, *b):\n    """Doc."""\n    if a >= 0x1F:\n\t\treturn {k: v for k, v in b}\n',
    "c": '#include <stdio.h>\nint main(void) {\n\tprintf("%5.2f\\n", 3.14e-10f);\n}\n',
    "javascript": "const f = async (x) => `${x ?? 'none'}`;  // don't\nlet a=[...b,];\n",
    "rust": "impl<'a, T: Copy> Iter<'a, T> { fn next(&mut self) -> Option<&'a T> { None } }\n",
    "go": 'func (s *Set) Add(k string) error {\n\tif k == "" {\n\t\treturn err\n\t}\n}\n',
    "java": "@Override public List<? extends Map.Entry<K,V>> get() { return null; }\r\n",
    "sql": "SELECT a.*, COUNT(*) FROM t AS a WHERE b <> 'it''s' -- comment\nGROUP BY 1;\n",
    "html": '<!DOCTYPE html>\n<a href="https://x.org/?q=1&amp;r=%20">\u00a0link</a>\n',
    "shell": "for f in *.txt; do echo \"${f%.txt}\" | sed -e 's/a/b/g' >>/dev/null; done\n",
    "haskell": "main = mapM_ print $ zipWith3 (\\a b c -> a <> b <> c) xs ys zs\n",
}
UNICODE = {
    "chinese": "代码补全模型：你好，世界！",
    "japanese": "これはテストです。ｶﾀｶﾅ　全角",
    "korean": "안녕하세요 세계",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ 1️⃣",
    "hebrew": "שלום עולם (abc) ״",
    "arabic": "مرحبا بالعالم ١٢٣ \u200f",
    "hindi": "नमस्ते दुनिया क्षत्रिय",
    "vietnamese": "Tiếng Việt rất đẹp",
    "stacked marks": "x\u0323\u0302 q\u0307\u0323 a\u20d7",
    "mathematics": "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ ½ ² 𝔘𝔫𝔦",
    "controls": "a\x01b\x1f\x7f\u0085\u200b\ufeffc\u2028d",
    "odd spaces": "a\u00a0b\u2003c\u3000d \u00a0 e\u202f",
    "highest": "\U0010ffff\ufffd\uffff",
}
WHITESPACE = {
    "crlf": "a\r\n\r\n  b\r\nc\r",
    "tabs and spaces": "\t  \t x \t\n \t\n\t\t\ty",
    "trailing": "a = 1   \nb = 2\t\nc   ",
    "only newlines": "\n\n\n\n\n",
    "vertical": "a\vb\fc \v d",
}
NUMBERS = {
    "numbers": "0 12 123 1234 12345 1234567890 1_000_000 3.14159 1e-9 0xFF 0b10 007",
    "other digits": "٣٤ ४५ ²³ ½ Ⅷ ①",
}
SPECIAL = {
    "fim": "<fim_prefix>def f():<fim_suffix>\n    pass<fim_middle>",
    "chatml": "<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n",
    "end": "a<|endoftext|>b<|endoftext|><|endoftext|>\n",
    "padding": "<|padding|> x",
    "almost": "<|endoftext| > <fim_prefi <|im_start",
    "between spaces": "    <|endoftext|>    <fim_prefix>  x",
    "repository": "<reponame>a/b<filename>c.py<gh_stars>0",
}
SPACES = {
    **{f"{n} spaces": " " * n for n in range(1, 41)},
    **{f"{n} spaces and a word": " " * n + "x" for n in range(1, 41)},
    **{f"a line after {n} spaces": "if a:\n" + " " * n + "b = 1" for n in range(1, 41)},
    **{f"{n} trailing": "x" + " " * n for n in range(1, 41)},
    **{f"{n} tabs": "\t" * n + "x" for n in (1, 2, 3, 4, 8, 16)},
}
TEXTS = {**CODE, **UNICODE, **WHITESPACE, **NUMBERS, **SPECIAL, **SPACES, "nothing": ""}
DECOMPOSED = ["cafe\u0301", "\u1112\u1161\u11ab", "A\u030a \u212b", "o\u0323\u0302"]
# Any text but lone surrogates, which UTF-8 cannot hold, and NUL, where a C string ends.
ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
CODE_LIKE = st.text(st.sampled_from(" \t\n\r  ab_(){}=<|>'\"0129.é字"), max_size=60)


class Pair:
    """llama.cpp with a network of one tiny block, and the tokenizers package, on one tokenizer."""

    def __init__(self, folder: Path, tokenizer: dict):
        ids = [*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])]
        raw = {**PLAIN, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
        raw |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": max(ids) + 3}
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(raw))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        (folder / "tokenizer_config.json").write_text("{}")
        save_file(random_tensors(ModelConfig.from_dict(raw)), folder / "model.safetensors")
        convert(
            open_checkpoint(str(folder)), [RECIPES["gguf-f16"]], folder / "out", lambda *_: None
        )
        self.session = LlamaSession(folder / "out" / "gguf-f16.gguf", 64, 1)
        self.reference = Tokenizer.from_str(json.dumps(tokenizer))

    def __call__(self, text: str) -> tuple[list[int], list[int]]:
        return self.session.tokenize(text), self.reference.encode(text).ids


def neox_like(demo: dict) -> dict:
    """The demo's tokenizer with what sets GPT-NeoX's apart: NFC, and tokens for runs of spaces."""
    runs = [
        {
            "id": 4096 + i,
            "content": " " * length,
            "special": False,
            "normalized": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
        }
        for i, length in enumerate(reversed(SPACE_RUNS))
    ]
    added = [*demo["added_tokens"], *runs]
    return {**demo, "normalizer": {"type": "NFC"}, "added_tokens": added}


@pytest.fixture(scope="module", params=["demo", "neox-like", *(["gpt-neox"] if GPT_NEOX else [])])
def pair(request, tmp_path_factory):
    file = Path(GPT_NEOX) if request.param == "gpt-neox" else DEMO_TOKENIZER
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    if request.param == "neox-like":
        tokenizer = neox_like(tokenizer)
    pair = Pair(tmp_path_factory.mktemp("tokens") / request.param, tokenizer)
    yield pair
    pair.session.close()


@pytest.mark.skipif(not GPT_NEOX, reason="EDGE_GPT_NEOX_TOKENIZER names no tokenizer.json")
def test_the_real_tokenizer_is_among_them():
    """So that a run without it says so, once."""
    assert "Ġthe" in json.loads(Path(GPT_NEOX).read_text(encoding="utf-8"))["model"]["vocab"]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_kind_of_text_gives_the_same_ids(pair, text):
    ours, reference = pair(unicodedata.normalize("NFC", text))
    assert ours == reference


def test_a_whole_file_gives_the_same_ids(pair, held_out_text):
    ours, reference = pair(held_out_text)
    assert ours == reference


@settings(max_examples=400)
@given(ANY_TEXT | CODE_LIKE)
def test_any_composed_text_gives_the_same_ids(pair, text):
    ours, reference = pair(unicodedata.normalize("NFC", text))
    assert ours == reference


@pytest.mark.parametrize("text", DECOMPOSED)
def test_llama_cpp_does_not_compose_characters(pair, text):
    """A limit of llama.cpp, whose BPE has no normaliser: compose the text before it."""
    ours, reference = pair(text)
    composes = json.loads(pair.reference.to_str())["normalizer"] is not None
    assert (ours != reference) == composes
    composed, reference = pair(unicodedata.normalize("NFC", text))
    assert composed == reference


def test_runs_of_spaces_have_tokens_of_their_own(pair):
    has_them = json.loads(pair.reference.to_str())["normalizer"] is not None  # all but the demo's
    lengths = [len(pair.session.tokenize(" " * length)) for length in SPACE_RUNS]
    assert (set(lengths) == {1}) == has_them


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
    ],
    ids=["nfkc", "lowercase", "prefix space"],
)
def test_what_llama_cpp_would_tokenise_otherwise_is_refused(change):
    tokenizer = json.loads(DEMO_TOKENIZER.read_text(encoding="utf-8"))
    with pytest.raises(EdgeError, match="convert to MLX instead"):
        read_tokenizer({"tokenizer.json": json.dumps({**tokenizer, **change}).encode()}, 4096)
