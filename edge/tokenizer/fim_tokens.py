"""The special tokens that fill in the middle, in each spelling that published models have.

All prompts have the same two forms, with the names of StarCoder's tokens (Bavarian et al. 2022,
arXiv:2207.14255, for PSM; the form of SPM is StarCoder's and Code Llama's):

    psm   PREFIX-TOKEN prefix SUFFIX-TOKEN suffix MIDDLE-TOKEN
    spm   PREFIX-TOKEN SUFFIX-TOKEN suffix MIDDLE-TOKEN prefix
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from edge.errors import EdgeError

Order = Literal["psm", "spm"]
BOTH: tuple[Order, ...] = ("psm", "spm")
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
    orders: tuple[Order, ...] = BOTH

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


def find_spelling(has: Callable[[str], bool], special_names: Iterable[str]) -> FimSpelling:
    """The spelling of a vocabulary: `has` tells its tokens, `special_names` are the special ones.

    An EdgeError where there is none, or one that is not known.
    """
    for spelling in SPELLINGS:
        if all(has(name) for name in spelling.names):
            return spelling
    if unknown := sorted(name for name in special_names if UNKNOWN_SPELLING.search(name)):
        raise EdgeError(
            f"the model has tokens for filling in the middle whose order edge does not know "
            f"({', '.join(unknown[:4])}); choose another model, such as stable-code-3b."
        )
    raise EdgeError(
        "the model has no tokens for filling in the middle, such as <fim_prefix>, so it was not "
        "trained for it; choose a model that was, such as stable-code-3b."
    )
