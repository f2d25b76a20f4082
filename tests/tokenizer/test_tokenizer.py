"""The light tokenizer against transformers' own, file by file and text by text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer
from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Backend

from edge.convert.sources.find import DEMO_PATH
from edge.errors import EdgeError
from edge.tokenizer.detokenizer import StreamingDetokenizer
from edge.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
GPT_NEOX = os.environ.get("EDGE_GPT_NEOX_TOKENIZER")
STABLELM = {"model_type": "stablelm", "eos_token_id": 0}
TEXTS = [
    "",
    " ",
    "def f(x):\n    return x + 1\n",
    "\tif a:\r\n\t\tb  =  c",
    "a<|endoftext|>b<fim_middle> <|im_end|>\n",
    "  é ü 漢字 😀 \u200b\u2028 e\u0301",
    "x" * 300 + " " * 40,
    "0.1e-5 != 'None' don't",
]


def neox(folder):
    """A directory as a published StableLM's: GPT-NeoX's class and the real tokenizer."""
    (folder / "tokenizer.json").write_bytes(Path(GPT_NEOX).read_bytes())
    named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    write(folder, "tokenizer_config.json", {**named, "tokenizer_class": "GPTNeoXTokenizer"})
    write(folder, "config.json", STABLELM)


def demo_with(folder, config, names=None, content=None):
    """The demo's tokenizer beside other configs."""
    content = content or json.loads((DEMO_PATH / "tokenizer.json").read_text(encoding="utf-8"))
    write(folder, "tokenizer.json", content)
    write(folder, "tokenizer_config.json", config)
    write(folder, "config.json", STABLELM)
    if names is not None:
        write(folder, "special_tokens_map.json", names)


def metaspace(folder, config):
    """As Llama 2's: SentencePiece's spaces, bytes for what is missing, BOS by the processor."""
    spare = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = [*"▁abcdefgh", "▁a", "▁b", "[INST]"]
    vocab = {name: i for i, name in enumerate(["<unk>", "<s>", "</s>", *spare, *letters])}
    merges = [("▁", "a"), ("▁", "b")]
    backend = Backend(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    backend.add_tokens([AddedToken(n, special=True) for n in ("<unk>", "<s>", "</s>")])
    backend.save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", config)
    write(folder, "config.json", {"model_type": "llama", "eos_token_id": 2})


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


END = "<|endoftext|>"
NAMED = {"bos_token": END, "eos_token": {"__type": "AddedToken", "content": END, "special": True}}
APART = {"bos_token": END, "eos_token": {"content": END, "lstrip": False}}
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
KINDS = {
    "demo": lambda folder: [
        (folder / name).write_bytes((DEMO_PATH / name).read_bytes())
        for name in ("tokenizer.json", "tokenizer_config.json", "config.json")
    ],
    "objects": lambda folder: demo_with(folder, {**NAMED, "pad_token": "<|padding|>"}),
    "nothing-named": lambda folder: demo_with(folder, {}),
    "add-bos-is-ignored": lambda folder: demo_with(
        folder, {**NAMED, "add_bos_token": True, "add_eos_token": True}
    ),
    "new-names": lambda folder: demo_with(
        folder,
        {"eos_token": "<|new|>", "additional_special_tokens": ["<|more|>", "def"]},
    ),
    "names-apart": lambda folder: demo_with(folder, {}, {**APART, "pad_token": "<|apart|>"}),
    "names-apart-are-old": lambda folder: demo_with(
        folder,
        {
            "added_tokens_decoder": {
                "9000": {"content": "<|late|>", "special": True},
                "8999": {"content": "<|early|>", "special": False, "normalized": True},
            }
        },
        APART,
    ),
    "llama-class": lambda folder: metaspace(folder, {**LLAMA, "tokenizer_class": "LlamaTokenizer"}),
    "llama-legacy": lambda folder: metaspace(
        folder, {**LLAMA, "tokenizer_class": "LlamaTokenizerFast", "legacy": True}
    ),
    "code-llama": lambda folder: metaspace(
        folder, {**LLAMA, "tokenizer_class": "CodeLlamaTokenizer"}
    ),
    "llama-as-it-is": lambda folder: metaspace(
        folder, {**LLAMA, "tokenizer_class": "PreTrainedTokenizerFast"}
    ),
    **({"gpt-neox": neox} if GPT_NEOX else {}),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """Ours and transformers' of one directory."""
    folder = tmp_path_factory.mktemp("tokenizer")
    KINDS[request.param](folder)
    return Tokenizer.load(folder), load_tokenizer(folder)


def same(ours, theirs, text):
    for special in (True, False):
        ids = ours.encode(text, add_special_tokens=special)
        assert ids == theirs.encode(text, add_special_tokens=special)
    for skip in (True, False):
        options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
        assert ours.decode(ids, **options) == theirs.decode(ids, **options)


def test_ids_and_text_are_those_of_transformers(pair, held_out_text):
    for text in [*TEXTS, held_out_text, "<s>[INST] ab <0x0A>[/INST] a</s>", "<|late|> def <|new|>"]:
        same(*pair, text)


@settings(max_examples=60)
@given(st.data())
def test_any_text_is_read_as_transformers_reads_it(pair, data):
    letters = st.characters(exclude_categories=["Cs"])
    added = pair[0].backend_tokenizer.get_added_tokens_decoder().values()
    # Once it has seen <FILL_ME>, transformers' Code Llama reads the texts after it differently.
    names = [token.content for token in added if token.content != "<FILL_ME>"]
    parts = data.draw(st.lists(st.text(letters, max_size=8) | st.sampled_from(names), max_size=6))
    same(*pair, "".join(parts))


@settings(max_examples=60)
@given(st.data())
def test_any_ids_are_written_as_transformers_writes_them(pair, data):
    ours, theirs = pair
    ids = data.draw(st.lists(st.integers(0, len(ours) + 30), max_size=12))
    for skip in (True, False):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
            ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
        )
    detokenizer = StreamingDetokenizer(ours)
    streamed = "".join([detokenizer.add(i) for i in ids])
    assert streamed + detokenizer.finish() == ours.decode(ids)


def test_tokens_have_the_names_that_transformers_knows(pair):
    ours, theirs = pair
    for name in ("bos_token", "eos_token", "eos_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.get_vocab() == theirs.get_vocab()
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    for token_id in (0, 5, len(ours) - 1):
        name = ours.convert_ids_to_tokens(token_id)
        assert name == theirs.convert_ids_to_tokens(token_id)
        assert ours.convert_tokens_to_ids(name) == token_id
    assert ours.convert_tokens_to_ids("<|nowhere|>") is None


# --- EOS and templates


@pytest.mark.parametrize(
    ("network", "generation", "expected"),
    [
        ({"eos_token_id": 0}, None, {0}),
        ({"eos_token_id": 5}, None, {0, 5}),
        ({"eos_token_id": [5, 6]}, None, {0, 5, 6}),
        ({"eos_token_id": 5}, {"eos_token_id": [7, 8]}, {0, 7, 8}),
        ({"eos_token_id": 5}, {"eos_token_id": None}, {0, 5}),
        ({"eos_token_id": "five"}, {}, {0}),
        ({}, None, {0}),
    ],
)
def test_what_ends_a_text(network, generation, expected, tmp_path):
    demo_with(tmp_path, NAMED)
    write(tmp_path, "config.json", network)
    if generation is not None:
        write(tmp_path, "generation_config.json", generation)
    assert Tokenizer.load(tmp_path).eos_token_ids == expected


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({}, {}, None),
        ({"chat_template": "A"}, {}, "A"),
        ({"chat_template": [{"name": "tool_use", "template": "T"},
                            {"name": "default", "template": "D"}]}, {}, "D"),
        ({"chat_template": "A"}, {"chat_template.jinja": "J\r\nK"}, "J\nK"),
        ({"chat_template": "A"}, {"chat_template.jinja": "J", "chat_templates/rag.jinja": "R"},
         "J"),
    ],
)  # fmt: skip
def test_which_template_counts(config, files, expected, tmp_path):
    demo_with(tmp_path, {**NAMED, **config})
    (tmp_path / "chat_templates").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
    assert Tokenizer.load(tmp_path).chat_template == expected
    theirs = load_tokenizer(tmp_path)
    assert expected == (theirs.get_chat_template() if expected else theirs.chat_template)


def test_a_conversation_becomes_text_or_ids(demo_out):
    tokenizer = Tokenizer.load(demo_out / "mlx-fp16")
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.apply_chat_template(messages, tokenize=True)
    assert ids == tokenizer.encode(text)
    assert tokenizer.apply_chat_template(messages, False) == text[: text.rindex("<|im_start|>")]


def test_a_model_without_a_template_says_so(tmp_path):
    demo_with(tmp_path, {})
    with pytest.raises(EdgeError, match="no chat template, so it cannot chat"):
        Tokenizer.load(tmp_path).apply_chat_template([])


# --- broken files


def message(path):
    with pytest.raises(EdgeError) as error:
        Tokenizer.load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_directory_without_a_tokenizer(tmp_path):
    assert "has no tokenizer.json and no tokenizer.model" in message(tmp_path)


def test_a_sentencepiece_model_that_is_none(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\x00\x01not a model")
    write(tmp_path, "config.json", {"model_type": "llama"})
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    assert "the tokenizer cannot be read" in message(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"model": 1}', b"\xff\xfe", b"null"])
def test_a_broken_tokenizer_file(data, tmp_path):
    demo_with(tmp_path, {})
    (tmp_path / "tokenizer.json").write_bytes(data)
    assert "tokenizer.json is not a tokenizer" in message(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer_config.json", b"{", "cannot be read as JSON"),
        ("tokenizer_config.json", b"[]", "holds no JSON object"),
        ("tokenizer_config.json", b'{"bos_token": 3}', "a special token is 3"),
        ("tokenizer_config.json", b'{"bos_token": {"lstrip": true}}', "'content'"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', "cannot be read"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"1": {"no": 1}}}', "cannot be read"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "cannot be read"),
        ("tokenizer_config.json", b'{"extra_special_tokens": 3}', "cannot be read"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "the chat template is int"),
        ("tokenizer_config.json", b'{"chat_template": [1]}', "cannot be read"),
        ("special_tokens_map.json", b"nope", "cannot be read as JSON"),
        ("generation_config.json", b"nope", "cannot be read as JSON"),
        ("chat_template.jinja", b"\xff\xff", "cannot be read"),
    ],
)
def test_a_broken_file_beside_it(name, content, words, tmp_path):
    demo_with(tmp_path, {})
    (tmp_path / name).write_bytes(content)
    assert words in message(tmp_path)


def test_half_a_character_is_one_sentence(demo_out):
    with pytest.raises(EdgeError, match="half a surrogate pair"):
        Tokenizer.load(demo_out / "mlx-fp16").encode("a\ud800")


# --- neighbours


def test_nothing_heavy_is_imported(demo_out):
    script = (
        "import sys; from pathlib import Path; from edge.tokenizer.tokenizer import Tokenizer\n"
        f"t = Tokenizer.load(Path({str(demo_out / 'mlx-fp16')!r})); assert t.encode('a b')\n"
        "heavy = ('transformers', 'mlx_lm', 'mlx', 'numpy', 'jinja2', 'huggingface_hub')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_mlx_lm_generates_with_it(demo_out):
    import mlx_lm

    import edge

    model, tokenizer = edge.load(demo_out / "mlx-fp16")
    prompt = "for key, value in d"
    text = mlx_lm.generate(model, tokenizer, prompt, max_tokens=8)
    assert text == edge.generate_text(model, tokenizer, prompt, max_tokens=8) != ""
    pieces = [r.text for r in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=8)]
    assert "".join(pieces) == text
