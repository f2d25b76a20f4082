"""Texts as windows of token ids: what every artefact is scored on, and which tokens count.

Texts follow each other, each ended by the tokenizer's EOS if it has one, as models are trained.
Windows do not overlap. In each the first token has nothing before it and is not scored; nor is an
EOS between texts, which is no byte of any. What does not fill a window at the end is dropped.
Where fewer tokens are asked for than there are, windows are taken from all over the texts, evenly
apart: the first ones would be of the first files only.

Where a tokenizer begins texts with BOS, as Llama's does, so does each window: in place of its own
first token, as llama.cpp's perplexity has it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.errors import EdgeError
from edge.quality.sizes import TOKENS, WINDOW_TOKENS
from edge.quality.texts import SourceText
from edge.quality.token_bytes import TokenBytes
from edge.tokenizer.tokenizer import Tokenizer

Ids = np.ndarray[Any, np.dtype[np.int32]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

SMALLEST_WINDOW = 2
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Corpus:
    """What was read: its name, digest of all names and texts, their number and bytes."""

    name: str
    sha256: str
    texts: int
    bytes: int


@dataclass(frozen=True)
class Windows:
    """Equal windows of ids, and which of their tokens are scored.

    Attributes:
        ids: (windows, tokens).
        scored: (windows, tokens - 1), of the second and later tokens.
        bytes: (windows, tokens - 1), of text in each of them; 0 where it is not scored.
        corpus: what they were cut from.
        left_out: how many windows more the corpus has.
    """

    ids: Ids
    scored: Flags
    bytes: Ids
    corpus: Corpus
    left_out: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Ids in a window."""
        return int(self.ids.shape[1])

    @property
    def scored_tokens(self) -> int:
        """Tokens that count, in all windows."""
        return int(self.scored.sum())

    @property
    def scored_bytes(self) -> int:
        """Bytes of text in them."""
        return int(self.bytes.sum())


def make_windows(
    texts: Iterable[SourceText],
    tokenizer: Tokenizer,
    vocab_size: int,
    name: str,
    window: int = WINDOW_TOKENS,
    tokens: int | None = TOKENS,
) -> Windows:
    """Cut texts into windows.

    Args:
        texts: read one at a time; only their ids are kept.
        tokenizer: the checkpoint's.
        vocab_size: the network's, which may have more ids than the tokenizer, never fewer.
        name: of the corpus.
        window: ids in a window, 2 or more.
        tokens: how many ids to use at most, rounded down to whole windows; None for all.

    Raises:
        EdgeError: no window fits, or the texts have ids beyond the vocabulary.
    """
    _check_sizes(window, tokens)
    stream, corpus = _read(texts, tokenizer, name)
    _check_stream(stream[0], vocab_size, window, name)
    whole = stream[0].size // window
    wanted = whole if tokens is None else min(whole, tokens // window)
    chosen = [i * whole // wanted for i in range(wanted)]
    ids, lengths, scored = (a[: whole * window].reshape(whole, window)[chosen] for a in stream)
    _begin_with_bos(ids, tokenizer)
    counted = scored[:, 1:].astype(bool)
    if not counted.any():
        raise EdgeError(f"{name} has no token that could be scored; name a longer text.")
    return Windows(ids, counted, lengths[:, 1:] * counted, corpus, whole - wanted)


def _check_sizes(window: int, tokens: int | None) -> None:
    if window < SMALLEST_WINDOW:
        raise EdgeError(f"--window {window} scores no token; use {SMALLEST_WINDOW} or more.")
    if tokens is not None and tokens < window:
        raise EdgeError(
            f"--tokens {tokens} fills no window of {window}; ask for more, or a shorter --window."
        )


def _read(
    texts: Iterable[SourceText], tokenizer: Tokenizer, name: str
) -> tuple[tuple[Ids, Ids, Ids], Corpus]:
    """Ids, their bytes and whether they count (each one dimension), and what they are of."""
    digest, sizes = hashlib.sha256(), []
    parts: list[tuple[Ids, Ids, Ids]] = []
    measure, eos = TokenBytes(tokenizer), tokenizer.eos_token_id
    for source in texts:
        data = source.text.encode()
        sizes.append(len(data))
        for piece in (source.name.encode(), data):
            digest.update(len(piece).to_bytes(8, "little") + piece)
        parts.append(_tokens(source.text, tokenizer, measure, eos))
    if not any(sizes):
        raise EdgeError(f"{name} has no text; name a file or folder that has.")
    ids, lengths, scored = (np.concatenate([p[k] for p in parts]) for k in range(3))
    return (ids, lengths, scored), Corpus(name, digest.hexdigest(), len(sizes), sum(sizes))


def _tokens(
    text: str, tokenizer: Tokenizer, measure: TokenBytes, eos: int | None
) -> tuple[Ids, Ids, Ids]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    end = [] if eos is None else [eos]
    columns = (
        [*ids, *end],
        [*measure.lengths(ids, text), *(0 for _ in end)],
        [*(1 for _ in ids), *(0 for _ in end)],
    )
    a, b, c = (np.array(column, np.int32) for column in columns)
    return a, b, c


def _check_stream(ids: Ids, vocab_size: int, window: int, name: str) -> None:
    if ids.size and int(ids.max()) >= vocab_size:
        raise EdgeError(
            f"{name} has token {int(ids.max())}, and the network knows {vocab_size}: its tokenizer "
            f"is another model's; download the checkpoint again."
        )
    if ids.size < window:
        raise EdgeError(
            f"{name} has {ids.size} tokens, which fill no window of {window}; name a longer text "
            f"or a shorter --window."
        )


def _begin_with_bos(ids: Ids, tokenizer: Tokenizer) -> None:
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer.encode("")[:1] == [bos]:
        ids[:, 0] = bos


def digests(windows: Windows) -> Iterator[bytes]:
    """One per window."""
    return map(window_digest, windows.ids)


def window_digest(ids: Ids) -> bytes:
    """Of a window's ids: what its scores depend on beside the artefacts."""
    return hashlib.sha256(ids.tobytes()).digest()[:DIGEST_BYTES]
