"""From a prompt to text: events as the tokens come, or one string.

import edge
model, tokenizer = edge.load("models/demo/mlx-int4")
for event in edge.stream_generate(model, tokenizer, "def fib(n):"):
    print(event.text, end="", flush=True)
print(event.stats)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edge.generate.decode import cache_length, generate_tokens
from edge.generate.sampling import GREEDY, Sampling
from edge.generate.stop import StopScanner, stop_ids
from edge.tokenizer.detokenizer import StreamingDetokenizer

if TYPE_CHECKING:
    from edge.generate.speculate import Drafter
    from edge.model.stablelm import Cache, Model

# "length" is max_tokens or the end of the model's context, whichever came first.
Finish = Literal["stop token", "stop string", "length"]


@dataclass(frozen=True)
class Stats:
    """What one generation took, by one clock; the time that the caller took between events counts.

    Attributes:
        prompt_tokens: tokens of the prompt, without what the cache held before.
        generated_tokens: tokens generated, a stop token included.
        prefill_s: from the call until the whole prompt was computed.
        ttft_s: from the call until the first token was there; None if there was none.
        decode_tok_s: (N - 1) / (t_N - t_1); None for fewer than two tokens.
        drafted_tokens: tokens that a drafter proposed and the model checked.
        accepted_tokens: those of them that are in the answer.
    """

    prompt_tokens: int
    generated_tokens: int
    prefill_s: float
    ttft_s: float | None
    decode_tok_s: float | None
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class TextEvent:
    """One step of a generation.

    Attributes:
        text: text that is certain now; often a token's, "" while a character or a stop string
            may be under way. Joined over all events it is the answer.
        ids: the tokens that this step took, a stop token included.
        finish: None, and in the last event why it is the last.
        stats: in the last event only.
    """

    text: str
    ids: tuple[int, ...]
    finish: Finish | None
    stats: Stats | None


def stream_generate(
    model: Model,
    tokenizer: Any,
    prompt: str | Sequence[int],
    *,
    max_tokens: int | None = 256,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    cache: Sequence[Cache] | None = None,
    draft: Drafter | None = None,
    history: Sequence[int] = (),
) -> Generator[TextEvent, None, None]:
    """Yield the continuation of a prompt as it comes: an event per token and a last one.

    Ends at a stop token (`stop_ids`), a stop string, `max_tokens`, or the end of the model's
    context. Neither stop tokens nor stop strings are in the text.

    Args:
        model: the network, as `edge.load` returns it.
        tokenizer: its tokenizer.
        prompt: text or ids. Text gets the tokenizer's own beginning (BOS, where it has one)
            unless it has it already or continues a cache. Empty text begins with the model's
            BOS, as in llama.cpp.
        max_tokens: at most so many tokens; None goes on to the end of the context.
        sampling: how tokens are chosen.
        stop: strings that end the text.
        cache: what came before (see `generate_tokens`, which says what it holds afterwards).
        draft: proposes tokens so that they come faster (see `generate_tokens`).
        history: the ids in the cache, for the drafter.

    Raises:
        EdgeError: raised by the call itself; as for `generate_tokens`, or an empty stop string.
    """
    clock = _Clock()
    ids = _encode(model, tokenizer, prompt, continues=cache is not None and cache_length(cache) > 0)
    tokens = generate_tokens(
        model,
        ids,
        cache=cache,
        sampling=sampling,
        max_tokens=max_tokens,
        on_prefill=clock.prefilled,
        draft=draft,
        history=history,
    )
    clock.draft = draft
    clock.prompt_tokens = len(ids)
    return _events(tokens, tokenizer, StopScanner(stop), clock)


def generate(
    model: Model,
    tokenizer: Any,
    prompt: str | Sequence[int],
    *,
    max_tokens: int | None = 256,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    cache: Sequence[Cache] | None = None,
    draft: Drafter | None = None,
    history: Sequence[int] = (),
) -> str:
    """The continuation of a prompt as one string; arguments and errors of `stream_generate`."""
    events = stream_generate(
        model,
        tokenizer,
        prompt,
        max_tokens=max_tokens,
        sampling=sampling,
        stop=stop,
        cache=cache,
        draft=draft,
        history=history,
    )
    return "".join(event.text for event in events)


class _Clock:
    """Stamps of one generation, in nanoseconds of the monotonic clock."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.draft: Drafter | None = None
        self._tokens = 0
        self._call_ns = self._prefilled_ns = time.monotonic_ns()
        self._first_ns = self._last_ns = self._call_ns

    def prefilled(self, done: int, total: int) -> None:
        """Part of the prompt was computed; the last call counts."""
        self._prefilled_ns = time.monotonic_ns()

    def token(self) -> None:
        """A token is there."""
        self._last_ns = time.monotonic_ns()
        if self._tokens == 0:
            self._first_ns = self._last_ns
        self._tokens += 1

    def stats(self) -> Stats:
        """What the stamps say."""
        decode_ns = self._last_ns - self._first_ns
        return Stats(
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self._tokens,
            prefill_s=(self._prefilled_ns - self._call_ns) / 1e9,
            ttft_s=(self._first_ns - self._call_ns) / 1e9 if self._tokens else None,
            decode_tok_s=(self._tokens - 1) / decode_ns * 1e9 if decode_ns else None,
            drafted_tokens=0 if self.draft is None else self.draft.pace.drafted,
            accepted_tokens=0 if self.draft is None else self.draft.pace.accepted,
        )


def _events(
    tokens: Generator[int, None, None], tokenizer: Any, scanner: StopScanner, clock: _Clock
) -> Generator[TextEvent, None, None]:
    detokenizer, stops = StreamingDetokenizer(tokenizer), stop_ids(tokenizer)
    finish: Finish = "length"
    text = ""
    ids: tuple[int, ...] = ()
    # Closed at once when the text ends before the tokens do, not when it is collected.
    with contextlib.closing(tokens):
        for token in tokens:
            clock.token()
            if token in stops:
                finish, ids = "stop token", (token,)
                break
            text = scanner.add(detokenizer.add(token))
            if scanner.found is not None:
                ids = (token,)
                break
            yield TextEvent(text, (token,), None, None)
            text = ""
    text += scanner.add(detokenizer.finish()) + scanner.finish()
    if scanner.found is not None:
        finish = "stop string"
    yield TextEvent(text, ids, finish, clock.stats())


def encode_beginning(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text that nothing stands before; as mlx-lm, no second BOS where it has one."""
    bos = tokenizer.bos_token
    lacks_bos = bos is None or not text.startswith(bos)
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=lacks_bos)]


def _encode(
    model: Model, tokenizer: Any, prompt: str | Sequence[int], continues: bool
) -> list[int]:
    """Ids of a prompt."""
    if not isinstance(prompt, str):
        return list(prompt)
    if continues:
        return [int(i) for i in tokenizer.encode(prompt, add_special_tokens=False)]
    ids = encode_beginning(tokenizer, prompt)
    if not ids and model.config.bos_token_id is not None:
        return [model.config.bos_token_id]
    return ids
