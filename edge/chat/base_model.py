"""Base models have no turns: every text is continued on its own, as it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge.errors import EdgeError
from edge.generate.chat_prompt import ChatPrompt, GeneratedIds
from edge.generate.conversation import Conversation
from edge.generate.stream import encode_beginning
from edge.generate.transcript import Message


class PlainText(ChatPrompt):
    """In place of a chat template: of a conversation only the last text is read."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def ids(
        self,
        messages: Sequence[Message],
        generated: Mapping[int, GeneratedIds] | None = None,
        answer: bool = True,
    ) -> list[int]:
        """The ids of the user's last text, and what the model generated after it."""
        last = max(place for place, message in enumerate(messages) if message.role == "user")
        ids = encode_beginning(self._tokenizer, messages[last].content)
        return [*ids, *(generated or {}).get(last + 1, GeneratedIds()).ids]

    def check_system(self) -> None:
        """Refuses a system prompt."""
        raise EdgeError("a base model takes no system prompt; begin your text with it.")


class Continuation(Conversation):
    """Texts as the user's messages, and how the model continues them as the assistant's."""

    _prompt_class = PlainText
    dropped_turns = 0

    def restore(self, messages: Sequence[Message]) -> None:
        """Makes it the conversation of these messages, without their system prompt."""
        super().restore([message for message in messages if message.role != "system"])
