"""Special tokens by name, and text in which their names stay text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def token_id(tokenizer: Any, name: str) -> int | None:
    """The id of a token of the vocabulary by its name, None if there is no such token."""
    found = tokenizer.convert_tokens_to_ids(name)
    # An unknown name gives the id of the unknown token, where there is one: ask back.
    if found is None or tokenizer.convert_ids_to_tokens(found) != name:
        return None
    return int(found)


def special_ids(backend: Any) -> frozenset[int]:
    """Ids that mean something other than their text, whether they are flagged as special or not.

    Args:
        backend: a `tokenizers.Tokenizer`.
    """
    added = backend.get_added_tokens_decoder().items()
    return frozenset(i for i, token in added if token.special or _is_markup(token.content))


def encode_text(backend: Any, text: str) -> list[int]:
    """Ids of text in which the names of special tokens are text.

    Args:
        backend: a `tokenizers.Tokenizer`.
        text: anything.
    """
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        control = special_ids(backend)
        if control.isdisjoint(ids):
            return ids
        # A name that the tokenizer does not flag as special: a cut within it breaks it up.
        names = sorted(filter(None, map(backend.id_to_token, control)))
        pieces = _cut_within(text, names)
        return [i for piece in pieces for i in backend.encode(piece, add_special_tokens=False).ids]
    finally:
        backend.encode_special_tokens = before


def _is_markup(name: str) -> bool:
    """An added token that looks like <fim_middle> or <|im_end|>, not like spaces."""
    return re.fullmatch(r"<\|?\w+\|?>", name) is not None


def _cut_within(text: str, names: Sequence[str]) -> list[str]:
    """Text in pieces, none of which holds any of the names."""
    pattern = "|".join(f"(?={re.escape(name)})" for name in names if len(name) > 1)
    cuts = [match.start() + 1 for match in re.finditer(pattern, text)]
    return [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]
