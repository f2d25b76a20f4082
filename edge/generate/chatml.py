"""A conversation as the ids that a model was trained to read.

The model's own chat template writes the text; a model that has ChatML's tokens and no template
gets ChatML. What a template makes of a conversation is one text, in which the name of a control
token in a message looks like the template's own. So the template also writes the conversation
with marks in place of the contents, which tells its own text from the contents, and only names in
its own text become control tokens. Between two of these, text of both is encoded in one piece, so
that the ids are those of the whole text wherever no message names a control token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from edge.errors import EdgeError
from edge.generate.transcript import Message
from edge.tokenizer.special_tokens import encode_text, special_ids, token_id

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
# Stands for the content of message N; no template has it, and none has a reason to change it.
MARK = "edge8c1f{}content"
MARKS = re.compile(MARK.format(r"(\d+)"))
# Texts between control tokens whose ids are kept: those of a long conversation, twice.
KEPT_TEXTS = 4096
# A stop string ends a text within this many tokens of where the generation ended.
STOP_TOKENS_MOST = 64


@dataclass(frozen=True)
class Said:
    """Ids that the model generated and the text that they are."""

    ids: tuple[int, ...] = ()
    text: str = ""

    @classmethod
    def of(cls, tokenizer: Any, ids: Sequence[int], content: str) -> Said:
        """The generated ids of an answer, as many as are its beginning.

        The last ones may be of a stop string, or of half a character, that the answer lacks.
        """
        for end in range(len(ids), max(-1, len(ids) - STOP_TOKENS_MOST - 1), -1):
            text: str = tokenizer.decode(
                list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            if content.startswith(text):
                return cls(tuple(ids[:end]), text)
        return cls()


@dataclass(frozen=True)
class _Piece:
    """A part of the rendered text: the template's own, or the content of a message."""

    text: str
    message: int | None = None


def can_chat(tokenizer: Any) -> bool:
    """Whether a model has a chat template, or ChatML's tokens to do without."""
    return _template_of(tokenizer) is not None or _has_chatml(tokenizer)


class ChatTemplate:
    """Messages to ids for one model.

    Args:
        tokenizer: of `edge.load`, or one of transformers; byte-level, as the family's are.

    Raises:
        EdgeError: the model was not trained to chat.
    """

    def __init__(self, tokenizer: Any):
        if not can_chat(tokenizer):
            raise EdgeError(
                f"the model has neither a chat template nor the tokens {IM_START} and {IM_END}, "
                f"so it is a base model; let it continue text with `edge complete`, or choose an "
                f"instruct model."
            )
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._control = _control_tokens(self._backend)
        self._names = _any_of(self._control)
        self._encode = lru_cache(KEPT_TEXTS)(self._encode_text)

    def ids(
        self,
        messages: Sequence[Message],
        said: Mapping[int, Said] | None = None,
        answer: bool = True,
    ) -> list[int]:
        """The ids of a conversation.

        Args:
            messages: the conversation, the system prompt first if there is one.
            said: what the model generated as the content of a message, by its place: these ids
                are used as they are, since encoding their text may give others.
            answer: whether it ends with the beginning of an answer.

        Raises:
            EdgeError: the template refuses these messages; or it changes their contents, and
                they hold the name of a control token, which could not be told from its own.
        """
        text = self.render(messages, answer)
        pieces = self._pieces(messages, answer, text)
        if pieces is None:
            self._check_contents(messages)
            pieces = [_Piece(text)]
        return list(self._joined(pieces, said or {}))

    def render(self, messages: Sequence[Message], answer: bool = True) -> str:
        """The text of a conversation, as the template writes it.

        Raises:
            EdgeError: the template refuses these messages.
        """
        plain = [{"role": message.role, "content": message.content} for message in messages]
        if _template_of(self._tokenizer) is None:
            return _chatml(plain, answer)
        try:
            text = self._tokenizer.apply_chat_template(
                plain, add_generation_prompt=answer, tokenize=False
            )
        except EdgeError:
            raise
        except Exception as error:  # what runs here is the template's code, so it can be any
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise EdgeError(
                f"the model's chat template refuses this conversation ({reason}); change the "
                f"messages, or the template beside the model."
            ) from None
        return str(text)

    def check_system(self) -> None:
        """Find out whether the template takes a system prompt.

        Raises:
            EdgeError: it refuses one, or leaves it out without a word.
        """
        system, user = Message("system", MARK.format(0)), Message("user", "x")
        self.render([user])
        try:
            text = self.render([system, user])
        except EdgeError as error:
            raise EdgeError(
                f"the model takes no system prompt: {str(error).split('; ')[0]}; leave it out, "
                f"or say it in the first message."
            ) from None
        if system.content not in text:
            raise EdgeError(
                "the model takes no system prompt: its chat template leaves it out; say it in "
                "the first message."
            )

    def _pieces(self, messages: Sequence[Message], answer: bool, text: str) -> list[_Piece] | None:
        """The rendered text in parts; None where they cannot be told from each other."""
        marked = [replace(m, content=MARK.format(i)) for i, m in enumerate(messages)]
        try:
            first, *rest = MARKS.split(self.render(marked, answer))
        except EdgeError:
            return None  # it looks into the contents
        if not text.startswith(first):
            return None
        pieces = [_Piece(first)]
        at = len(first)
        for place, after in zip(map(int, rest[::2]), rest[1::2], strict=True):
            content = _found(messages[place].content, after, text, at)
            if content is None:
                return None
            pieces += [_Piece(content, place), _Piece(after)]
            at += len(content) + len(after)
        return pieces if at == len(text) else None

    def _joined(self, pieces: Sequence[_Piece], said: Mapping[int, Said]) -> Iterator[int]:
        """Ids: of control tokens, of what was said, and of the texts between these."""
        text = ""
        for piece in pieces:
            if piece.message is None:
                *between, last = self._names.split(piece.text)
                for before, name in zip(between[::2], between[1::2], strict=True):
                    yield from self._encode(text + before)
                    yield self._control[name]
                    text = ""
                text += last
                continue
            known = said.get(piece.message, Said())
            if known.ids and piece.text.startswith(known.text):
                yield from self._encode(text)
                yield from known.ids
                text = piece.text[len(known.text) :]
            else:
                text += piece.text
        yield from self._encode(text)

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(encode_text(self._backend, text)) if text else ()

    def _check_contents(self, messages: Sequence[Message]) -> None:
        for message in messages:
            found = self._names.search(message.content)
            if found is not None:
                raise EdgeError(
                    f"a message of the {message.role} holds {found[0]}, which this model's chat "
                    f"template would mix up with its own; leave it out or write it otherwise."
                )


def _template_of(tokenizer: Any) -> Any:
    return getattr(tokenizer, "chat_template", None) or None


def _has_chatml(tokenizer: Any) -> bool:
    return all(token_id(tokenizer, name) is not None for name in (IM_START, IM_END))


def _chatml(messages: Sequence[Mapping[str, str]], answer: bool) -> str:
    turns = [f"{IM_START}{m['role']}\n{m['content']}{IM_END}\n" for m in messages]
    return "".join(turns) + (f"{IM_START}assistant\n" if answer else "")


def _control_tokens(backend: Any) -> dict[str, int]:
    """Tokens that mean something other than their text, flagged so or not."""
    added = backend.get_added_tokens_decoder()
    return {added[i].content: i for i in special_ids(backend) if added[i].content}


def _any_of(names: Mapping[str, int]) -> re.Pattern[str]:
    """Finds any of the names, the longest of those that begin at one place, as tokenizers do."""
    longest_first = sorted(names, key=len, reverse=True)
    # Without names: what matches nowhere.
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _found(content: str, after: str, text: str, at: int) -> str | None:
    """What a template made of a content that stands at a place: all of it, or trimmed."""
    forms = (content, content.rstrip(), content.lstrip(), content.strip())
    return next((form for form in forms if text.startswith(form + after, at)), None)
