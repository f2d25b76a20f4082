"""A GGUF file's tokenizer as llama.cpp itself has it, so any that llama.cpp knows."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from edge.llama_cpp.session import LlamaSession, library
from edge.tokenizer.detokenizer import Utf8Decoder
from edge.tokenizer.tokenizer import Tokenizer, adds_space


class Encoded(NamedTuple):
    """Ids of a text."""

    ids: list[int]


class AddedToken(NamedTuple):
    """A token that is not text; `special` ones are control tokens."""

    content: str
    special: bool


class Vocabulary:
    """llama.cpp's vocabulary with the methods of a `tokenizers.Tokenizer` that edge uses.

    With `encode_special_tokens` the names of control tokens are plain text.
    """

    def __init__(self, session: LlamaSession):
        self._session = session  # frees the vocabulary
        self._lib, self._vocab = library(), session.vocab
        self.encode_special_tokens = False
        self.adds_space = adds_space(self)

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoded:
        """Ids of a text, with BOS and EOS as the file asks if `add_special_tokens`."""
        return Encoded(self._tokenize(text, add_special_tokens))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of ids; unknown ids are skipped."""
        decoder = Utf8Decoder(self.adds_space)
        skipped = self._special if skip_special_tokens else frozenset()
        pieces = [decoder.add(self.token_bytes(i)) for i in ids if i not in skipped]
        return "".join(pieces) + decoder.finish()

    def get_vocab_size(self) -> int:
        return self._session.vocab_size

    def get_vocab(self) -> dict[str, int]:
        return {str(self.id_to_token(i)): i for i in range(self.get_vocab_size())}

    def token_to_id(self, name: str) -> int | None:
        """Id of a control or added token by its name."""
        ids = self._tokenize(name, False, control=True)
        found = [i for i in (ids[0], ids[-1]) if self.id_to_token(i) == name] if ids else []
        return found[0] if found else None

    def id_to_token(self, token_id: int) -> str | None:
        """Name of a token; None for an unknown id."""
        if not 0 <= token_id < self.get_vocab_size():
            return None
        return str(self._lib.llama_vocab_get_text(self._vocab, token_id).decode("utf-8", "replace"))

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Control tokens and added ones by id."""
        return self._added

    @cached_property
    def _added(self) -> dict[int, AddedToken]:
        lib = self._lib
        control = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        either = control | lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        kinds = (lib.llama_vocab_get_attr(self._vocab, i) for i in range(self.get_vocab_size()))
        return {
            i: AddedToken(str(self.id_to_token(i)), bool(kind & control))
            for i, kind in enumerate(kinds)
            if kind & either
        }

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(i for i, token in self._added.items() if token.special)

    def _tokenize(self, text: str, add_special: bool, control: bool | None = None) -> list[int]:
        data = text.encode()
        control = not self.encode_special_tokens if control is None else control
        count = len(data) + 8
        while True:
            ids = (self._lib.llama_token * count)()
            count = self._lib.llama_tokenize(
                self._vocab, data, len(data), ids, len(ids), add_special, control
            )
            if count >= 0:
                return list(ids[:count])
            count = -count

    def token_bytes(self, token_id: int) -> bytes:
        """A token's part of a text; that of a control token is its name."""
        if not 0 <= token_id < self.get_vocab_size():
            return b""
        room = 64
        while True:
            piece = ctypes.create_string_buffer(room)
            count = self._lib.llama_token_to_piece(self._vocab, token_id, piece, room, 0, True)
            if count >= 0:
                return piece.raw[:count]
            room = -count


def read_tokenizer(session: LlamaSession) -> Tokenizer:
    """The tokenizer of an open GGUF file, with its chat template."""
    lib, vocab = library(), session.vocab
    vocabulary: Any = Vocabulary(session)
    known = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("sep", "seperator"), ("pad", "padding")):
        token_id = getattr(lib, f"llama_vocab_{name}")(vocab)
        # Of a file without BOS or EOS llama.cpp takes GPT-2's 11 for both, which may be any text.
        given = session.metadata(f"tokenizer.ggml.{key}_token_id") == str(token_id)
        if given or token_id in vocabulary.get_added_tokens_decoder():
            known[f"{name}_token"] = str(vocabulary.id_to_token(token_id))
    tokenizer = Tokenizer(vocabulary, known, session.chat_template)
    # EOS, EOT and other tokens that llama.cpp takes for the end of a generation.
    tokenizer.eos_token_ids.update(
        i for i in vocabulary.get_added_tokens_decoder() if lib.llama_vocab_is_eog(vocab, i)
    )
    return tokenizer
