"""Token ids of a conversation in the model's chat template, or in ChatML without one.

In the rendered text the name of a control token in a message looks like the template's own. So
the template is rendered a second time with marks in place of the messages, and only names in the
template's own text become control tokens. Text between two control tokens is encoded in one
piece: the ids are those of the whole text wherever no message names a control token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from edge.errors import EdgeError
from edge.generate.stream import encode_beginning
from edge.generate.transcript import Message
from edge.tokenizer.tokenizer import encode_text, special_ids, token_id

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
# Stands for the content of message N: text that no template contains or changes.
MARK = "edge8c1f{}content"
MARKS = re.compile(MARK.format(r"(\d+)"))
# Number of texts between control tokens whose ids are cached: a long conversation twice.
CACHED_TEXTS = 4096
LONGEST_STOP_TOKENS = 64
NO_SYSTEM = "a base model takes no system prompt; begin your text with it."


@dataclass(frozen=True)
class GeneratedIds:
    """Ids that the model generated, and their text."""

    ids: tuple[int, ...] = ()
    text: str = ""

    @classmethod
    def of(cls, tokenizer: Any, ids: Sequence[int], content: str) -> GeneratedIds:
        """The longest beginning of the ids whose text begins the answer.

        The last ids may belong to a stop string, which is not in the answer.
        """
        for end in range(len(ids), max(-1, len(ids) - LONGEST_STOP_TOKENS - 1), -1):
            text: str = tokenizer.decode(ids[:end])
            if content.startswith(text):
                return cls(tuple(ids[:end]), text)
        return cls()


def can_chat(tokenizer: Any) -> bool:
    """True for a model with a chat template or ChatML's tokens."""
    has_chatml = all(token_id(tokenizer, name) is not None for name in (IM_START, IM_END))
    return bool(tokenizer.chat_template) or has_chatml


class PlainPrompt:
    """The prompt of a base model: only the last text of the user, without a template."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def ids(
        self, messages: Sequence[Message], generated: Mapping[int, GeneratedIds], answer: bool
    ) -> list[int]:
        last = max(place for place, message in enumerate(messages) if message.role == "user")
        ids = encode_beginning(self._tokenizer, messages[last].content)
        return [*ids, *generated.get(last + 1, GeneratedIds()).ids]

    def check_system(self) -> None:
        raise EdgeError(NO_SYSTEM)


class ChatPrompt:
    """Converts messages to ids for one model with a byte-level tokenizer."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        added = self._backend.get_added_tokens_decoder()
        self._control = {added[i].content: i for i in special_ids(self._backend)}
        # Longest first: as in tokenizers, the longest of the names at one place counts.
        names = sorted(filter(None, self._control), key=len, reverse=True)
        self._names = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
        self._encode = lru_cache(CACHED_TEXTS)(lambda text: encode_text(self._backend, text))

    def ids(
        self,
        messages: Sequence[Message],
        generated: Mapping[int, GeneratedIds] | None = None,
        answer: bool = True,
    ) -> list[int]:
        """The ids of a conversation; with `answer` they end with the beginning of an answer.

        `generated` messages, by their place, keep their ids: encoding their text may give others.
        Raises an EdgeError if the template refuses the messages, or changes a message that
        contains the name of a control token.
        """
        text = self.render(messages, answer)
        pieces = self._pieces(messages, answer, text)
        if pieces is None:
            for message in messages:
                found = self._names.search(message.content)
                if found is not None:
                    raise EdgeError(
                        f"a message of the {message.role} holds {found[0]}, which this model's "
                        f"chat template cannot tell from its own; leave it out."
                    )
            pieces = [(text, None)]
        return list(self._joined(pieces, generated or {}))

    def render(self, messages: Sequence[Message], answer: bool = True) -> str:
        if not self._tokenizer.chat_template:
            turns = [f"{IM_START}{m.role}\n{m.content}{IM_END}\n" for m in messages]
            return "".join(turns) + (f"{IM_START}assistant\n" if answer else "")
        plain = [{"role": message.role, "content": message.content} for message in messages]
        template = self._tokenizer.apply_chat_template
        return str(template(plain, add_generation_prompt=answer, tokenize=False))

    def check_system(self) -> None:
        """Raises an EdgeError if the template refuses or drops a system prompt."""
        system, user = Message("system", MARK.format(0)), Message("user", "x")
        self.render([user])
        reason = "its chat template leaves it out"
        try:
            if system.content in self.render([system, user]):
                return
        except EdgeError as error:
            reason = str(error).split("; ")[0]
        raise EdgeError(
            f"the model takes no system prompt: {reason}; say it in the first message instead."
        )

    def _pieces(
        self, messages: Sequence[Message], answer: bool, text: str
    ) -> list[tuple[str, int | None]] | None:
        """The template's own text (None) and contents by message; None if it changes contents."""
        marked = [replace(m, content=MARK.format(i)) for i, m in enumerate(messages)]
        try:
            first, *rest = MARKS.split(self.render(marked, answer))
        except EdgeError:
            return None  # the template depends on the contents
        pieces: list[tuple[str, int | None]] = [(first, None)]
        at = len(first)
        for place, after in zip(map(int, rest[::2]), rest[1::2], strict=True):
            content = messages[place].content
            forms = (content, content.rstrip(), content.lstrip(), content.strip())
            found = next((form for form in forms if text.startswith(form + after, at)), None)
            if found is None:
                return None
            pieces += [(found, place), (after, None)]
            at += len(found) + len(after)
        return pieces if text == "".join(part for part, _ in pieces) else None

    def _joined(
        self, pieces: Sequence[tuple[str, int | None]], generated: Mapping[int, GeneratedIds]
    ) -> Iterator[int]:
        text = ""
        for piece, message in pieces:
            known = GeneratedIds() if message is None else generated.get(message, GeneratedIds())
            if message is None:
                *between, last = self._names.split(piece)
                for before, name in zip(between[::2], between[1::2], strict=True):
                    yield from self._encode(text + before)
                    yield self._control[name]
                    text = ""
                text += last
            elif known.ids and piece.startswith(known.text):
                yield from self._encode(text)
                yield from known.ids
                text = piece[len(known.text) :]
            else:
                text += piece
        yield from self._encode(text)
