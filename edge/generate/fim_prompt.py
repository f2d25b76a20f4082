"""The prompt of a middle: its special tokens, its order, and what the window has room for.

The prompt is StarCoder's, whose special tokens Stable Code has (Stable Code Technical Report,
sections 3 and 4.4; Bavarian et al. 2022, arXiv:2207.14255), nothing between the parts:

    psm   <fim_prefix>PREFIX<fim_suffix>SUFFIX<fim_middle>
    spm   <fim_prefix><fim_suffix>SUFFIX<fim_middle>PREFIX

Both were trained in equal shares. The report does not say how its SPM is spelled; this is
StarCoder's and the demo's. Other files of the repository come before, each followed by
<repo_continuation>, as in the report's section 2, without names. What does not fit the window is
left out from the far ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from edge.errors import EdgeError

Order = Literal["psm", "spm"]
REPO_TOKEN = "<repo_continuation>"
# For the suffix where prefix and suffix together are too long.
SUFFIX_SHARE = 1 / 4
# What is too long is cut in steps, or every keystroke would move the window off the cache.
TRIM_STEP_TOKENS = 64
# Of a text that is longer, this much is encoded: code has some 3 characters per token, and
# megabytes that the window has no room for would take seconds.
CHARACTERS_PER_POSITION, LEAST_CHARACTERS = 16, 100_000


@dataclass(frozen=True)
class FimTokens:
    """Ids of the tokens that a prompt is built with; not every model has `repo`."""

    prefix: int
    suffix: int
    middle: int
    repo: int | None

    @classmethod
    def find(cls, backend: Any) -> FimTokens:
        """The tokens in the vocabulary of a `tokenizers.Tokenizer`."""
        names = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
        ids = [backend.token_to_id(name) for name in names]
        missing = [name for name, found in zip(names, ids, strict=True) if found is None]
        if missing:
            raise EdgeError(
                f"the model's vocabulary has no {', '.join(missing)}, so it was not trained to "
                f"fill in the middle; choose a model that was, such as stable-code-3b."
            )
        return cls(ids[0], ids[1], ids[2], backend.token_to_id(REPO_TOKEN))

    def prompt(
        self, prefix: list[int], suffix: list[int], context: list[int], room: int, order: Order
    ) -> list[int]:
        """The ids of a prompt, its parts cut to `room` tokens together."""
        before, after, left = fit(prefix, suffix, room)
        others = _without_beginning(context, left, _step_tokens(room))
        if order == "spm":
            return [*others, self.prefix, self.suffix, *after, self.middle, *before]
        return [*others, self.prefix, *before, self.suffix, *after, self.middle]


def fit(prefix: list[int], suffix: list[int], room: int) -> tuple[list[int], list[int], int]:
    """Cuts prefix and suffix from their far ends to `room` tokens; and what context may have.

    The suffix may have a quarter, or what the prefix leaves; the prefix what the suffix leaves.
    """
    whole, step = len(prefix) + len(suffix), _step_tokens(room)
    if whole <= room:
        return prefix, suffix, room - whole
    suffix_room = max(int(room * SUFFIX_SHARE), room - len(prefix))
    if len(suffix) > suffix_room:
        suffix = suffix[: suffix_room // step * step]
    return _without_beginning(prefix, room - len(suffix), step), suffix, 0


def near_end(text: str, positions: int) -> str:
    """The part of a text's end that could be in a window, moved in steps as long as itself."""
    most = max(CHARACTERS_PER_POSITION * positions, LEAST_CHARACTERS)
    begin = max(0, len(text) - most) // most * most
    line_end = text.find("\n", begin, begin + most // 2) if begin else -1
    return text[begin if line_end < 0 else line_end + 1 :]


def near_beginning(text: str, positions: int) -> str:
    """The part of a text's beginning that could be in a window."""
    return text[: max(CHARACTERS_PER_POSITION * positions, LEAST_CHARACTERS)]


def _step_tokens(room: int) -> int:
    return max(1, min(TRIM_STEP_TOKENS, room // 8))


def _without_beginning(ids: list[int], room: int, step: int) -> list[int]:
    """The end that fits, cut at a multiple of `step` tokens."""
    excess = max(0, len(ids) - room)
    return ids[-(-excess // step) * step :]
