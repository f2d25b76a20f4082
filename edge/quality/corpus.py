"""Texts to measure on, cut into windows of token ids.

Texts are concatenated, each followed by the tokenizer's EOS if it has one, as in training. Windows
do not overlap; an incomplete last one is dropped. The first token of a window is not scored, nor
is EOS, which has no bytes. A limit on tokens selects windows evenly from all texts. If the
tokenizer begins texts with BOS, as Llama's does, BOS replaces the first token of each window, as in
llama.cpp's perplexity.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edge.convert.checkpoint import Checkpoint
from edge.convert.convert import is_synthetic
from edge.errors import EdgeError
from edge.formats.files import (
    MAX_TEXT_BYTES,
    LfsPointer,
    decode_text,
    read_small_file,
    read_text,
    unreadable,
)
from edge.quality import TOKENS, WINDOW_TOKENS, WINDOWS
from edge.tokenizer.detokenizer import BYTE_TOKEN, bytes_of
from edge.tokenizer.tokenizer import SPACE, Tokenizer

BUNDLED = Path(__file__).parents[1] / "data" / "corpus"
SKIPPED_FOLDERS = frozenset(("__pycache__", "node_modules", "site-packages", "venv"))
VENV_MARK = "pyvenv.cfg"

Ids = np.ndarray[Any, np.dtype[np.int32]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class SourceText:
    """A text and its path within the folder that was read."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Description of a corpus; the digest is of all names and texts."""

    name: str
    sha256: str
    texts: int
    bytes: int


@dataclass(frozen=True)
class Windows:
    """Ids (windows, tokens), which of them are scored, and their bytes of text.

    `scored` and `bytes` are (windows, tokens - 1), without the first token; bytes are 0 where a
    token is not scored. `left_out` is the number of windows of the corpus that are not used.
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
        """Length of a window."""
        return int(self.ids.shape[1])

    @cached_property
    def digests(self) -> list[str]:
        """Digest of each window's ids, the only part of the corpus that its scores depend on."""
        return [hashlib.sha256(ids.tobytes()).hexdigest()[:32] for ids in self.ids]


def iter_texts(path: Path | None) -> Iterator[SourceText]:
    """Texts that are not blank, read one at a time and sorted by path.

    `path` is a file, a folder, whose binary, hidden and installed files are skipped, or None for
    the bundled sample. An EdgeError if it is missing or a file that is not text.
    """
    texts: Iterable[SourceText] = _folder_texts(path or BUNDLED)
    if path is not None and not path.is_dir():
        texts = [SourceText(path.name, read_text(path))]
    return (text for text in texts if text.text.strip())


def _folder_texts(root: Path) -> Iterator[SourceText]:
    for file in _files(root):
        if root == BUNDLED and file.name == "README.md":
            continue
        with suppress(LfsPointer):
            data = read_small_file(file)
            with suppress(EdgeError):  # binary
                yield SourceText(file.relative_to(root).as_posix(), decode_text(data, str(file)))


def _files(root: Path) -> list[Path]:
    """Regular files below a folder, sorted by path, without symbolic links."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not _is_skipped(Path(folder, name))]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    regular = (file for file in found if file.is_file() and not file.is_symlink())
    return sorted(file for file in regular if file.stat().st_size <= MAX_TEXT_BYTES)


def _is_skipped(folder: Path) -> bool:
    name = folder.name
    return name.startswith(".") or name in SKIPPED_FOLDERS or (folder / VENV_MARK).exists()


def _refuse(error: OSError) -> None:
    raise unreadable(Path(error.filename), error)


def windows_of(
    limit: int,
    tokenizer: Tokenizer,
    corpus: Path | None = None,
    window: int | None = None,
    tokens: int | None = None,
) -> Windows:
    """Windows of a corpus; `limit` is the model's context, None a default of `edge eval`.

    At most `tokens` are used, 0 for the whole corpus. An EdgeError if the corpus cannot be used.
    """
    window = min(WINDOW_TOKENS, limit) if window is None else window
    if window > limit:
        raise EdgeError(f"--window {window} is longer than the model's context of {limit}.")
    most = max(TOKENS, WINDOWS * window) if tokens is None else tokens or None
    # The name alone: documents are shared.
    name = "bundled sample" if corpus is None else corpus.resolve().name or str(corpus)
    return make_windows(iter_texts(corpus), tokenizer, name, window, most)


def make_windows(
    texts: Iterable[SourceText], tokenizer: Tokenizer, name: str, window: int, tokens: int | None
) -> Windows:
    """Windows of texts: at most `tokens` ids, rounded down to whole windows; None for all."""
    stream, corpus = _read(texts, tokenizer, name)
    found = len(stream[0])
    whole = found // window
    wanted = whole if tokens is None else min(whole, tokens // window)
    chosen = [i * whole // wanted for i in range(wanted)]
    ids, sizes, own = (a[: whole * window].reshape(whole, window)[chosen] for a in stream)
    scored = own[:, 1:].astype(bool)
    if not scored.any():
        raise EdgeError(
            f"{min(found, tokens or found)} tokens of {name} are too few for a window of {window} "
            f"with a token to score; give a longer text, a smaller --window or more --tokens."
        )
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer.encode("")[:1] == [bos]:
        ids[:, 0] = bos
    return Windows(ids, scored, sizes[:, 1:] * scored, corpus, whole - wanted)


def _read(texts: Iterable[SourceText], tokenizer: Tokenizer, name: str) -> tuple[list[Ids], Corpus]:
    """Ids, their bytes, and 1 for a token of a text or 0 for EOS, each (tokens,)."""
    digest, text_bytes, token_bytes = hashlib.sha256(), [], TokenBytes(tokenizer)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts = [np.empty((3, 0), np.int32)]
    for source in texts:
        data = source.text.encode()
        text_bytes.append(len(data))
        for piece in (source.name.encode(), data):
            digest.update(len(piece).to_bytes(8, "little") + piece)
        ids = tokenizer.encode(source.text, add_special_tokens=False)
        columns = (ids, token_bytes.lengths(ids, source.text), [1] * len(ids))
        parts.append(np.array(columns, np.int32))
        parts.append(np.array([end, [0] * len(end), [0] * len(end)], np.int32))
    corpus = Corpus(name, digest.hexdigest(), len(text_bytes), sum(text_bytes))
    return list(np.concatenate(parts, axis=1)), corpus


class TokenBytes:
    """Lengths of tokens in bytes of UTF-8, for figures that do not depend on the vocabulary.

    Exact for byte-level BPE and for SentencePiece with byte tokens. A special token in a text is as
    long as its spelling.
    """

    def __init__(self, tokenizer: Tokenizer):
        backend = tokenizer.backend_tokenizer
        self._length = cache(self._measure)
        self._bytes_of = getattr(backend, "token_bytes", None)  # llama.cpp's
        if self._bytes_of is not None:
            return
        decoder = b"" if backend.decoder is None else backend.decoder.__getstate__()
        self._byte_level = b"ByteLevel" in decoder
        self._name_of = tokenizer.convert_ids_to_tokens

    def lengths(self, ids: Sequence[int], text: str) -> list[int]:
        """Bytes of each token of a text, without the space that SentencePiece puts before it."""
        found = [self._length(token_id) for token_id in ids]
        if found and sum(found) == len(text.encode()) + 1 and not text.startswith(" "):
            found[0] -= 1
        return found

    def _measure(self, token_id: int) -> int:
        if self._bytes_of is not None:
            return len(self._bytes_of(token_id))
        name = self._name_of(token_id) or ""
        if self._byte_level:
            return len(bytes_of(name))
        if BYTE_TOKEN.fullmatch(name):
            return 1
        return len(name.replace(SPACE, " ").encode())


def check_trained(checkpoint: Checkpoint) -> None:
    if is_synthetic(checkpoint):
        raise EdgeError(
            f"{checkpoint.source.origin} has random weights, whose quality means nothing; name a "
            f"trained model."
        )
