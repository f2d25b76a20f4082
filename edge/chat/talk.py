"""What the loop talks to: a conversation, or for a base model the continuation of a text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError
from edge.generate.conversation import Conversation
from edge.generate.sampling import GREEDY, Sampling
from edge.generate.stream import TextEvent, stream_generate
from edge.generate.transcript import Message, Transcript
from edge.model.kv_cache import cache_bytes, make_cache

if TYPE_CHECKING:
    from edge.generate.speculate import Drafter
    from edge.model.attention import Cache
    from edge.model.stablelm import Model

Events = Generator[TextEvent, None, None]


class Continuation:
    """A base model has no turns: every text is continued on its own, as it stands.

    What was typed and what came are kept as user's and assistant's messages, to be saved and
    taken back like a conversation's.
    """

    dropped_turns = 0
    reused_tokens = 0

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        *,
        kv_bits: int | None = None,
        draft: Drafter | None = None,
    ):
        self._model, self._tokenizer = model, tokenizer
        self._draft = draft
        self._make_cache: Callable[[], list[Cache]] = lambda: make_cache(model, kv_bits)
        self._make_cache()  # finds at once what no cache can be
        self._cache: list[Cache] = []
        self._messages: list[Message] = []
        self.transcript: Transcript | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """Texts and their continuations, by turns."""
        return tuple(self._messages)

    @property
    def system(self) -> str | None:
        """Nothing, and to set it is an error."""
        return None

    @system.setter
    def system(self, text: str | None) -> None:
        if text:
            raise EdgeError("a base model takes no system prompt; begin your text with it.")

    @property
    def context_tokens(self) -> int:
        """Positions of the last text and its continuation."""
        return int(self._cache[0].offset) if self._cache else 0

    @property
    def context_limit(self) -> int:
        """The model's."""
        return self._model.config.max_position_embeddings

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values."""
        return cache_bytes(self._cache)

    def ask(
        self,
        text: str,
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Events:
        """Continue a text."""
        self._cache = self._make_cache()
        events = stream_generate(
            self._model,
            self._tokenizer,
            text,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            cache=self._cache,
            draft=self._draft,
        )
        return self._kept(text, events)

    def _kept(self, text: str, events: Events) -> Events:
        came, cut_off = "", True
        if self.transcript is not None:
            self.transcript.user(text)
        try:
            for event in events:
                came += event.text
                cut_off = event.finish in (None, "length")
                if self.transcript is not None:
                    self.transcript.piece(event.text)
                yield event
        finally:
            events.close()
            self._messages += [Message("user", text), Message("assistant", came, cut_off)]
            if self.transcript is not None:
                self.transcript.end(cut_off)

    def regenerate(
        self,
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Events:
        """Continue the last text anew."""
        last = self.undo()
        if last is None:
            raise EdgeError("there is nothing to continue anew; type a text first.")
        return self.ask(last.content, sampling=sampling, max_tokens=max_tokens, stop=stop)

    def undo(self) -> Message | None:
        """Take back the last text and its continuation."""
        if not self._messages:
            return None
        *self._messages, text, _ = self._messages
        if self.transcript is not None:
            self.transcript.undo()
        return text

    def clear(self) -> None:
        """Forget all texts."""
        self._messages, self._cache = [], []
        if self.transcript is not None:
            self.transcript.clear()

    def restore(self, messages: Sequence[Message]) -> None:
        """Take over the texts of another conversation."""
        self._messages = [message for message in messages if message.role != "system"]
        if len(self._messages) % 2:
            self._messages.append(Message("assistant", "", cut_off=True))
        if self.transcript is not None:
            self.transcript.restart(self._messages)


Talk = Conversation | Continuation
