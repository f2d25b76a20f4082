"""Token ids to text as they come, without losing or changing a byte.

mlx-lm's detokenizers drop a leading space or decode a whole line again for every token. This one
gives what the tokenizer's own decoder would, as far as later tokens cannot change it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

# How the `tokenizers` package reads a byte token: <0x0A>, and by accident <0x+A>.
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
REPLACEMENT_CHARACTER = "\ufffd"
# The decoder of SentencePiece models, without the Strip that may follow.
SENTENCEPIECE_STEPS = [
    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]


class StreamingDetokenizer:
    """One stream of ids as text, of our tokenizer, mlx-lm's or one of transformers.

    What `add` and `finish` return, joined, is `tokenizer.decode(ids)` with special tokens as their
    text. Time is linear in the number of ids. Held back are an incomplete character, and a run of
    byte tokens (<0x0A>) until its end: a later byte can make all of them U+FFFD. With a decoder
    that is neither byte-level nor SentencePiece's it is everything.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._text = backend and _text_of(list(_steps(backend)))
        self._token_of: Any = backend and backend.id_to_token
        self._late: list[int] = []

    def add(self, token_id: int) -> str:
        """The text that is certain with this id; "" while it could still change."""
        if self._text is None:
            self._late.append(token_id)
            return ""
        token = self._token_of(token_id)
        return "" if token is None else self._text.add(token)

    def finish(self) -> str:
        """The text that was held back; add no ids after this."""
        if self._text is not None:
            return self._text.finish()
        ids, self._late = self._late, []
        how = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode(ids, **how))


def _steps(backend: Any) -> Iterator[dict[str, Any]]:
    """The decoder's steps as tokenizer.json describes them, nested sequences laid flat."""
    waiting = [] if backend.decoder is None else [json.loads(backend.decoder.__getstate__())]
    while waiting:
        step = waiting.pop(0)
        if step["type"] == "Sequence":
            waiting = step["decoders"] + waiting
        else:
            yield step


def _text_of(steps: list[dict[str, Any]]) -> _ByteLevel | _SentencePiece | None:
    match steps:
        case [{"type": "ByteLevel"}]:
            return _ByteLevel()
        case [*first, {"type": "Strip", "content": " ", "start": most, "stop": 0}]:
            return _SentencePiece(most) if first == SENTENCEPIECE_STEPS else None
    return _SentencePiece(0) if steps == SENTENCEPIECE_STEPS else None


class _ByteLevel:
    """Each character is a byte; the bytes of all tokens are one UTF-8 text.

    A token with a character that stands for no byte (a space, a Chinese sign) is its own text.
    Python's decoder replaces invalid bytes exactly as Rust's from_utf8_lossy does.
    """

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: str) -> str:
        try:
            data = bytes([BYTE_OF[character] for character in token])
        except KeyError:
            data = token.encode()
        return self._utf8.decode(data)

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _SentencePiece:
    """Marks are spaces, and a run of byte tokens is its text, or one U+FFFD per byte.

    Up to `most` spaces are dropped from the start of the whole text.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._run = bytearray()

    def add(self, token: str) -> str:
        byte = BYTE_TOKEN.fullmatch(token)
        if byte is None:
            return self._without_start(self._end_run() + token.replace("\u2581", " "))
        self._run.append(int(byte[1], 16))
        return ""

    def finish(self) -> str:
        return self._without_start(self._end_run())

    def _end_run(self) -> str:
        run, self._run = bytes(self._run), bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return REPLACEMENT_CHARACTER * len(run)

    def _without_start(self, text: str) -> str:
        dropped = min(self._most, len(text) - len(text.lstrip(" ")))
        self._most = self._most - dropped if dropped == len(text) else 0
        return text[dropped:]


# GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(0x100) if byte not in _PRINTABLE]
BYTE_OF = dict(
    zip(map(chr, [*_PRINTABLE, *range(0x100, 0x144)]), _PRINTABLE + _OTHERS, strict=True)
)
