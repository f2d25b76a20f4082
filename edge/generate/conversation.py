"""A conversation with a model, without anything of a terminal.

    conversation = Conversation(*edge.load("models/stable-code-instruct-3b/mlx-int4"))
    for event in conversation.ask("What does this do?"):
        print(event.text, end="", flush=True)

Every prompt is the whole conversation, of which only what follows the first differing token is
computed: an answer is put back as the very ids that the model generated.

Room for the answer is a quarter of the context, or max_tokens if that is less. If the rest is too
small, the oldest turns are left out of the prompt, but not of `messages`, until what stays takes
three quarters of it: the prompts of some turns to come then begin in the same way. The system
prompt and the last question always stay.
"""

import contextlib
from bisect import bisect_left
from collections.abc import Generator, Sequence
from typing import Any

from edge.errors import EdgeError
from edge.generate.chat_prompt import ChatPrompt, GeneratedIds
from edge.generate.sampling import GREEDY
from edge.generate.sources import PrefixCache
from edge.generate.speculate import PromptLookup
from edge.generate.stream import TextEvent, stream_generate
from edge.generate.transcript import Message, split_system
from edge.model.kv_cache import cache_bytes, make_cache
from edge.model.stablelm import Model

Events = Generator[TextEvent, None, None]
# Questions and answers in turns, the first a question.
Turns = tuple[Message, ...]

# Of the context for the answer, and of the rest for turns that stay once older ones are dropped.
ANSWER_SHARE, KEPT_SHARE = 1 / 4, 3 / 4


class Conversation:
    """Questions and answers with one model. What raises leaves the conversation as it was."""

    _prompt_class: type[ChatPrompt] = ChatPrompt

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        *,
        system: str | None = None,
        kv_bits: int | None = None,
        draft: PromptLookup | None = None,
    ):
        self._model, self._tokenizer, self._draft = model, tokenizer, draft
        self._prompt = self._prompt_class(tokenizer)
        self._prefix = PrefixCache(lambda: make_cache(model, kv_bits))
        self._system: str | None = None
        self._turns: Turns = ()
        self._generated: dict[int, GeneratedIds] = {}  # by the answer's place in the turns
        self._dropped = self.reused_tokens = 0  # of the last prompt
        self._asked: list[int] | None = None  # the last prompt, if nothing changed since
        self._answering = False
        self.system = system

    @property
    def messages(self) -> tuple[Message, ...]:
        """The system prompt, if there is one, and every question that has an answer."""
        return (*self._head(), *self._turns)

    @property
    def context_limit(self) -> int:
        """Positions that the model was trained on."""
        return self._model.config.max_position_embeddings

    @property
    def context_tokens(self) -> int:
        """Tokens of the context that the conversation takes, without what is left out."""
        if not self._turns:
            return 0
        ids = self._ids(self._turns, self._dropped, answer=False)
        return min(len(ids), self.context_limit)

    @property
    def dropped_turns(self) -> int:
        """Number of the oldest turns that were left out of the last prompt."""
        return self._dropped

    @property
    def cache_bytes(self) -> int:
        """Memory of the cached keys and values."""
        return cache_bytes(self._prefix.layers)

    @property
    def system(self) -> str | None:
        """The system prompt; a new one is for the whole conversation, from the next turn on."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        self._check_idle()
        if text:
            check_text(text, "system prompt")
            self._prompt.check_system()
        if (text or None) != self._system:
            self._change(text or None, self._turns)

    def ask(self, text: str, **options: Any) -> Events:
        """Asks something; the answer comes as the events of `stream_generate`.

        The options are `sampling`, `max_tokens` and `stop`, as there. However it ends, what came
        is the answer: a generator that is closed early, an interrupt within it, max_tokens or the
        end of the context leave one with `cut_off` set. The call itself raises an EdgeError if
        the question does not fit the context, or the template refuses it.
        """
        check_text(text, "message")
        return self._begin((*self._turns, Message("user", text)), **options)

    def regenerate(self, **options: Any) -> Events:
        """Answers the last question again; options and errors of `ask`.

        If it is cut off before anything came, the answer there was stays.
        """
        self._check_idle()
        if not self._turns:
            raise EdgeError("there is no answer to give again; ask something first.")
        return self._begin(self._turns[:-1], **options)

    def undo(self) -> Message | None:
        """Takes back the last question with its answer; the question, or None if there is none."""
        self._check_idle()
        if not self._turns:
            return None
        *older, question, _ = self._turns
        self._change(self._system, tuple(older))
        return question

    def clear(self) -> None:
        """Takes back everything but the system prompt."""
        self._check_idle()
        self._change(self._system, ())

    def restore(self, messages: Sequence[Message]) -> None:
        """Makes it the conversation of these messages, which must take turns.

        A last question without an answer gets an empty one; `regenerate` answers it.
        """
        self._check_idle()
        head, turns = split_system(messages)
        for place, message in enumerate(turns):
            if message.role != ("user", "assistant")[place % 2]:
                raise EdgeError(
                    f"message {place + 1 + len(head)} is the {message.role}'s out of turn; choose "
                    f"a conversation in which user and assistant take turns."
                )
            check_text(message.content, "message")
        if head:
            self._prompt.check_system()
        if len(turns) % 2:
            turns = (*turns, Message("assistant", "", cut_off=True))
        self._change(head[0].content or None if head else None, turns)
        self._generated.clear()

    def _head(self) -> list[Message]:
        return [] if self._system is None else [Message("system", self._system)]

    def _change(self, system: str | None, turns: Turns) -> None:
        """Older turns may fit again, and no answer asked for does."""
        self._system, self._turns = system, turns
        self._dropped, self._asked = 0, None

    def _check_idle(self) -> None:
        if self._answering:
            raise EdgeError("an answer is under way; let it end or close it first.")

    def _begin(self, turns: Turns, **options: Any) -> Events:
        self._check_idle()
        options = {"sampling": GREEDY, "max_tokens": None, **options}
        dropped, ids = self._fit(turns, options["max_tokens"])
        # A penalty looks at the tokens before, and is shown only those that are computed.
        reused = self.reused_tokens = self._prefix.reuse(ids, options["sampling"].looks_back)
        options |= {"cache": self._prefix.layers, "draft": self._draft, "history": ids[:reused]}
        events = stream_generate(self._model, self._tokenizer, ids[reused:], **options)
        self._asked = ids
        return self._answer(turns, dropped, ids, events)

    def _answer(self, turns: Turns, dropped: int, ids: list[int], events: Events) -> Events:
        if self._asked is not ids:
            raise EdgeError("the conversation went on since this answer was asked for; ask again.")
        came: list[TextEvent] = []
        failed = False
        try:
            self._answering = True
            with self._prefix.feeding(ids) as fed, contextlib.closing(events):
                for event in events:
                    fed.extend(event.ids)
                    came.append(event)
                    yield event
        except Exception:
            failed = True
            raise
        finally:
            self._answering, self._asked = False, None
            self._keep(turns, dropped, came, failed)

    def _keep(self, turns: Turns, dropped: int, came: Sequence[TextEvent], failed: bool) -> None:
        """Keeps what came as the answer, unless nothing came by a failure or a second try."""
        text = "".join(event.text for event in came)
        finish = came[-1].finish if came else None
        cut_off = finish in (None, "length")
        again = len(turns) < len(self._turns)
        if not text and cut_off and (failed or again):
            return
        ids = [token for event in came for token in event.ids]
        if finish == "stop token":  # the template's to write
            ids.pop()
        self._generated[len(turns)] = GeneratedIds.of(self._tokenizer, ids, text)
        self._turns = (*turns, Message("assistant", text, cut_off))
        self._dropped = dropped

    def _fit(self, turns: Turns, max_tokens: int | None) -> tuple[int, list[int]]:
        limit = self.context_limit
        room = limit - max(1, min(int(limit * ANSWER_SHARE), max_tokens or limit))
        last = len(turns) // 2  # so many are before the last question
        dropped = min(self._dropped, last)
        ids = self._ids(turns, dropped)
        if len(ids) > room and dropped < last:
            some = range(dropped + 1, last)
            wanted = int(room * KEPT_SHARE)
            dropped += 1 + bisect_left(
                some, True, key=lambda count: len(self._ids(turns, count)) <= wanted
            )
            ids = self._ids(turns, dropped)
        if len(ids) >= limit:
            raise EdgeError(
                f"the message has {len(ids)} tokens with what frames it and the model's context "
                f"ends at {limit}; shorten it by {len(ids) - limit + 1} or more."
            )
        return dropped, ids

    def _ids(self, turns: Turns, dropped: int, answer: bool = True) -> list[int]:
        head, first = self._head(), 2 * dropped
        kept = range(first, len(turns))
        by_place = self._generated.items()
        generated = {len(head) + at - first: ids for at, ids in by_place if at in kept}
        return self._prompt.ids([*head, *turns[first:]], generated, answer)


def check_text(text: str, what: str) -> None:
    """Refuses half characters, which no tokenizer encodes."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise EdgeError(f"the {what} is not UTF-8; check the encoding of where it comes from.")
