"""A tokenizer.json as GGUF keys: byte-level BPE, or SentencePiece's with bytes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge.errors import EdgeError
from edge.formats.files import decode_text, parse_json_object
from edge.tokenizer.fim_tokens import SPELLINGS
from edge.tokenizer.splitting import splitting_name

# gguf.TokenType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# The special tokens that llama.cpp has a key for. It has none for <repo_continuation>, and ends
# generation at pad, rep and sep.
SPECIAL_IDS = {
    "fim_pre": tuple(spelling.prefix for spelling in SPELLINGS),
    "fim_suf": tuple(spelling.suffix for spelling in SPELLINGS),
    "fim_mid": tuple(spelling.middle for spelling in SPELLINGS),
    "fim_pad": tuple(spelling.pad for spelling in SPELLINGS if spelling.pad),
    "fim_rep": ("<reponame>",),
    "eot": ("<|im_end|>", *(spelling.end for spelling in SPELLINGS if spelling.end)),
    "padding": ("<|padding|>",),
}
FILE = "tokenizer.json"
NO_GGUF = "GGUF output is not possible, convert to MLX instead."
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class GgufTokenizer:
    """The tokenizer.* keys; tokens and types have the model's vocabulary size.

    `scores` are SentencePiece's, whose merges follow from them; byte-level BPE has merges alone.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    special_ids: dict[str, int]
    unknown_id: int | None
    adds_bos: bool
    adds_space: bool
    chat_template: str | None
    composes: bool  # text to Unicode's NFC first, for which GGUF has no key


def read_tokenizer(files: Mapping[str, bytes], vocab_size: int) -> GgufTokenizer:
    """Read a checkpoint's tokenizer files; missing ids below `vocab_size` become unused tokens.

    An EdgeError if tokenizer.json is not BPE, or llama.cpp cannot do the same.
    """
    data = parse_json_object(files[FILE], FILE)
    try:
        model = data["model"]
        if model["type"] != "BPE":
            raise EdgeError(f"{FILE} is a {model['type']} tokenizer, not BPE; {NO_GGUF}")
        has_bytes = bool(model.get("byte_fallback"))
        tokens = {i: (text, NORMAL) for text, i in model["vocab"].items()}
        if has_bytes:
            tokens |= {i: (t, BYTE) for i, (t, _) in tokens.items() if BYTE_TOKEN.fullmatch(t)}
        for token in data.get("added_tokens") or []:
            kind = CONTROL if token["special"] else USER_DEFINED
            tokens[token["id"]] = (token["content"], kind)
        unknown = model["vocab"].get(model.get("unk_token"))
        if has_bytes and unknown is not None:
            tokens[unknown] = (tokens[unknown][0], UNKNOWN)
        merges = [_merge(merge) for merge in model["merges"]]
        adds_space = _adds_space(data) if has_bytes else False
        composes = not has_bytes and _composes(data.get("normalizer"))
        pre = "default" if has_bytes else _pre_tokenizer(data["pre_tokenizer"])
        adds_bos = _adds_bos(data.get("post_processor"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EdgeError(f"{FILE} is not a tokenizer ({error!r}); download it again.") from None
    rows = [tokens.get(i, (f"[PAD{i}]", UNUSED)) for i in range(vocab_size)]
    names = {text: i for i, (text, _) in enumerate(rows)}
    special = {
        key: names[text]
        for key, texts in SPECIAL_IDS.items()
        for text in texts[::-1]
        if text in names
    }
    return GgufTokenizer(
        model="llama" if has_bytes else "gpt2",
        pre=pre,
        tokens=[text for text, _ in rows],
        types=[kind for _, kind in rows],
        merges=merges,
        scores=_scores(rows, merges) if has_bytes else [],
        special_ids=special,
        unknown_id=unknown if has_bytes else None,
        adds_bos=adds_bos,
        adds_space=adds_space,
        chat_template=_chat_template(files),
        composes=composes,
    )


def _scores(rows: list[tuple[str, int]], merges: list[str]) -> list[float]:
    """llama.cpp merges into the token of the highest score first: minus the rank of its merge."""
    rank = {merge.replace(" ", ""): -float(i) for i, merge in reversed(list(enumerate(merges)))}
    return [rank.get(text, -float(len(merges))) for text, _ in rows]


def _adds_space(data: Mapping[str, Any]) -> bool:
    """Whether a text gets a space before it, from either form of a SentencePiece tokenizer."""
    splitting = data.get("pre_tokenizer")
    if splitting and splitting["type"] == "Metaspace" and not splitting.get("split", True):
        return bool(splitting.get("prepend_scheme") != "never")
    steps = _steps(data["normalizer"], "normalizers") if data.get("normalizer") else []
    kinds = [step["type"] for step in steps]
    if splitting or kinds not in (["Replace"], ["Prepend", "Replace"]):
        raise EdgeError(f"{FILE} prepares text in a way that llama.cpp does not; {NO_GGUF}")
    return bool(kinds[0] == "Prepend")


def _adds_bos(processor: Mapping[str, Any] | None) -> bool:
    """Whether a text begins with a special token."""
    for step in _steps(processor, "processors") if processor else []:
        if step["type"] == "TemplateProcessing" and step["single"]:
            return bool("SpecialToken" in step["single"][0])
    return False


def _merge(merge: str | list[str]) -> str:
    """Both parts with one space between; neither may contain one."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    if " " in left + right:
        raise ValueError(f"{merge!r} cannot be written with a space between them")
    return f"{left} {right}"


def _composes(normalizer: dict[str, Any] | None) -> bool:
    """True for NFC, which llama.cpp lacks but few texts need; other normalisers are refused."""
    kinds = {step["type"] for step in _steps(normalizer, "normalizers")} if normalizer else set()
    if kinds - {"NFC"}:
        raise EdgeError(
            f"{FILE} normalises text ({', '.join(sorted(kinds))}), which GGUF cannot say; {NO_GGUF}"
        )
    return bool(kinds)


def _steps(step: Mapping[str, Any], parts: str) -> list[Mapping[str, Any]]:
    """The parts of a sequence, which are under that key; any other step is its own."""
    found: list[Mapping[str, Any]] = step[parts] if step["type"] == "Sequence" else [step]
    return found


def _pre_tokenizer(pre: Mapping[str, Any]) -> str:
    name = splitting_name(pre)
    if name is None:
        raise EdgeError(f"{FILE} splits text in a way that llama.cpp has no name for; {NO_GGUF}")
    return name


def _chat_template(files: Mapping[str, bytes]) -> str | None:
    if "chat_template.jinja" in files:
        return decode_text(files["chat_template.jinja"], "chat_template.jinja")
    settings = parse_json_object(files.get("tokenizer_config.json", b"{}"), "tokenizer_config.json")
    template = settings.get("chat_template")
    return template if isinstance(template, str) else None
