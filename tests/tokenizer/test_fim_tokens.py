# ruff: noqa: RUF001
"""Prompts that fill in the middle, for a tiny model with each spelling, also by way of GGUF."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import CodeLlamaTokenizer

from edge.convert.sources.gguf import open_gguf
from edge.errors import EdgeError
from edge.formats.files import DEMO_PATH
from edge.generate.fim import Completer
from edge.llama_cpp.session import LlamaSession, library
from edge.tokenizer.fim_tokens import FIM_NAMES, SPELLINGS, FimTokens
from edge.tokenizer.tokenizer import Tokenizer, encode_text
from tests.support.conversions import make
from tests.support.sentencepiece import sentencepiece
from tests.support.tiny import LLAMA, write_checkpoint

DEMO = (DEMO_PATH / "tokenizer.json").read_text(encoding="utf-8")
# The published forms. The demo has the first, and Code Llama's is transformers'.
STARCODER = ("<fim_prefix>{0}<fim_suffix>{1}<fim_middle>",
             "<fim_prefix><fim_suffix>{1}<fim_middle>{0}")  # fmt: skip
FORMS = {
    "starcoder": STARCODER,
    "stablelm-2": [form.replace("<", "<|").replace(">", "|>") for form in STARCODER],
    "santacoder": [form.replace("_", "-") for form in STARCODER],
    "code-llama": ["", ""],
    "deepseek": ["<｜fim▁begin｜>{0}<｜fim▁hole｜>{1}<｜fim▁end｜>"],
}
# Not all that are published flag their tokens as special.
UNFLAGGED = ("stablelm-2", "code-llama", "deepseek")
HOLES = [("def f(a):\n    return", " + b\n"), ("  a =", "\n\n"), ("", "x(y)"), ("print(", ")")]


class Recorder:
    """A source of tokens that keeps the prompt and generates `script`."""

    context_tokens = 256

    def __init__(self, *script):
        self.script = script

    def generate(self, ids, *_):
        self.ids = ids
        return 0, (i for i in self.script)


def constructed(name, spelling) -> dict:
    """A tokenizer.json: the demo's with other names, or SentencePiece's."""
    text = DEMO.replace('"<fim_pad>"', json.dumps(spelling.pad or "<|pad|>"))
    for ours, theirs in zip(SPELLINGS[0].names, spelling.names, strict=True):
        text = text.replace(json.dumps(ours), json.dumps(theirs))
    tokenizer = json.loads(text)
    if name == "code-llama":
        tokenizer = sentencepiece(*spelling.names, spelling.end)
    if name == "deepseek":  # the only other one with BOS
        step = TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
        tokenizer["post_processor"] = json.loads(step.__getstate__())
    for token in tokenizer["added_tokens"]:
        token["special"] &= name not in UNFLAGGED or token["content"] not in FIM_NAMES
    return tokenizer


@pytest.fixture(scope="module", params=zip(FORMS, SPELLINGS, strict=True), ids=list(FORMS))
def made(request, tmp_path_factory):
    """Name, tokenizer, the one read back from the model's GGUF file, and that file."""
    name, spelling = request.param
    tokenizer = constructed(name, spelling)
    rows = len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])  # or fewer
    raw = {**LLAMA, "num_hidden_layers": 1, "vocab_size": rows}
    raw |= {} if name == "code-llama" else {"bos_token_id": 0, "eos_token_id": 0}
    folder = write_checkpoint(tmp_path_factory.mktemp("fim") / name, raw)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if name == "code-llama":  # which transformers builds in its own way
        names = {"tokenizer_class": "CodeLlamaTokenizer", "bos_token": "<s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (artefact,) = make(folder, folder / "out", "gguf-f16")
    back = folder / "back"
    back.mkdir()
    for file, data in open_gguf(artefact.path).tokenizer_files.items():
        (back / file).write_bytes(data)
    return name, Tokenizer.load(folder), Tokenizer.load(back), artefact.path


def published(name, tokenizer, prefix, suffix, order) -> list[int]:
    if name != "code-llama":
        return tokenizer.encode(FORMS[name][order == "spm"].format(prefix, suffix))
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    theirs = CodeLlamaTokenizer(model["vocab"], [tuple(merge) for merge in model["merges"]])
    # Version 5 also puts a space before the suffix, unlike version 4 and Meta's code.
    theirs.backend_tokenizer.pre_tokenizer = None
    ids = theirs(prefix, suffix=suffix, suffix_first=order == "spm").input_ids
    lone_space = theirs.convert_tokens_to_ids("▁")  # nor does Meta's encode "" as a space
    return ids if prefix else [i for i in ids if i != lone_space]


def test_prompts_are_as_published(made):
    name, *tokenizers, path = made
    for tokenizer in tokenizers:
        completer, fim = (
            Completer(Recorder(), tokenizer),
            FimTokens.find(tokenizer.backend_tokenizer),
        )
        for order in fim.spelling.orders:
            for hole in HOLES:
                completer.complete(*hole, order=order)
                assert completer.source.ids == published(name, tokenizers[0], *hole, order)
    if name == "deepseek":
        with pytest.raises(EdgeError, match="not trained on the order spm; choose psm"):
            completer.complete("a", "b", order="spm")
    with contextlib.closing(LlamaSession(path, 64, 1)) as session:
        vocab, lib = library().llama_model_get_vocab(session._model), library()
        ids = [getattr(lib, f"llama_vocab_fim_{part}")(vocab) for part in ("pre", "suf", "mid")]
        assert ids == [fim.prefix, fim.suffix, fim.middle]


@settings(max_examples=40)
@given(data=st.data(), begins=st.booleans())
def test_names_of_special_tokens_in_code_are_text(made, data, begins):
    for backend in (tokenizer.backend_tokenizer for tokenizer in made[1:3]):
        added = {str(token): i for i, token in backend.get_added_tokens_decoder().items()}
        some = st.sampled_from([*sorted(added), *"<|>_ é", "fim", "PRE"])
        code = "".join(data.draw(st.lists(some, max_size=8)))
        ids = encode_text(backend, code, begins)
        assert not {*added.values()} & {*ids}
        found, wanted = (t.replace("▁", " ").strip() for t in (backend.decode(ids), code))
        assert found == wanted


def test_every_token_ends_the_middle(made):
    for tokenizer in made[1:3]:
        backend = tokenizer.backend_tokenizer
        spelling = FimTokens.find(backend).spelling
        text = encode_text(backend, "  = 1", begins=False)
        for name in filter(None, (*spelling.names, spelling.end, spelling.pad)):
            script = (*text, backend.token_to_id(name), *text)
            middle = Completer(Recorder(*script), tokenizer).complete("a", "b")
            assert (middle.text, middle.stopped_by) == ("  = 1", "stop token")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("<fim_prefix> <fim_suffix> <x> <y>", r"does not know \(<fim_prefix>, <fim_suffix>\)"),
        ("[PREFIX] [SUFFIX] [MIDDLE] <x>", r"\(\[MIDDLE\], \[PREFIX\], \[SUFFIX\]\)"),
        ("<a> <b> <c> <d>", "no tokens for filling in the middle, such as <fim_prefix>"),
    ],
)
def test_other_tokens_are_refused(names, words, tmp_path):
    text = DEMO
    for ours, theirs in zip((*SPELLINGS[0].names, "<fim_pad>"), names.split(), strict=True):
        text = text.replace(ours, theirs)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(EdgeError, match=words):
        FimTokens.find(Tokenizer.load(tmp_path).backend_tokenizer)
