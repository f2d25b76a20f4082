"""A conversation with a model, without anything of a terminal.

    conversation = Conversation(*edge.load("models/stable-code-instruct-3b/mlx-int4"))
    for event in conversation.ask("What does this do?"):
        print(event.text, end="", flush=True)

Every prompt is the whole conversation, the system prompt first and once. Of a prompt only what
differs from the last one is computed, from the first differing token on: an answer is put back
as the very ids that the model generated, so that a next question pays for itself alone.

What does not fit the model's context: room for the answer is a quarter of it, or max_tokens if
that is less. If the rest is too small for the conversation, the oldest turns, question and answer,
are left out of the prompt until what stays takes three quarters of it, so that the prompts of some
turns to come still begin in the same way. The system prompt and the last question always stay, and
may take the room of the answer, too. What is left out stays in `messages`.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError
from edge.generate.chatml import ChatTemplate, can_chat
from edge.generate.prefix_cache import PrefixCache
from edge.generate.sampling import GREEDY, Sampling
from edge.generate.stream import TextEvent, stream_generate
from edge.generate.transcript import Message
from edge.generate.turns import Answer, Turn, check_text, messages_of, turns_of
from edge.model.kv_cache import cache_bytes, make_cache

if TYPE_CHECKING:
    from edge.generate.speculate import Drafter
    from edge.model.stablelm import Model

__all__ = ["Conversation", "Events", "Message", "can_chat"]

Events = Generator[TextEvent, None, None]

# What the answer may have of the context before older turns give way to it.
ANSWER_SHARE = 1 / 4
# What turns that stay may take of the rest, once older ones are left out.
KEPT_SHARE = 3 / 4


@dataclass(frozen=True, eq=False)
class _Plan:
    """An answer to come: the turns it ends, the prompt for them, and its events."""

    turns: tuple[Turn, ...]
    dropped: int
    ids: list[int]
    events: Events
    again: bool


class Conversation:
    """Questions and answers with one model. What raises leaves the conversation as it was.

    Args:
        model: the network, as `edge.load` returns it.
        tokenizer: its tokenizer.
        system: the system prompt; None or "" for none.
        kv_bits: bits of cached keys and values, see `make_cache`.
        draft: proposes tokens, so that they come faster; see `generate_tokens`.

    Raises:
        EdgeError: the model was not trained to chat, takes no system prompt, or has no such
            cache.
    """

    _template_class: type[ChatTemplate] = ChatTemplate

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        *,
        system: str | None = None,
        kv_bits: int | None = None,
        draft: Drafter | None = None,
    ):
        self._model, self._tokenizer = model, tokenizer
        self._draft = draft
        self._template = self._template_class(tokenizer)
        self._prefix = PrefixCache(lambda: make_cache(model, kv_bits))
        self._system: str | None = None
        self._turns: tuple[Turn, ...] = ()
        self._dropped = self._reused = 0
        self._plan: _Plan | None = None  # the answer asked for last, if nothing changed since
        self._answering = False
        self.system = system

    # --- what is there

    @property
    def messages(self) -> tuple[Message, ...]:
        """The system prompt, if there is one, and every question with its answer.

        A question whose answer is under way is not there yet.
        """
        return tuple(messages_of(self._system, self._turns))

    @property
    def context_limit(self) -> int:
        """Positions that the model was trained on."""
        return self._model.config.max_position_embeddings

    @property
    def context_tokens(self) -> int:
        """How much of the context the conversation takes, without what is left out."""
        if not self._turns:
            return 0
        ids = self._ids(self._turns[self._dropped :], answer=False)
        return min(len(ids), self.context_limit)

    @property
    def dropped_turns(self) -> int:
        """How many of the oldest turns were left out of the last prompt."""
        return self._dropped

    @property
    def reused_tokens(self) -> int:
        """How many of the last prompt's tokens did not have to be computed."""
        return self._reused

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
            self._template.check_system()
        if (text or None) != self._system:
            self._change(text or None, self._turns)

    # --- what can be done

    def ask(
        self,
        text: str,
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Events:
        """Ask something; the answer comes as the events of `stream_generate`.

        However it ends, what came is the answer: a generator that is closed early, an interrupt
        within it or the end of the room leave one with `cut_off` set. Nothing happens before
        the first event is asked for.

        Args:
            text: the question.
            sampling: how tokens are chosen.
            max_tokens: at most so many; None goes on to the end of the context.
            stop: strings that end the answer.

        Raises:
            EdgeError: the question does not fit the context, the template refuses it, or an
                answer is under way. Raised by the call itself.
        """
        check_text(text, "message")
        return self._begin((*self._turns, Turn(text)), False, sampling, max_tokens, stop)

    def regenerate(
        self,
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Events:
        """Answer the last question again; arguments and errors of `ask`.

        If it is cut off before anything came, the answer there was stays.
        """
        self._check_idle()
        if not self._turns:
            raise EdgeError("there is no answer to give again; ask something first.")
        turns = (*self._turns[:-1], Turn(self._turns[-1].question))
        return self._begin(turns, True, sampling, max_tokens, stop)

    def undo(self) -> Message | None:
        """Take back the last question with its answer; the question, or None if there is none."""
        self._check_idle()
        if not self._turns:
            return None
        question = Message("user", self._turns[-1].question)
        self._change(self._system, self._turns[:-1])
        return question

    def clear(self) -> None:
        """Take back everything but the system prompt."""
        self._check_idle()
        self._change(self._system, ())

    def restore(self, messages: Sequence[Message]) -> None:
        """Be the conversation of these messages, as `read_transcript` returns them.

        A last question without an answer gets an empty one that was cut off; `regenerate`
        answers it.

        Raises:
            EdgeError: questions and answers do not take turns, or the model takes no system
                prompt and there is one.
        """
        self._check_idle()
        system, turns = turns_of(messages)
        if system is not None:
            self._template.check_system()
        self._change(system, turns)

    # --- how

    def _change(self, system: str | None, turns: tuple[Turn, ...]) -> None:
        """Another conversation: older turns may fit again, and no answer asked for does."""
        self._system, self._turns = system, turns
        self._dropped, self._plan = 0, None

    def _check_idle(self) -> None:
        if self._answering:
            raise EdgeError("an answer is under way; let it end or close it first.")

    def _begin(
        self,
        turns: tuple[Turn, ...],
        again: bool,
        sampling: Sampling,
        max_tokens: int | None,
        stop: Sequence[str],
    ) -> Events:
        """Prepare an answer, which finds everything that can be refused."""
        self._check_idle()
        dropped, ids = self._fit(turns, max_tokens)
        # A penalty looks at the tokens before, and is shown only those that are computed.
        self._reused = self._prefix.reuse(ids, sampling.looks_back)
        events = stream_generate(
            self._model,
            self._tokenizer,
            ids[self._reused :],
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            cache=self._prefix.layers,
            draft=self._draft,
            history=ids[: self._reused],
        )
        self._plan = _Plan(turns, dropped, ids, events, again)
        return self._answer(self._plan)

    def _answer(self, plan: _Plan) -> Events:
        if self._plan is not plan:
            raise EdgeError("the conversation went on since this answer was asked for; ask again.")
        answer, failed = Answer(self._tokenizer), False
        try:
            self._answering = True
            with self._prefix.feeding(plan.ids) as fed, contextlib.closing(plan.events):
                for event in plan.events:
                    fed.extend(event.ids)
                    answer.add(event)
                    yield event
        except Exception:
            failed = True
            raise
        finally:
            self._answering, self._plan = False, None
            self._keep(plan, answer, failed)

    def _keep(self, plan: _Plan, answer: Answer, failed: bool) -> None:
        """Make what came the answer; or nothing, if nothing came and nobody asked for that."""
        *older, turn = plan.turns
        nothing = not answer.text and answer.cut_off
        if not (nothing and (failed or plan.again)):
            message = Message("assistant", answer.text, answer.cut_off)
            turn = replace(turn, answer=message, said=answer.said())
            self._turns, self._dropped = (*older, turn), plan.dropped

    def _fit(self, turns: tuple[Turn, ...], max_tokens: int | None) -> tuple[int, list[int]]:
        """How many turns to leave out, and the prompt of the others."""
        limit = self.context_limit
        room = limit - max(1, min(int(limit * ANSWER_SHARE), max_tokens or limit))
        dropped, last = min(self._dropped, len(turns) - 1), len(turns) - 1
        ids = self._ids(turns[dropped:])
        if len(ids) > room and dropped < last:
            some = range(dropped + 1, last)
            wanted = int(room * KEPT_SHARE)
            fits = bisect_left(some, True, key=lambda n: len(self._ids(turns[n:])) <= wanted)
            dropped = dropped + 1 + fits
            ids = self._ids(turns[dropped:])
        if len(ids) >= limit:
            system = "" if self._system is None else " with the system prompt"
            raise EdgeError(
                f"the message has {len(ids)} tokens{system} and the model's context ends at "
                f"{limit}, one of which is for the answer; shorten it by {len(ids) - limit + 1} "
                f"or more."
            )
        return dropped, ids

    def _ids(self, turns: Sequence[Turn], answer: bool = True) -> list[int]:
        """The prompt of these turns."""
        first = 1 if self._system is None else 2  # the first answer's place
        said = {first + 2 * n: turn.said for n, turn in enumerate(turns)}
        return self._template.ids(list(messages_of(self._system, turns)), said, answer)
