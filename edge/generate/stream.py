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
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edge.generate.decode import cache_length, generate_tokens
from edge.generate.stop import StopScanner, stop_ids
from edge.tokenizer.detokenizer import StreamingDetokenizer

if TYPE_CHECKING:
    from edge.generate.lookup import PromptLookup
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


class TokenClock:
    """Stamps of one generation by the monotonic clock, from the moment it is made."""

    def __init__(self) -> None:
        self.begin_ns = self.first_ns = self.last_ns = time.monotonic_ns()
        self.tokens = 0

    def count(self, tokens: int = 1) -> None:
        """Tokens are there."""
        self.last_ns = time.monotonic_ns()
        if self.tokens == 0:
            self.first_ns = self.last_ns
        self.tokens += tokens

    @property
    def ttft_s(self) -> float | None:
        """From the beginning to the first token; None if there was none."""
        return (self.first_ns - self.begin_ns) / 1e9 if self.tokens else None

    @property
    def decode_tok_s(self) -> float | None:
        """(N - 1) / (t_N - t_1); None for fewer than two tokens."""
        decode_ns = self.last_ns - self.first_ns
        return (self.tokens - 1) / decode_ns * 1e9 if decode_ns else None


def stream_generate(
    model: Model,
    tokenizer: Any,
    prompt: str | Sequence[int],
    *,
    max_tokens: int | None = 256,
    stop: Sequence[str] = (),
    cache: Sequence[Cache] | None = None,
    draft: PromptLookup | None = None,
    **options: Any,
) -> Generator[TextEvent, None, None]:
    """Yields the continuation of a prompt as it comes: an event per token and a last one.

    Ends at a stop token (`stop_ids`), a stop string, `max_tokens`, or the end of the model's
    context. Neither stop tokens nor stop strings are in the text.

    Args:
        model: the network, as `edge.load` returns it.
        tokenizer: its tokenizer.
        prompt: text or ids. Text gets the tokenizer's own beginning (BOS, where it has one)
            unless it has it already or continues a cache. Empty text begins with the model's
            BOS, as in llama.cpp.
        max_tokens: at most so many; None goes on to the end of the context.
        stop: strings that end the text.
        cache: what came before (see `generate_tokens`, which says what it holds afterwards).
        draft: proposes tokens so that they come faster (see `generate_tokens`).
        options: others of `generate_tokens`: `sampling`, `history`.

    Raises:
        EdgeError: raised by the call itself; as for `generate_tokens`, or an empty stop string.
    """
    clock, prefilled_ns = TokenClock(), 0
    ids = _encode(model, tokenizer, prompt, continues=cache is not None and cache_length(cache) > 0)

    def on_prefill(done: int, total: int) -> None:
        nonlocal prefilled_ns
        prefilled_ns = time.monotonic_ns()

    def stats() -> Stats:
        return Stats(
            prompt_tokens=len(ids),
            generated_tokens=clock.tokens,
            prefill_s=(prefilled_ns - clock.begin_ns) / 1e9,
            ttft_s=clock.ttft_s,
            decode_tok_s=clock.decode_tok_s,
            drafted_tokens=0 if draft is None else draft.drafted,
            accepted_tokens=0 if draft is None else draft.accepted,
        )

    options |= {"max_tokens": max_tokens, "cache": cache, "draft": draft, "on_prefill": on_prefill}
    tokens = generate_tokens(model, ids, **options)
    return _events(tokens, tokenizer, StopScanner(stop), clock, stats)


def generate(model: Model, tokenizer: Any, prompt: str | Sequence[int], **options: Any) -> str:
    """The continuation of a prompt as one string; options and errors of `stream_generate`."""
    return "".join(event.text for event in stream_generate(model, tokenizer, prompt, **options))


def encode_beginning(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text that nothing stands before; as mlx-lm, no second BOS where it has one."""
    bos = tokenizer.bos_token
    lacks_bos = bos is None or not text.startswith(bos)
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=lacks_bos)]


def _events(
    tokens: Generator[int, None, None],
    tokenizer: Any,
    scanner: StopScanner,
    clock: TokenClock,
    stats: Callable[[], Stats],
) -> Generator[TextEvent, None, None]:
    detokenizer, stops = StreamingDetokenizer(tokenizer), stop_ids(tokenizer)
    finish: Finish = "length"
    text = ""
    ids: tuple[int, ...] = ()
    # Closed at once when the text ends before the tokens do, not when it is collected.
    with contextlib.closing(tokens):
        for token in tokens:
            clock.count()
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
    yield TextEvent(text, ids, finish, stats())


def _encode(
    model: Model, tokenizer: Any, prompt: str | Sequence[int], continues: bool
) -> list[int]:
    if not isinstance(prompt, str):
        return list(prompt)
    if continues:
        return [int(i) for i in tokenizer.encode(prompt, add_special_tokens=False)]
    ids = encode_beginning(tokenizer, prompt)
    if not ids and model.config.bos_token_id is not None:
        return [model.config.bos_token_id]
    return ids
