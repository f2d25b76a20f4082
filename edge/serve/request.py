"""The one request and the one stream of events that all dialects use.

A dialect makes a `Request` of what it is sent, and words of its own of the events: for each answer
pieces of text and one `End`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge.errors import EdgeError
from edge.generate.sampling import GREEDY, Sampling
from edge.generate.transcript import Message
from edge.tokenizer.fim_tokens import FIM_NAMES

# Where the client gives none, and nothing is filled in; llama-server's and Ollama's.
TEMPERATURE = 0.8
RANDOM_SEED = 2**32 - 1  # and -1
AnswerCount = Annotated[int, Meta(ge=1, le=16)]
LogprobCount = Annotated[int, Meta(ge=0, le=20)]
# Each piece of text is searched for every one of them.
MOST_STOPS, LONGEST_STOP = 64, 1000


class Refused(EdgeError):
    """A request that is not answered; `status` is HTTP's."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Text:
    """A prompt of text and ids; names of special tokens in the text are these tokens."""

    parts: tuple[str | int, ...]


@dataclass(frozen=True)
class Hole:
    """The place between a prefix and a suffix; `files` are others, the most important last."""

    prefix: str
    suffix: str
    files: tuple[str, ...] = ()


class Part(msgspec.Struct):
    """A part of a message; only text is read."""

    type: Literal["text"] = "text"
    text: str = ""


class SentMessage(msgspec.Struct):
    """A message as clients send it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    def message(self) -> Message:
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return Message("system" if self.role == "developer" else self.role, text)


@dataclass(frozen=True)
class Chat:
    """A conversation to be answered."""

    messages: tuple[Message, ...]

    @classmethod
    def of(cls, sent: Sequence[SentMessage]) -> "Chat":
        """Refuses a conversation in which the user says nothing."""
        if not any(message.role == "user" for message in sent):
            raise Refused("messages has no message of the user; add one.")
        return cls(tuple(message.message() for message in sent))


Prompt = Text | Hole | Chat


@dataclass(frozen=True)
class Request:
    """What is asked for: one answer for each of `samplings`.

    `max_tokens` None goes on to the end of the context, 0 only fills the cache. `max_predict_s`
    counts from the first token and ends an answer once it has a line end. With `logprobs` each
    token carries its own and those of that many of the most probable ones. Benchmarks ignore stop
    tokens, but not in a hole.
    """

    prompt: Prompt
    max_tokens: int | None
    samplings: tuple[Sampling, ...] = (GREEDY,)
    stop: tuple[str, ...] = ()
    max_predict_s: float | None = None
    logprobs: int | None = None
    ignores_stop_tokens: bool = False


@dataclass(frozen=True)
class Token:
    """A generated token; `text` and log probabilities only where they were asked for."""

    id: int
    text: str = ""
    logprob: float = 0.0
    top: tuple[tuple[int, str, float], ...] = ()  # id, text, log probability


@dataclass(frozen=True)
class EnergyUse:
    """Joules of one answer; `boundary` says what the meter covers."""

    prefill_j: float
    decode_j: float
    boundary: str

    @property
    def total_j(self) -> float:
        return self.prefill_j + self.decode_j


@dataclass(frozen=True)
class Usage:
    """Counts and stamps (`time.monotonic_ns`) of one answer.

    `cached_tokens` of the prompt were not computed again; `generated_tokens` include a stop token.
    Energy is None without a meter, or where it did not cover the answer.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    begin_ns: int
    prefilled_ns: int
    end_ns: int
    energy: EnergyUse | None = None

    @property
    def prefill_s(self) -> float:
        return (self.prefilled_ns - self.begin_ns) / 1e9

    @property
    def decode_s(self) -> float:
        return (self.end_ns - self.prefilled_ns) / 1e9


@dataclass(frozen=True)
class Piece:
    """A piece of an answer's text, which can be empty, and the tokens since the last piece."""

    index: int
    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class End:
    """The end of an answer.

    `stopped_by` is "stop token", "stop string", "length", "time" or a rule of
    `edge.generate.fim_stop`; `stop` is the stop string.
    """

    index: int
    stopped_by: str
    stop: str | None
    usage: Usage

    @property
    def reason(self) -> Literal["stop", "length"]:
        """The reason in the words of OpenAI and Ollama."""
        return "length" if self.stopped_by in ("length", "time") else "stop"


Event = Piece | End


class AnswerFields(msgspec.Struct):
    """Sampling and stops as clients send them; names and defaults are llama-server's."""

    temperature: float | None = None
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: Annotated[int, Meta(ge=-1)] = 64
    seed: Annotated[int, Meta(ge=-1)] = -1
    stop: str | list[str] = ""
    ignore_eos: bool = False

    def request(
        self,
        prompt: Prompt,
        max_tokens: int | None,
        context_tokens: int,
        count: int = 1,
        **more: Any,
    ) -> Request:
        """A request for `count` answers; `more` are its other fields."""
        return Request(
            prompt=prompt,
            max_tokens=max_tokens,
            samplings=self._samplings(prompt, count, context_tokens),
            stop=checked_stop(self.stop),
            ignores_stop_tokens=self.ignore_eos,
            **more,
        )

    def _samplings(self, prompt: Prompt, count: int, context_tokens: int) -> tuple[Sampling, ...]:
        """Those of `count` answers, each with a seed of its own.

        Without a temperature the first answer of an infill is greedy, all else is drawn.
        """
        drawn = TEMPERATURE if self.temperature is None else self.temperature
        last = context_tokens if self.repeat_last_n < 0 else self.repeat_last_n
        seed = None if self.seed in (-1, RANDOM_SEED) else self.seed
        sampling = Sampling(
            temperature=drawn,
            top_p=min(1.0, self.top_p),
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            repetition_penalty=self.repeat_penalty if last and self.repeat_penalty != 1 else None,
            repetition_context=max(1, last),
            seed=seed,
        )
        is_greedy = self.temperature is None and fills_in(prompt)
        first = replace(sampling, temperature=0.0) if is_greedy else sampling
        rest = (replace(sampling, seed=None if seed is None else seed + i) for i in range(1, count))
        return (first, *rest)


def fills_in(prompt: Prompt) -> bool:
    """True for a hole, and for a text in which the client has named the tokens of one."""
    if not isinstance(prompt, Text):
        return isinstance(prompt, Hole)
    texts = [part for part in prompt.parts if isinstance(part, str)]
    return any(name in text for text in texts for name in FIM_NAMES)


def checked_stop(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings as clients give them, one or several; empty ones are left out."""
    found = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(found) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in found):
        raise Refused(
            f"stop has more than {MOST_STOPS} strings or one of more than {LONGEST_STOP} "
            f"characters; send fewer or shorter ones."
        )
    return tuple(text for text in found if text)
