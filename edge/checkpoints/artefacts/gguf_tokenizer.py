"""A byte-level BPE tokenizer.json in GGUF's terms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.model.config import read_json_object

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
    """What goes under tokenizer.* keys; tokens and types have the model's vocabulary size."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special_ids: dict[str, int]
    chat_template: str | None


def read_tokenizer(path: Path, vocab_size: int) -> GgufTokenizer:
    """Read a checkpoint's tokenizer files.

    Args:
        path: the checkpoint's directory.
        vocab_size: rows of the embedding; ids the tokenizer lacks become unused tokens.

    Raises:
        EdgeError: tokenizer.json is missing, broken, not byte-level BPE, or larger than the
            embedding.
    """
    file = path / "tokenizer.json"
    data = read_json_object(file)
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
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        pre = _pre_tokenizer(data["pre_tokenizer"], file)
    except (KeyError, TypeError, AttributeError) as error:
        raise EdgeError(f"{file} is not a tokenizer ({error!r}); download it again.") from None
    if tokens and max(tokens) >= vocab_size:
        raise EdgeError(
            f"{file} has token id {max(tokens)}, the model's embedding has {vocab_size} rows; "
            f"the two belong to different models, so download both again."
        )
    rows = [tokens.get(i, (f"[PAD{i}]", UNUSED)) for i in range(vocab_size)]
    names = {text: i for i, (text, _) in enumerate(rows)}
    return GgufTokenizer(
        pre=pre,
        tokens=[text for text, _ in rows],
        types=[kind for _, kind in rows],
        merges=merges,
        special_ids={key: names[text] for key, text in SPECIAL_IDS.items() if text in names},
        chat_template=_chat_template(path),
    )


def _pre_tokenizer(pre: dict[str, Any], file: Path) -> str:
    """llama.cpp's name for how text is split before merging.

    GPT-NeoX's and our demo's ByteLevel step has GPT-2's pattern ("olmo" is what llama.cpp's
    converter calls GPT-NeoX's); StableLM 2 splits with tiktoken's.
    """
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    byte_level = [s for s in steps if s["type"] == "ByteLevel"]
    patterns = [s["pattern"].get("Regex", "") for s in steps if s["type"] == "Split"]
    if len(byte_level) == 1 and not patterns and byte_level[0].get("use_regex", True):
        return "olmo"
    if len(patterns) == 1 and TIKTOKEN_MARK in patterns[0]:
        return "stablelm2"
    raise EdgeError(
        f"{file} splits text in a way that no StableLM does; GGUF output is not possible, "
        f"convert to MLX instead."
    )


def _chat_template(path: Path) -> str | None:
    separate = path / "chat_template.jinja"
    if separate.is_file():
        try:
            return separate.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise EdgeError(f"{separate} cannot be read ({error}); download it again.") from None
    settings = path / "tokenizer_config.json"
    if not settings.is_file():
        return None
    template = read_json_object(settings).get("chat_template")
    return template if isinstance(template, str) else None
