"""A byte-level BPE tokenizer.json as GGUF keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge.errors import EdgeError
from edge.formats.files import decode_text, parse_json_object

# gguf.TokenType
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
# The special tokens that llama.cpp has a key for. It has none for <repo_continuation>, and ends
# generation at pad, rep and sep.
SPECIAL_IDS = {
    "fim_pre": "<fim_prefix>",
    "fim_suf": "<fim_suffix>",
    "fim_mid": "<fim_middle>",
    "fim_pad": "<fim_pad>",
    "fim_rep": "<reponame>",
    "eot": "<|im_end|>",
    "padding": "<|padding|>",
}
# Part of tiktoken's splitting pattern.
TIKTOKEN_MARK = r"\p{N}| ?[^\s\p{L}\p{N}]+"
FILE = "tokenizer.json"


@dataclass(frozen=True)
class GgufTokenizer:
    """The tokenizer.* keys; tokens and types have the model's vocabulary size."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special_ids: dict[str, int]
    chat_template: str | None
    composes: bool  # text to Unicode's NFC first, for which GGUF has no key


def read_tokenizer(files: Mapping[str, bytes], vocab_size: int) -> GgufTokenizer:
    """Read a checkpoint's tokenizer files; missing ids below `vocab_size` become unused tokens.

    An EdgeError if tokenizer.json is not byte-level BPE, or llama.cpp cannot do the same.
    """
    data = parse_json_object(files[FILE], FILE)
    try:
        model = data["model"]
        if model["type"] != "BPE":
            raise EdgeError(
                f"{FILE} is a {model['type']} tokenizer, not StableLM's byte-level BPE; use the "
                f"model's own."
            )
        tokens = {i: (text, NORMAL) for text, i in model["vocab"].items()}
        for token in data.get("added_tokens") or []:
            kind = CONTROL if token["special"] else USER_DEFINED
            tokens[token["id"]] = (token["content"], kind)
        merges = [_merge(merge) for merge in model["merges"]]
        composes = _composes(data.get("normalizer"))
        pre = _pre_tokenizer(data["pre_tokenizer"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EdgeError(f"{FILE} is not a tokenizer ({error!r}); download it again.") from None
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
            f"{FILE} normalises text ({', '.join(sorted(kinds))}), which llama.cpp cannot, so GGUF "
            f"output is not possible; convert to MLX instead."
        )
    return bool(kinds)


def _steps(step: dict[str, Any], parts: str) -> list[dict[str, Any]]:
    """The parts of a sequence, under the key `parts`, or the step itself."""
    found: list[dict[str, Any]] = step[parts] if step["type"] == "Sequence" else [step]
    return found


def _pre_tokenizer(pre: dict[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer.

    GPT-NeoX and the demo use ByteLevel with GPT-2's pattern and no added space, which llama.cpp's
    converter calls "olmo"; StableLM 2 uses tiktoken's pattern.
    """
    steps = _steps(pre, "pretokenizers")
    byte_level = [s for s in steps if s["type"] == "ByteLevel"]
    patterns = [s["pattern"].get("Regex", "") for s in steps if s["type"] == "Split"]
    splits = [s.get("use_regex", True) and not s.get("add_prefix_space") for s in byte_level]
    if splits == [True] and not patterns:
        return "olmo"
    if len(patterns) == 1 and TIKTOKEN_MARK in patterns[0]:
        return "stablelm2"
    raise EdgeError(
        f"{FILE} splits text unlike any StableLM, so GGUF output is not possible; convert to MLX "
        f"instead."
    )


def _chat_template(files: Mapping[str, bytes]) -> str | None:
    if "chat_template.jinja" in files:
        return decode_text(files["chat_template.jinja"], "chat_template.jinja")
    settings = parse_json_object(files.get("tokenizer_config.json", b"{}"), "tokenizer_config.json")
    template = settings.get("chat_template")
    return template if isinstance(template, str) else None
