"""A conversation with a model.

    conversation = Conversation(*edge.load("models/stable-code-instruct-3b/mlx-int4"))
    for event in conversation.ask("What does this do?"):
        print(event.text, end="", flush=True)

Every prompt is the whole conversation, computed from the first differing token on: answers are
put back as the ids that the model generated.

The answer has a quarter of the context, or max_tokens if that is less. If the conversation does
not fit the rest, the oldest turns are left out of the prompt (not of `messages`) until it takes
three quarters of the rest, so that the next prompts can reuse the cache. The system prompt and
the last question always stay.
"""

import contextlib
from bisect import bisect_left
from collections.abc import Generator, Sequence
from typing import Any

from edge.errors import EdgeError
from edge.generate.chat_prompt import ChatPrompt, GeneratedIds, PlainPrompt, can_chat
from edge.generate.decode import LlamaSource, open_source
from edge.generate.sampling import GREEDY, Sampling
from edge.generate.speculate import PromptLookup
from edge.generate.stream import StopScanner, TextEvent, TokenClock, text_events
from edge.generate.transcript import Message, split_system
from edge.model.stablelm import Model

Events = Generator[TextEvent, None, None]
# Questions and answers alternately, the first a question.
Turns = tuple[Message, ...]

# The answer's share of the context, and the share of the rest that turns keep after a drop.
ANSWER_SHARE, KEPT_SHARE = 1 / 4, 3 / 4


class Conversation:
    """Questions and answers with one model; a call that raises leaves it unchanged.

    A base model (`is_base`) reads only the last text.
    """

    def __init__(
        self,
        model: Model | LlamaSource,
        tokenizer: Any,
        *,
        system: str | None = None,
        kv_bits: int | None = None,
        draft: PromptLookup | None = None,
    ):
        self._tokenizer = tokenizer
        self.source = open_source(model, kv_bits, draft)
        self.is_base = not can_chat(tokenizer)
        self._prompt = PlainPrompt(tokenizer) if self.is_base else ChatPrompt(tokenizer)
        self._system: str | None = None
        self._turns: Turns = ()
        self._generated: dict[int, GeneratedIds] = {}  # by the answer's place in the turns
        # Of the last prompt: oldest turns that were left out, and tokens taken from the cache.
        self.dropped_turns = self.reused_tokens = 0
        self.context_limit = self.source.context_tokens
        self._asked: list[int] | None = None  # the last prompt, None after any other change
        self.system = system

    @property
    def messages(self) -> tuple[Message, ...]:
        """The system prompt, if any, and all questions and answers."""
        head = () if self._system is None else (Message("system", self._system),)
        return (*head, *self._turns)

    @property
    def context_tokens(self) -> int:
        """Number of tokens of the conversation, without turns that are left out."""
        if not self._turns:
            return 0
        ids = self._ids(self._turns, self.dropped_turns, answer=False)
        return min(len(ids), self.context_limit)

    @property
    def system(self) -> str | None:
        """The system prompt; a new one applies to the whole conversation from the next turn on."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if text:
            self._prompt.check_system()
        if (text or None) != self._system:
            self._change(text or None, self._turns)

    def ask(self, text: str, **options: Any) -> Events:
        """Yields the answer to a question as events of `stream_generate`, to be used up or closed.

        The options are its `sampling`, `max_tokens` and `stop`. An answer that is closed early,
        interrupted, or ended by max_tokens or the context is kept with `cut_off` set. The call
        raises an EdgeError if the question does not fit the context or the template refuses it.
        """
        return self._begin((*self._turns, Message("user", text)), **options)

    def regenerate(self, **options: Any) -> Events:
        """Answers the last question again; options and errors of `ask`.

        The old answer stays if the new one is cut off before its first text.
        """
        if not self._turns:
            raise EdgeError("there is no answer to give again; ask something first.")
        return self._begin(self._turns[:-1], **options)

    def undo(self) -> Message | None:
        """Removes the last question with its answer; returns the question, None without one."""
        if not self._turns:
            return None
        *older, question, _ = self._turns
        self._change(self._system, tuple(older))
        return question

    def clear(self) -> None:
        self._change(self._system, ())

    def restore(self, messages: Sequence[Message]) -> None:
        """Replaces the conversation with these messages, user and assistant alternately.

        A last question without an answer gets an empty one; `regenerate` answers it.
        """
        head, turns = split_system(messages)
        head = () if self.is_base else head
        for place, message in enumerate(turns):
            if message.role != ("user", "assistant")[place % 2]:
                raise EdgeError(
                    f"message {place + 1 + len(head)} is the {message.role}'s out of turn; choose "
                    f"a conversation in which user and assistant take turns."
                )
        if head:
            self._prompt.check_system()
        if len(turns) % 2:
            turns = (*turns, Message("assistant", "", cut_off=True))
        self._change(head[0].content or None if head else None, turns)
        self._generated.clear()

    def _change(self, system: str | None, turns: Turns) -> None:
        self._system, self._turns = system, turns
        self.dropped_turns, self._asked = 0, None

    def _begin(
        self,
        turns: Turns,
        sampling: Sampling = GREEDY,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Events:
        dropped, ids = self._fit(turns, max_tokens)
        clock, scanner = TokenClock(), StopScanner(stop)
        self.reused_tokens, tokens = self.source.generate(
            ids, max_tokens, sampling, on_prefill=clock.prefilled
        )
        fresh, draft = len(ids) - self.reused_tokens, self.source.draft
        events = text_events(tokens, self._tokenizer, scanner, clock, fresh, draft)
        self._asked = ids
        return self._answer(turns, dropped, ids, events)

    def _answer(self, turns: Turns, dropped: int, ids: list[int], events: Events) -> Events:
        if self._asked is not ids:
            raise EdgeError("the conversation changed before its answer was read; ask again.")
        seen: list[TextEvent] = []
        failed = False
        try:
            with contextlib.closing(events):
                for event in events:
                    seen.append(event)
                    yield event
        except Exception:
            failed = True
            raise
        finally:
            self._asked = None
            self._keep(turns, dropped, seen, failed)

    def _keep(self, turns: Turns, dropped: int, seen: Sequence[TextEvent], failed: bool) -> None:
        """Keeps an answer unless it is empty after a failure or a second try."""
        text = "".join(event.text for event in seen)
        stopped_by = seen[-1].stopped_by if seen else None
        cut_off = stopped_by in (None, "length")
        again = len(turns) < len(self._turns)
        if not text and cut_off and (failed or again):
            return
        ids = [token for event in seen for token in event.ids]
        if stopped_by == "stop token":  # the template writes it
            ids.pop()
        self._generated[len(turns)] = GeneratedIds.of(self._tokenizer, ids, text)
        self._turns = (*turns, Message("assistant", text, cut_off))
        self.dropped_turns = dropped

    def _fit(self, turns: Turns, max_tokens: int | None) -> tuple[int, list[int]]:
        limit = self.context_limit
        room = limit - max(1, min(int(limit * ANSWER_SHARE), max_tokens or limit))
        last = len(turns) // 2  # number of turns before the last question
        dropped = min(self.dropped_turns, last)
        ids = self._ids(turns, dropped)
        if len(ids) > room and dropped < last and not self.is_base:
            some = range(dropped + 1, last)
            wanted = int(room * KEPT_SHARE)
            dropped += 1 + bisect_left(
                some, True, key=lambda count: len(self._ids(turns, count)) <= wanted
            )
            ids = self._ids(turns, dropped)
        if len(ids) >= limit:
            raise EdgeError(
                f"the message has {len(ids)} tokens with the chat template and the model's context "
                f"ends at {limit}; shorten it by {len(ids) - limit + 1} or more."
            )
        return dropped, ids

    def _ids(self, turns: Turns, dropped: int, answer: bool = True) -> list[int]:
        head, _ = split_system(self.messages)
        shift, kept = len(head) - 2 * dropped, range(2 * dropped, len(turns))
        generated = {at + shift: ids for at, ids in self._generated.items() if at in kept}
        return self._prompt.ids([*head, *turns[kept.start :]], generated, answer)
