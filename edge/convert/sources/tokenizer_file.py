"""Does a tokenizer.json hold together, and does the network have a row for every token?

A token without a row makes a network read memory that is not its embedding. One id for two
tokens is what two programs read in two ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edge.errors import EdgeError
from edge.formats.files import parse_json_object

FILE = "tokenizer.json"


def check_tokenizer(data: bytes, vocab_size: int, where: str = FILE) -> None:
    """Check the tokens of a tokenizer, and that the tokenizers package reads it alike.

    Args:
        data: the file.
        vocab_size: rows of the embedding.
        where: the file's name for messages.

    Raises:
        EdgeError: it is no tokenizer, contradicts itself, or has more tokens than rows.
    """
    ids = token_ids(parse_json_object(data, where), vocab_size, where)
    read = _read_by_tokenizers(data, where)
    for text, token_id in ids.items():
        if read.get(text) != token_id:
            raise _no_tokenizer(
                where, f"it numbers {text!r} {token_id}, which readers number {read.get(text)}"
            )


def token_ids(content: Mapping[str, Any], vocab_size: int, where: str = FILE) -> dict[str, int]:
    """Every token's id, those of the model and those added.

    Args:
        content: tokenizer.json, parsed.
        vocab_size: rows of the embedding.
        where: the file's name for messages.

    Raises:
        EdgeError: as check_tokenizer, which compares with another reader too.
    """
    try:
        ids = _ids(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = str(error) if type(error) is ValueError else repr(error)
        raise _no_tokenizer(where, reason) from None
    if ids and max(ids.values()) >= vocab_size:
        raise EdgeError(
            f"{where} has token id {max(ids.values())}, the model's embedding has {vocab_size} "
            f"rows; the two belong to different models, so download both again."
        )
    return ids


def _ids(content: Mapping[str, Any]) -> dict[str, int]:
    """Each text with its id, which no other has."""
    ids: dict[str, int] = {}
    by_id: dict[int, str] = {}
    for text, token_id in _tokens(content):
        if type(text) is not str or type(token_id) is not int or token_id < 0:
            raise ValueError(f"token {text!r} has the id {token_id!r}")
        if by_id.setdefault(token_id, text) != text:
            raise ValueError(f"{by_id[token_id]!r} and {text!r} have both the id {token_id}")
        if ids.setdefault(text, token_id) != token_id:
            raise ValueError(f"{text!r} has the ids {ids[text]} and {token_id}")
    return ids


def _tokens(content: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Every token with its id, those of the model and those added."""
    vocab = content["model"]["vocab"]
    if isinstance(vocab, list):  # a unigram model: token and score, the id is the place
        yield from ((text, i) for i, (text, _) in enumerate(vocab))
    else:
        yield from vocab.items()
    for token in content.get("added_tokens") or ():
        yield token["content"], token["id"]


def _read_by_tokenizers(data: bytes, where: str) -> dict[str, int]:
    """Every token's id as the package that will read the artefact has it."""
    from tokenizers import Tokenizer

    try:
        ids: dict[str, int] = Tokenizer.from_buffer(data).get_vocab(with_added_tokens=True)
        return ids
    except Exception as error:  # it has no class for its errors
        raise _no_tokenizer(where, str(error)) from None


def _no_tokenizer(where: str, reason: str) -> EdgeError:
    return EdgeError(f"{where} is not a tokenizer ({reason}); download it again.")
