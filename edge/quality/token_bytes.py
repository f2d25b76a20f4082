"""How many bytes of text each token is, for figures per byte, which no vocabulary changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge.tokenizer.detokenizer import BYTE_OF, BYTE_TOKEN
from edge.tokenizer.tokenizer import Tokenizer

# SentencePiece's sign for a space.
METASPACE = "\u2581"


class TokenBytes:
    """Lengths of a tokenizer's tokens in bytes of UTF-8.

    Exact for byte-level BPE, whose tokens are bytes, and for SentencePiece with its byte tokens.
    A special token that a text spells out is as long as it is written.
    """

    def __init__(self, tokenizer: Tokenizer):
        backend = tokenizer.backend_tokenizer
        self._byte_level = "ByteLevel" in str(_kind(backend))
        self._added = {i: t.content for i, t in backend.get_added_tokens_decoder().items()}
        self._name_of = tokenizer.convert_ids_to_tokens
        self._known: dict[int, int] = {}

    def lengths(self, ids: Sequence[int], text: str) -> list[int]:
        """The length of every token of a text.

        A space that SentencePiece put before the text is not the text's and does not count.
        """
        found = [self._length(i) for i in ids]
        if found and sum(found) == len(text.encode()) + 1 and not text.startswith(" "):
            found[0] -= 1
        return found

    def _length(self, token_id: int) -> int:
        if token_id not in self._known:
            self._known[token_id] = self._measure(token_id)
        return self._known[token_id]

    def _measure(self, token_id: int) -> int:
        if token_id in self._added:
            return len(self._added[token_id].encode())
        name = self._name_of(token_id) or ""
        if self._byte_level:
            return sum(1 if c in BYTE_OF else len(c.encode()) for c in name)
        if BYTE_TOKEN.fullmatch(name):
            return 1
        return len(name.replace(METASPACE, " ").encode())


def _kind(backend: Any) -> str:
    """How the backend writes its tokens down, as its decoder describes it."""
    return "" if backend.decoder is None else backend.decoder.__getstate__().decode()
