# ruff: noqa: RUF001
"""Prompts that fill in the middle, for a tiny model with each spelling, also by way of GGUF."""

import contextlib
import json

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import CodeLlamaTokenizer

from edge.convert.sources.find import DEMO_PATH
from edge.convert.sources.gguf import open_gguf
from edge.errors import EdgeError
from edge.generate.fim import Completer
from edge.llama_cpp.session import LlamaSession, library
from edge.tokenizer.fim_tokens import SPELLINGS, FimTokens
from edge.tokenizer.tokenizer import Tokenizer, encode_text, special_ids
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
# These do not flag their tokens as special.
UNFLAGGED = ("stablelm-2", "deepseek")
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
    if name == "code-llama":
        return sentencepiece(*spelling.names, spelling.end)
    text = DEMO.replace('"<fim_pad>"', json.dumps(spelling.pad or "<|pad|>"))
    for ours, theirs in zip(SPELLINGS[0].names, spelling.names, strict=True):
        text = text.replace(json.dumps(ours), json.dumps(theirs))
    tokenizer = json.loads(text)
    for token in tokenizer["added_tokens"]:
        token["special"] &= name not in UNFLAGGED or "fim" not in token["content"]
    if name == "deepseek":  # the only other one with BOS
        step = TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
        tokenizer["post_processor"] = json.loads(step.__getstate__())
    return tokenizer


@pytest.fixture(scope="module", params=zip(FORMS, SPELLINGS, strict=True), ids=list(FORMS))
def made(request, tmp_path_factory):
    """Name, tokenizer, the one read back from the model's GGUF file, and that file."""
    name, spelling = request.param
    tokenizer = constructed(name, spelling)
    rows = len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])  # or fewer
    raw = {**LLAMA, "num_hidden_layers": 1, "vocab_size": rows}
    raw["bos_token_id"] = 1 if name == "code-llama" else 0
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


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_prompts_are_as_published(made, order):
    name, *tokenizers, _ = made
    for prefix, suffix in HOLES:
        for tokenizer in tokenizers:
            completer = Completer(Recorder(), tokenizer)
            if name == "deepseek" and order == "spm":
                with pytest.raises(EdgeError, match="not trained on the order spm; choose psm"):
                    completer.complete(prefix, suffix, order=order)
                continue
            completer.complete(prefix, suffix, order=order)
            assert completer.source.ids == published(name, tokenizers[0], prefix, suffix, order)


def test_names_in_code_are_text_and_tokens_end_the_middle(made):
    _, *tokenizers, _ = made
    for tokenizer in tokenizers:
        backend = tokenizer.backend_tokenizer
        fim = FimTokens.find(backend)
        names = [*fim.spelling.names, *filter(None, [fim.spelling.end, fim.spelling.pad])]
        code = "".join(names) + " <PRE> <s>"
        for begins in (True, False):
            ids = encode_text(backend, code, begins)
            assert special_ids(backend).isdisjoint(ids)
            found, wanted = (t.replace("▁", " ").strip() for t in (backend.decode(ids), code))
            assert found == wanted
        text = encode_text(backend, "  = 1", begins=False)
        for stop in map(backend.token_to_id, names):
            middle = Completer(Recorder(*text, stop, *text), tokenizer).complete("a", "b")
            assert (middle.text, middle.stopped_by) == ("  = 1", "stop token")


def test_llama_cpp_finds_the_tokens_of_the_file(made):
    *_, back, path = made
    fim, lib = FimTokens.find(back.backend_tokenizer), library()
    with contextlib.closing(LlamaSession(path, 64, 1)) as session:
        vocab = lib.llama_model_get_vocab(session._model)
        ids = [getattr(lib, f"llama_vocab_fim_{part}")(vocab) for part in ("pre", "suf", "mid")]
        assert ids == [fim.prefix, fim.suffix, fim.middle]
        assert [lib.llama_vocab_bos(vocab)] * lib.llama_vocab_get_add_bos(vocab) == [*fim.bos]


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
