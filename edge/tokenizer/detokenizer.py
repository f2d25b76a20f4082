"""Token ids to text as they come, without losing or changing a byte.

    detokenizer = StreamingDetokenizer(tokenizer)
    for token_id in ids:
        print(detokenizer.add(token_id), end="", flush=True)
    print(detokenizer.finish())

mlx-lm's detokenizers drop a leading space or decode a whole line again for every token. This one
runs the tokenizer's own decoder (the `decoder` of tokenizer.json) step by step, each step as a
stage that keeps only what later tokens could still change.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Protocol

# How the `tokenizers` package reads a byte token: <0x0A>, and by accident <0x+A>.
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
REPLACEMENT_CHARACTER = "\ufffd"
WHOLE_TEXT_STEPS = ("ByteLevel", "Fuse")  # a step after these sees one text, not tokens


class StreamingDetokenizer:
    """One stream of ids as text; a new stream needs a new object.

    What `add` and `finish` return, joined, is `tokenizer.decode(ids, skip_special_tokens=False,
    clean_up_tokenization_spaces=False)`: special tokens show as their text, ids that the
    tokenizer lacks (rows that pad the embedding) as nothing, and bytes that are no UTF-8 as the
    same U+FFFD. Time is linear in the number of ids, memory is what is held back.

    Held back are an incomplete character, and a run of byte tokens (<0x0A>) until its end: a
    later byte can make all of them U+FFFD. With a decoder of a kind that language models do not
    use (WordPiece, CTC, regular expressions) it is everything, and `finish` gives the text.

    Args:
        tokenizer: ours, mlx-lm's or one of transformers.
    """

    def __init__(self, tokenizer: Any):
        self._text: _Chain | _Late = _Late(tokenizer)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        stages = None if backend is None else _stages(_decoder_of(backend))
        if stages is not None:
            self._text = _Chain(backend, stages)

    def add(self, token_id: int) -> str:
        """The text that is certain with this id; "" while it could still change.

        Raises:
            OverflowError: the id is negative or beyond 32 bits, as `tokenizer.decode` does.
        """
        return self._text.add(token_id)

    def finish(self) -> str:
        """The text that was held back; add no ids after this."""
        return self._text.finish()


class _Late:
    """Decodes everything at the end: always right, never early."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._ids: list[int] = []

    def add(self, token_id: int) -> str:
        self._ids.append(token_id)
        return ""

    def finish(self) -> str:
        ids, self._ids = self._ids, []
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


class _Stage(Protocol):
    """One step of a decoder: tokens in, the tokens that are certain out."""

    def push(self, token: str) -> list[str]: ...

    def finish(self) -> list[str]: ...


class _Chain:
    """A decoder's stages, the first fed with the tokens of the ids."""

    def __init__(self, backend: Any, stages: list[_Stage]):
        self._token_of = backend.id_to_token
        self._stages = stages

    def add(self, token_id: int) -> str:
        token: str | None = self._token_of(token_id)
        return "" if token is None else "".join(self._through([token], self._stages))

    def finish(self) -> str:
        rest: list[str] = []
        for place, stage in enumerate(self._stages):
            rest += self._through(stage.finish(), self._stages[place + 1 :])
        return "".join(rest)

    @staticmethod
    def _through(tokens: list[str], stages: list[_Stage]) -> list[str]:
        for stage in stages:
            tokens = [out for token in tokens for out in stage.push(token)]
        return tokens


class _ByteLevel:
    """Each character is a byte; the bytes of all tokens are one UTF-8 text.

    So a character may be split over tokens, but not around a special token, whose bytes come
    between. A token with a character that stands for no byte (a space, a Chinese sign) is its
    own text. Python's decoder replaces invalid bytes exactly as Rust's from_utf8_lossy does.
    """

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> list[str]:
        try:
            data = bytes([BYTE_OF[character] for character in token])
        except KeyError:
            data = token.encode()
        return [self._utf8.decode(data)]

    def finish(self) -> list[str]:
        return [self._utf8.decode(b"", final=True)]


class _ByteFallback:
    """A run of byte tokens is its text, or one U+FFFD per byte if any of it is no UTF-8."""

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, token: str) -> list[str]:
        byte = BYTE_TOKEN.fullmatch(token)
        if byte is None:
            return [*self.finish(), token]
        self._run.append(int(byte[1], 16))
        return []

    def finish(self) -> list[str]:
        run, self._run = bytes(self._run), bytearray()
        if not run:
            return []
        try:
            return [run.decode()]
        except UnicodeDecodeError:
            return [REPLACEMENT_CHARACTER] * len(run)


class _Stateless:
    """What the stages below share: nothing is held back."""

    def finish(self) -> list[str]:
        return []


class _Metaspace(_Stateless):
    """The mark of a space is a space, or nothing in the first token."""

    def __init__(self, mark: str, drops_first: bool):
        self._mark = mark
        self._mark_becomes = "" if drops_first else " "

    def push(self, token: str) -> list[str]:
        text = token.replace(self._mark, self._mark_becomes)
        self._mark_becomes = " "
        return [text]


class _Replace(_Stateless):
    """One string for another, within a token."""

    def __init__(self, old: str, new: str):
        self._old = old
        self._new = new

    def push(self, token: str) -> list[str]:
        return [token.replace(self._old, self._new)]


class _Fuse(_Stateless):
    """All tokens are one text from here; that matters to the steps after it only."""

    def push(self, token: str) -> list[str]:
        return [token]


class _StripStart(_Stateless):
    """Drops up to `most` characters from the start of every token, or of the whole text."""

    def __init__(self, character: str, most: int, whole_text: bool):
        self._character = character
        self._most = most
        self._whole_text = whole_text

    def push(self, token: str) -> list[str]:
        leading = len(token) - len(token.lstrip(self._character))
        dropped = min(leading, self._most)
        if self._whole_text:
            self._most = self._most - dropped if dropped == len(token) else 0
        return [token[dropped:]]


def _decoder_of(backend: Any) -> dict[str, Any]:
    """The decoder as tokenizer.json describes it; {} if there is none."""
    if backend.decoder is None:
        return {}
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return decoder


def _stages(decoder: dict[str, Any]) -> list[_Stage] | None:
    """A decoder's steps as stages; None if one of them cannot stream."""
    stages: list[_Stage] = []
    whole_text = False
    for step in _steps(decoder):
        stage = _stage(step, whole_text)
        if stage is None:
            return None
        stages.append(stage)
        whole_text = whole_text or step["type"] in WHOLE_TEXT_STEPS
    return stages


def _steps(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of a decoder, sequences within sequences laid flat."""
    if decoder.get("type") != "Sequence":
        yield decoder
        return
    for step in decoder["decoders"]:
        yield from _steps(step)


def _stage(step: dict[str, Any], whole_text: bool) -> _Stage | None:
    """One step as a stage; None if the step can change text that was certain before it."""
    match step:
        case {"type": "Fuse"}:
            return _Fuse()
        case {"type": "Strip", "content": character, "start": most, "stop": 0}:
            return _StripStart(character, most, whole_text)
        case _ if whole_text:
            return None
        case {"type": "ByteLevel"}:
            return _ByteLevel()
        case {"type": "ByteFallback"}:
            return _ByteFallback()
        case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
            return _Metaspace(mark, drops_first=scheme != "never")
        case {"type": "Replace", "pattern": {"String": old}, "content": new}:
            return _Replace(old, new)
    return None


def _bytes_by_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


BYTE_OF = _bytes_by_character()
