"""A byte-level BPE tokenizer.json in GGUF's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge.convert.sources.tokenizer_file import token_ids
from edge.errors import EdgeError
from edge.formats.files import parse_json_object

# gguf.TokenType
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
# The special tokens that llama.cpp keeps an id for, under the family's names. llama.cpp has
# no key for <repo_continuation>, and treats pad, rep and sep as ends of generation.
SPECIAL_IDS = {
    "fim_pre": "<fim_prefix>",
    "fim_suf": "<fim_suffix>",
    "fim_mid": "<fim_middle>",
    "fim_pad": "<fim_pad>",
    "fim_rep": "<reponame>",
    "eot": "<|im_end|>",
    "padding": "<|padding|>",
}
# The splitting patterns that StableLM tokenizers use, by llama.cpp's name for them.
TIKTOKEN_MARK = r"\p{N}| ?[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class GgufTokenizer:
    """What goes under tokenizer.* keys; tokens and types have the model's vocabulary size.

    `composes`: the original composes Unicode (NFC) first, for which GGUF has no key.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special_ids: dict[str, int]
    chat_template: str | None
    composes: bool = False


def read_tokenizer(files: Mapping[str, bytes], vocab_size: int) -> GgufTokenizer:
    """Read a checkpoint's tokenizer files.

    Args:
        files: their contents by name, tokenizer.json among them.
        vocab_size: rows of the embedding; ids the tokenizer lacks become unused tokens.

    Raises:
        EdgeError: tokenizer.json is missing, broken, not byte-level BPE, or larger than the
            embedding.
    """
    file = "tokenizer.json"
    data = parse_json_object(files[file], file)
    token_ids(data, vocab_size, file)
    try:
        model, added = data["model"], data.get("added_tokens") or []
        if model["type"] != "BPE":
            raise EdgeError(
                f"{file} is a {model['type']} tokenizer; StableLM checkpoints use byte-level "
                f"BPE, so this file belongs to another model."
            )
        tokens: dict[int, tuple[str, int]] = {i: (t, NORMAL) for t, i in model["vocab"].items()}
        for token in added:
            kind = CONTROL if token["special"] else USER_DEFINED
            tokens[token["id"]] = (token["content"], kind)
        merges = [_merge(m) for m in model["merges"]]
        composes = _composes(data.get("normalizer"), file)
        pre = _pre_tokenizer(data["pre_tokenizer"], file)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EdgeError(f"{file} is not a tokenizer ({error!r}); download it again.") from None
    rows = [tokens.get(i, (f"[PAD{i}]", UNUSED)) for i in range(vocab_size)]
    names = {text: i for i, (text, _) in enumerate(rows)}
    return GgufTokenizer(
        pre=pre,
        tokens=[text for text, _ in rows],
        types=[kind for _, kind in rows],
        merges=merges,
        special_ids={key: names[text] for key, text in SPECIAL_IDS.items() if text in names},
        chat_template=_chat_template(files),
        composes=composes,
    )


def _merge(merge: str | list[str]) -> str:
    """Both parts with one space between them, which therefore neither may hold."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    if " " in left + right:
        raise ValueError(f"{merge!r} cannot be written with a space between them")
    return f"{left} {right}"


def _composes(normalizer: dict[str, Any] | None, file: str) -> bool:
    """Whether it is GPT-NeoX's NFC, which llama.cpp lacks but few texts need; no other may pass."""
    if normalizer is None:
        return False
    kinds = {n["type"] for n in _steps(normalizer, "normalizers")}
    if kinds - {"NFC"}:
        raise EdgeError(
            f"{file} normalises text ({', '.join(sorted(kinds))}), which llama.cpp does not; "
            f"GGUF output is not possible, convert to MLX instead."
        )
    return bool(kinds)


def _steps(step: dict[str, Any], parts: str) -> list[dict[str, Any]]:
    """The parts of a sequence, which are under that key; what is none is its own."""
    found: list[dict[str, Any]] = step[parts] if step["type"] == "Sequence" else [step]
    return found


def _pre_tokenizer(pre: dict[str, Any], file: str) -> str:
    """llama.cpp's name for how text is split before merging.

    GPT-NeoX's and our demo's ByteLevel step has GPT-2's pattern ("olmo" is what llama.cpp's
    converter calls GPT-NeoX's); StableLM 2 splits with tiktoken's.
    """
    steps = _steps(pre, "pretokenizers")
    byte_level = [s for s in steps if s["type"] == "ByteLevel"]
    patterns = [s["pattern"].get("Regex", "") for s in steps if s["type"] == "Split"]
    if len(byte_level) == 1 and not patterns and _is_gpt2(byte_level[0]):
        return "olmo"
    if len(patterns) == 1 and TIKTOKEN_MARK in patterns[0]:
        return "stablelm2"
    raise EdgeError(
        f"{file} splits text in a way that no StableLM does; GGUF output is not possible, "
        f"convert to MLX instead."
    )


def _is_gpt2(byte_level: dict[str, Any]) -> bool:
    """Splits by GPT-2's pattern, and puts no space of its own before the text."""
    return byte_level.get("use_regex", True) and not byte_level.get("add_prefix_space")


def _chat_template(files: Mapping[str, bytes]) -> str | None:
    separate = files.get("chat_template.jinja")
    if separate is not None:
        try:
            return separate.decode()
        except ValueError as error:
            raise EdgeError(
                f"chat_template.jinja cannot be read ({error}); download it again."
            ) from None
    settings = files.get("tokenizer_config.json")
    if settings is None:
        return None
    template = parse_json_object(settings, "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else None
