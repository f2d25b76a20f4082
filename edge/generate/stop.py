"""Where a text ends: tokens that no reader should see, and strings that the caller names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from edge.errors import EdgeError
from edge.tokenizer.special_tokens import token_id

# Stable Code Instruct ends a turn with <|im_end|>, which its generation_config.json does not
# name; a base model that begins a turn or another file's part has finished what was asked.
STOP_TOKENS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|im_start|>",
    "<fim_prefix>",
    "<fim_suffix>",
    "<fim_middle>",
    "<fim_pad>",
    # Code Llama's spellings.
    "▁<PRE>",
    "▁<SUF>",
    "▁<MID>",
    "▁<EOT>",
)


def stop_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that end a generation: the tokenizer's EOS set and what is there of `STOP_TOKENS`.

    Args:
        tokenizer: ours or mlx-lm's, whose EOS set includes the configs' ids, or one of
            transformers.
    """
    eos = getattr(tokenizer, "eos_token_ids", None)
    if not isinstance(eos, Collection):  # a tokenizer of transformers has a single one or none
        eos = [tokenizer.eos_token_id]
    named = [token_id(tokenizer, name) for name in STOP_TOKENS]
    return frozenset(int(i) for i in (*eos, *named) if i is not None)


class StopScanner:
    """Passes a stream of text on up to the first stop string, of which it lets nothing through.

    The string that is complete first ends the text; of several that end at the same character
    the longest. So the result does not depend on how the text was cut into pieces. Held back is
    what could still become a stop string, at most the longest one less a character.

    Args:
        stops: strings of at least one character; a single string is one stop.

    Attributes:
        found: the stop string that ended the text, None before.
        held: what came and was not passed on yet.

    Raises:
        EdgeError: an empty stop string.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        if "" in self._stops:
            raise EdgeError("a stop string is empty; leave it out or give it some text.")
        self._most = max((len(stop) for stop in self._stops), default=1) - 1
        self.held = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """Text that is certain now; nothing more once `found` is set."""
        if self.found is not None:
            return ""
        text, self.held = self.held + text, ""
        ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops]
        complete = min((end for end in ends if end[2] in text), default=None)
        if complete is not None:
            end, _, self.found = complete
            return text[: end - len(self.found)]
        for length in range(min(self._most, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                self.held = tail
                return text[:-length]
        return text

    def finish(self) -> str:
        """The rest: no more text comes, so what was held back is not a stop string."""
        rest, self.held = self.held, ""
        return rest
