"""The tokenizer against transformers', for several kinds of directories."""

import json
import os
from pathlib import Path

import mlx_lm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer

import edge
from edge.errors import EdgeError
from edge.formats.files import DEMO_PATH
from edge.tokenizer.tokenizer import Tokenizer
from tests.support.sentencepiece import sentencepiece

GPT_NEOX = os.environ.get("EDGE_GPT_NEOX_TOKENIZER")
TEXTS = [
    "",
    "def f(x):\n    return x + 1\n",
    "\tif a:\r\n\t\tb  =  c",
    "a<|endoftext|>b<fim_middle> <|im_end|>\n",
    "  é ü 漢字 😀 \u200b\u2028 e\u0301",
    "x" * 300 + " " * 40,
    "<s>[INST] ab <0x0A>[/INST] a</s>",
    "<|late|> def <|new|>",
]


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def demo_with(config, names=None, source=DEMO_PATH / "tokenizer.json"):
    """A function that writes the demo's tokenizer, or another, with other configs."""

    def make(folder):
        (folder / "tokenizer.json").write_bytes(Path(source).read_bytes())
        write(folder, "tokenizer_config.json", config)
        write(folder, "config.json", {"model_type": "stablelm", "eos_token_id": 0})
        if names is not None:
            write(folder, "special_tokens_map.json", names)

    return make


def metaspace(**config):
    """A function that writes a tokenizer like Llama 2's: SentencePiece, byte fallback, BOS."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

    def make(folder):
        write(folder, "tokenizer.json", sentencepiece("[INST]"))
        write(folder, "tokenizer_config.json", {**names, **config})
        write(folder, "config.json", {"model_type": "llama", "eos_token_id": 2})

    return make


END = "<|endoftext|>"
NAMED = {"bos_token": END, "eos_token": {"__type": "AddedToken", "content": END, "special": True}}
APART = {"bos_token": END, "eos_token": {"content": END, "lstrip": False}}
DEMO_CONFIG = json.loads((DEMO_PATH / "tokenizer_config.json").read_text(encoding="utf-8"))
LISTED = {
    "9000": {"content": "<|late|>", "special": True},
    "8999": {"content": "<|early|>", "special": False, "normalized": True},
    # Flags other than in tokenizer.json.
    "0": {"content": END, "special": True, "lstrip": True},
}
NEW = {"eos_token": "<|new|>", "additional_special_tokens": ["<|more|>", "def"]}
# As in a published StableLM.
NEOX = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
NEOX["tokenizer_class"] = "GPTNeoXTokenizer"
KINDS = {
    "demo": demo_with(DEMO_CONFIG),
    "objects": demo_with({**NAMED, "pad_token": "<|padding|>"}),
    "new-names": demo_with(NEW),
    "names-apart": demo_with({}, {**APART, "pad_token": "<|apart|>"}),
    "names-apart-are-old": demo_with({"added_tokens_decoder": LISTED}, APART),
    "llama-class": metaspace(tokenizer_class="LlamaTokenizer"),
    "code-llama": metaspace(tokenizer_class="CodeLlamaTokenizer"),
    "llama-as-it-is": metaspace(tokenizer_class="PreTrainedTokenizerFast"),
    **({"gpt-neox": demo_with(NEOX, source=GPT_NEOX)} if GPT_NEOX else {}),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """The tokenizers of edge and of transformers for one directory."""
    folder = tmp_path_factory.mktemp("tokenizer")
    KINDS[request.param](folder)
    return Tokenizer.load(folder), load_tokenizer(folder)


def check_text(ours, theirs, text):
    for special in (True, False):
        ids = ours.encode(text, add_special_tokens=special)
        assert ids == theirs.encode(text, add_special_tokens=special)
    check_ids(ours, theirs, ids)


def check_ids(ours, theirs, ids):
    for skip in (True, False):
        options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
        assert ours.decode(ids, **options) == theirs.decode(ids, **options)


def test_tokens_match_transformers(pair, held_out_text):
    ours, theirs = pair
    for text in [*TEXTS, held_out_text]:
        check_text(ours, theirs, text)
    for name in ("bos_token", "eos_token", "bos_token_id", "eos_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.get_vocab() == theirs.get_vocab() and len(ours) == len(theirs)
    assert ours.convert_tokens_to_ids("<|unknown|>") is None


@settings(max_examples=60)
@given(st.data())
def test_random_text_and_ids_match_transformers(pair, data):
    letters = st.characters(exclude_categories=["Cs"])
    added = pair[0].backend_tokenizer.get_added_tokens_decoder().values()
    # After <FILL_ME> transformers' Code Llama encodes all later texts differently.
    names = [token.content for token in added if token.content != "<FILL_ME>"]
    parts = data.draw(st.lists(st.text(letters, max_size=8) | st.sampled_from(names), max_size=6))
    check_text(*pair, "".join(parts))
    check_ids(*pair, data.draw(st.lists(st.integers(0, len(pair[0]) + 30), max_size=12)))


@pytest.mark.parametrize(
    ("network", "generation", "expected"),
    [
        ({"eos_token_id": 5}, {"eos_token_id": [7, 8]}, {0, 7, 8}),
        ({"eos_token_id": 5}, {"eos_token_id": None}, {0, 5}),
        ({"eos_token_id": "five"}, {}, {0}),
    ],
)
def test_eos_ids(network, generation, expected, tmp_path):
    demo_with(NAMED)(tmp_path)
    write(tmp_path, "config.json", network)
    write(tmp_path, "generation_config.json", generation)
    assert Tokenizer.load(tmp_path).eos_token_ids == expected
    assert Tokenizer.load(tmp_path, network).eos_token_ids == expected


def test_chat_template_jinja_overrides_the_config(tmp_path):
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    demo_with({**NAMED, "chat_template": several})(tmp_path)
    assert Tokenizer.load(tmp_path).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_bytes(b"J\r\nK")
    assert Tokenizer.load(tmp_path).chat_template == "J\nK"
    assert load_tokenizer(tmp_path).get_chat_template() == "J\nK"


def test_a_conversation_as_text_and_ids(demo_out, tmp_path):
    tokenizer = Tokenizer.load(demo_out / "mlx-fp16")
    with pytest.raises(EdgeError, match="half a surrogate pair"):
        tokenizer.encode("a\ud800")
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(messages, tokenize=True) == tokenizer.encode(text)
    assert tokenizer.apply_chat_template(messages, False) == text[: text.rindex("<|im_start|>")]
    demo_with({})(tmp_path)
    with pytest.raises(EdgeError, match="no chat template, so it cannot chat"):
        Tokenizer.load(tmp_path).apply_chat_template([])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", b"\xff\xfe", "the tokenizer cannot be read"),
        ("tokenizer_config.json", b"{", "cannot be read as JSON"),
        ("tokenizer_config.json", b'{"bos_token": {"lstrip": true}}', "a special token is {"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "cannot be read"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "the chat template is not text"),
        ("chat_template.jinja", b"\xff\xff", "cannot be read"),
        ("tokenizer.model", b"\x00\x01not a model", "the tokenizer cannot be read"),
    ],
)
def test_an_invalid_file_is_refused(name, content, words, tmp_path):
    demo_with({"tokenizer_class": "LlamaTokenizer"})(tmp_path)
    if name == "tokenizer.model":
        (tmp_path / "tokenizer.json").unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EdgeError, match=words) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
UNKNOWN = {"type": "Unigram", "vocab": [["x", 0.0]], "unk_id": None}
SPECIAL = {"SpecialToken": {"id": "none", "type_id": 0}}
TEMPLATE = {"type": "TemplateProcessing", "single": [SPECIAL], "pair": [], "special_tokens": {}}


@pytest.mark.parametrize(
    ("part", "value", "use"),
    [
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "encode the text"),
        ("pre_tokenizer", SPLIT, "encode the text"),
        ("post_processor", TEMPLATE, "encode the text"),
        ("model", UNKNOWN, "encode the text"),
        ("decoder", {"type": "Strip", "content": "a", "start": 0, "stop": 9}, "decode"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "be read"),
    ],
)
def test_a_panic_of_the_library_is_one_sentence(part, value, use, tmp_path, capfd):
    demo_with({})(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    write(tmp_path, "tokenizer.json", {**tokenizer, part: value})
    with pytest.raises(EdgeError, match=f"tokenizer cannot {use}") as error:
        found = Tokenizer.load(tmp_path)
        found.decode(found.encode("a" * 40 + "!"))
    assert "\n" not in str(error.value) and capfd.readouterr() == ("", "")


def test_mlx_lm_generates_with_it(demo_out):
    model, tokenizer = edge.load(demo_out / "mlx-fp16")
    prompt = "for key, value in d"
    text = mlx_lm.generate(model, tokenizer, prompt, max_tokens=8)
    assert text == edge.generate_text(model, tokenizer, prompt, max_tokens=8) != ""
