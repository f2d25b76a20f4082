"""Streaming detokenizer: the text of token ids as they arrive, exact to the byte.

mlx-lm's detokenizers drop a leading space, or decode a whole line again for every token. This one
returns the text of the tokenizer's own decoder, as far as later tokens cannot change it.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

# Byte tokens as the `tokenizers` package parses them: <0x0A>, and by accident <0x+A>.
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
REPLACEMENT_CHARACTER = "\ufffd"
# The decoder of SentencePiece models, without the optional Strip at its end.
SENTENCEPIECE_STEPS = [
    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]


class StreamingDetokenizer:
    """Text of one stream of ids, for a tokenizer of edge, mlx-lm or transformers.

    The joined results of `add` and `finish` are `tokenizer.decode(ids)`, special tokens included.
    Held back are an incomplete character, a run of byte tokens (<0x0A>), since a later byte can
    turn all of them into U+FFFD, and all text of a decoder that is neither byte-level nor
    SentencePiece's. With `continues` the ids follow other text, and its first space is kept.
    """

    def __init__(self, tokenizer: Any, continues: bool = False):
        self._tokenizer = tokenizer
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._decoder: Utf8Decoder | _SentencePiece | None
        if hasattr(backend, "token_bytes"):  # llama.cpp's
            self._decoder = Utf8Decoder(backend.adds_space and not continues)
            self._token_of = backend.token_bytes
        else:
            state = backend and backend.decoder and backend.decoder.__getstate__()
            self._decoder = _decoder(_flat(json.loads(state)), continues) if state else None
            self._token_of = backend and backend.id_to_token
        self._ids: list[int] = []  # held back without a decoder

    def add(self, token_id: int) -> str:
        """The text that later ids cannot change; "" if there is none yet."""
        if self._decoder is None:
            self._ids.append(token_id)
            return ""
        token = self._token_of(token_id)
        return "" if token is None else self._decoder.add(token)

    def finish(self) -> str:
        """The text that was held back; add no ids after this."""
        if self._decoder is not None:
            return self._decoder.finish()
        ids, self._ids = self._ids, []
        how = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode(ids, **how))


def _flat(step: dict[str, Any]) -> list[dict[str, Any]]:
    """A decoder's steps as in tokenizer.json, nested sequences flattened."""
    nested = step["decoders"] if step["type"] == "Sequence" else []
    return [inner for part in nested for inner in _flat(part)] or [step]


def _decoder(steps: list[dict[str, Any]], continues: bool) -> Utf8Decoder | _SentencePiece | None:
    """The incremental decoder for these steps; None if there is none."""
    match steps:
        case [{"type": "ByteLevel"}]:
            return Utf8Decoder(strips=False)
        case [*first, {"type": "Strip", "content": " ", "start": most, "stop": 0}] if (
            first == SENTENCEPIECE_STEPS
        ):
            return _SentencePiece(0 if continues else most)
    return _SentencePiece(0) if steps == SENTENCEPIECE_STEPS else None


class Utf8Decoder:
    """Text of tokens whose bytes are one UTF-8 text, without a first space if `strips`.

    Python's decoder replaces invalid bytes exactly as Rust's from_utf8_lossy does.
    """

    def __init__(self, strips: bool) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips = strips

    def add(self, token: bytes | str) -> str:
        text = self._utf8.decode(token if isinstance(token, bytes) else bytes_of(token))
        if not text or not self._strips:
            return text
        self._strips = False
        return text.removeprefix(" ")

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def bytes_of(token: str) -> bytes:
    """A byte-level token's bytes; one with a character that is not in the alphabet is its text."""
    try:
        return bytes([BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()


class _SentencePiece:
    """U+2581 is a space, and a run of byte tokens is its text, or one U+FFFD per byte.

    Up to `stripped` spaces are dropped from the start of the whole text.
    """

    def __init__(self, stripped: int) -> None:
        self._stripped = stripped
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
        dropped = min(self._stripped, len(text) - len(text.lstrip(" ")))
        self._stripped = self._stripped - dropped if dropped == len(text) else 0
        return text[dropped:]


# GPT-2's alphabet: printable Latin-1 is its own byte, U+0100 and following are the other bytes.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(0x100) if byte not in _PRINTABLE]
BYTE_OF = dict(
    zip(map(chr, [*_PRINTABLE, *range(0x100, 0x144)]), _PRINTABLE + _OTHERS, strict=True)
)
