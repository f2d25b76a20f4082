"""How byte-level BPE tokenizers split text before they merge, in two languages.

GGUF files have a name (`tokenizer.ggml.pre`), for which llama.cpp knows the expressions
(llama-vocab.cpp); tokenizer.json has the steps themselves.
"""

from collections.abc import Mapping
from typing import Any

# Each name stands for the expressions, in order; GPT2 stands for GPT-2's own.
GPT2, DIGIT = "gpt-2", r"\p{N}"
_TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TIKTOKEN_1, TIKTOKEN_3 = (_TIKTOKEN.format(digits=d) for d in (r"\p{N}", r"\p{N}{1,3}"))
DEEPSEEK = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT)
# The first name of each is the one that is written.
_NAMES: dict[tuple[str, ...], tuple[str, ...]] = {
    (GPT2,): ("olmo", "gpt-2", "gpt2", "mpt", "phi-2", "mellum"),
    (DIGIT, GPT2): ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"),
    (TIKTOKEN_1,): ("stablelm2", "qwen2", "deepseek-r1-qwen", "megrez", "hunyuan"),
    (TIKTOKEN_3,): ("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx", "falcon3"),
    DEEPSEEK: ("deepseek-coder",),
}
SPLITTINGS = {name: steps for steps, names in _NAMES.items() for name in names}
# llama.cpp takes a whole word that is a token without merging.
IGNORE_MERGES = ("llama-bpe", "llama3", "llama-v3", "falcon3")
# Some files write the expression in another way; this part tells which it is.
_MARKS = {
    rf"{digits}| ?[^\s\p{{L}}\p{{N}}]+": steps
    for digits, steps in ((r"\p{N}{1,3}", TIKTOKEN_3), (r"\p{N}", TIKTOKEN_1))
}


def pre_tokenizer(name: str) -> dict[str, Any] | None:
    """The step of a tokenizer.json for llama.cpp's name; None for an unknown one."""
    expressions = SPLITTINGS.get(name)
    if expressions is None:
        return None
    steps = [_step(expression) for expression in expressions]
    if GPT2 not in expressions:
        steps.append(byte_level(use_regex=False))
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def splitting_name(step: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for a tokenizer.json's pre_tokenizer; None where it has none.

    A KeyError or TypeError for a step that is not in the form of the tokenizers library.
    """
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    expressions: list[str | None] = []
    for part in steps:
        expressions += _expressions(part)
    names = _NAMES.get(tuple(e or "" for e in expressions))
    return names[0] if names else None


def byte_level(use_regex: bool) -> dict[str, Any]:
    """GPT-2's byte alphabet as a step, with its splitting or without."""
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {**step, "use_regex": use_regex}


def _step(expression: str) -> dict[str, Any]:
    if expression == GPT2:
        return byte_level(use_regex=True)
    if expression == DIGIT:
        return {"type": "Digits", "individual_digits": True}
    pattern = {"Regex": expression}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def _expressions(part: Mapping[str, Any]) -> list[str | None]:
    """What one step splits by; None for something that llama.cpp does not do."""
    kind = part["type"]
    if kind == "ByteLevel":
        if part.get("add_prefix_space"):
            return [None]
        return [GPT2] if part.get("use_regex", True) else []
    if kind == "Digits":
        return [DIGIT if part["individual_digits"] else None]
    if kind != "Split":
        return [None]
    expression = part["pattern"].get("Regex", "")
    marked = (steps for mark, steps in _MARKS.items() if mark in expression)
    return [next(marked, expression)]
