"""The special tokens that fill in the middle, in each spelling that published models have.

All prompts have the same two forms, with the names of StarCoder's tokens (Bavarian et al. 2022,
arXiv:2207.14255, for PSM; the form of SPM is StarCoder's and Code Llama's):

    psm   PREFIX-TOKEN prefix SUFFIX-TOKEN suffix MIDDLE-TOKEN
    spm   PREFIX-TOKEN SUFFIX-TOKEN suffix MIDDLE-TOKEN prefix

BOS comes first where the tokenizer puts it before a text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge.errors import EdgeError
from edge.tokenizer.tokenizer import adds_space, bos_ids, encode_text, special_ids

Order = Literal["psm", "spm"]
ORDERS: tuple[Order, ...] = ("psm", "spm")
# A special token that is about infilling under a name that is not in SPELLINGS.
UNKNOWN_SPELLING = re.compile(r"fim|infill|middle|<(PRE|SUF|MID)>|\[(PREFIX|SUFFIX|MIDDLE)\]", re.I)


@dataclass(frozen=True)
class FimSpelling:
    """Names of the tokens; `end` ends a middle beside EOS, `repo` follows another file."""

    prefix: str
    suffix: str
    middle: str
    pad: str | None = None
    repo: str | None = None
    end: str | None = None
    orders: tuple[Order, ...] = ORDERS

    @property
    def names(self) -> tuple[str, str, str]:
        """The three that every prompt has."""
        return self.prefix, self.suffix, self.middle


SPELLINGS = (
    # StarCoder, Stable Code, Granite.
    FimSpelling("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", "<repo_continuation>"),
    # StableLM 2, CodeGemma, Qwen2.5-Coder.
    FimSpelling("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"),
    # SantaCoder.
    FimSpelling("<fim-prefix>", "<fim-suffix>", "<fim-middle>", "<fim-pad>"),
    # Code Llama.
    FimSpelling("▁<PRE>", "▁<SUF>", "▁<MID>", end="▁<EOT>"),
    # DeepSeek Coder, which was not trained on SPM.
    FimSpelling(
        "<\uff5cfim▁begin\uff5c>",
        "<\uff5cfim▁hole\uff5c>",
        "<\uff5cfim▁end\uff5c>",
        orders=("psm",),
    ),
)


# All that no text has and that are not part of a middle.
FIM_NAMES = frozenset(
    name
    for spelling in SPELLINGS
    for name in (*spelling.names, spelling.pad, spelling.end)
    if name is not None
)


@dataclass(frozen=True)
class FimTokens:
    """The spelling of a model and its ids; `bos` is empty and `repo` None where it has none."""

    spelling: FimSpelling
    bos: tuple[int, ...]
    prefix: int
    suffix: int
    middle: int
    repo: int | None

    @classmethod
    def find(cls, backend: Any) -> "FimTokens":
        """The tokens of a `tokenizers.Tokenizer`; an EdgeError as of `find_spelling`."""
        spelling = find_spelling(backend)
        prefix, suffix, middle = map(backend.token_to_id, spelling.names)
        repo = None if spelling.repo is None else backend.token_to_id(spelling.repo)
        return cls(spelling, bos_ids(backend), prefix, suffix, middle, repo)

    def check(self, order: Order) -> None:
        """Refuses an order that the model was not trained on."""
        if order not in self.spelling.orders:
            raise EdgeError(
                f"the model with {self.spelling.prefix} was not trained on the order {order}; "
                f"choose {' or '.join(self.spelling.orders)}."
            )

    @property
    def length(self) -> int:
        """Tokens of a prompt without prefix, suffix and other files."""
        return len(self.bos) + len(self.spelling.names)

    def prompt(
        self, prefix: Sequence[int], suffix: Sequence[int], files: Sequence[int], order: Order
    ) -> list[int]:
        """The ids of a prompt; `files` are other files, each with `repo` after it."""
        self.check(order)
        begin = [*self.bos, *files, self.prefix]
        if order == "spm":
            return [*begin, self.suffix, *suffix, self.middle, *prefix]
        return [*begin, *prefix, self.suffix, *suffix, self.middle]


def encode_parts(backend: Any, prefix: str, suffix: str) -> tuple[list[int], list[int]]:
    """Ids of prefix and suffix, where names of special tokens are plain text.

    Only the prefix gets the space that SentencePiece puts before a text, as in
    `infilling_prompt_tokens` of Code Llama's repository.
    """
    space = " " if prefix and adds_space(backend) else ""
    before = encode_text(backend, space + prefix, begins=False)
    return before, encode_text(backend, suffix, begins=False)


def find_spelling(backend: Any) -> FimSpelling:
    """The spelling that a `tokenizers.Tokenizer` has.

    An EdgeError where there is none, or one that is not known.
    """
    for spelling in SPELLINGS:
        if all(backend.token_to_id(name) is not None for name in spelling.names):
            return spelling
    special = sorted(filter(None, map(backend.id_to_token, special_ids(backend))))
    if unknown := [name for name in special if UNKNOWN_SPELLING.search(name)]:
        raise EdgeError(
            f"the model has tokens for filling in the middle whose order edge does not know "
            f"({', '.join(unknown[:4])}); choose another model, such as stable-code-3b."
        )
    raise EdgeError(
        "the model has no tokens for filling in the middle, such as <fim_prefix>, so it was not "
        "trained for it; choose a model that was, such as stable-code-3b."
    )
