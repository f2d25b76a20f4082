"""Text generation: events for each token, or one string.

import edge
model, tokenizer = edge.load("models/demo/mlx-int4")
for event in edge.stream_generate(model, tokenizer, "def fib(n):"):
    print(event.text, end="", flush=True)
print(event.stats)
"""

import contextlib
import time
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge.errors import EdgeError
from edge.generate.decode import TokensOrNone, cache_length, generate_tokens
from edge.generate.speculate import PromptLookup
from edge.model.stablelm import Cache, Model
from edge.tokenizer.detokenizer import StreamingDetokenizer
from edge.tokenizer.fim_tokens import FIM_NAMES
from edge.tokenizer.tokenizer import token_id

# "length" is max_tokens or the end of the model's context, whichever came first.
StoppedBy = Literal["stop token", "stop string", "length"]
# Stable Code Instruct ends a turn with <|im_end|>, which its generation_config.json does not
# name. A base model that begins a turn or a part of another file has finished, too.
STOP_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|im_start|>", *FIM_NAMES)


@dataclass(frozen=True)
class Stats:
    """Figures of one generation, including the time that the caller took between events.

    `prompt_tokens` are without those in the cache, `generated_tokens` include a stop token. Times
    begin with the call; for `decode_tok_s` see `TokenClock`. The model chose `accepted_tokens` of
    the `drafted_tokens` that were checked.
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
    """A piece of text with its ids; the last event has `stopped_by` and `stats`."""

    text: str
    ids: tuple[int, ...]
    stopped_by: StoppedBy | None
    stats: Stats | None


class TokenClock:
    """Time stamps of one generation, which begins now."""

    def __init__(self) -> None:
        self.begin_ns = self.prefilled_ns = time.monotonic_ns()
        self.first_ns = self.last_ns = self.begin_ns
        self.tokens = 0

    def prefilled(self, done: int, total: int) -> None:
        """Stamps a part of the prompt; the last call is the end of the prefill."""
        self.prefilled_ns = time.monotonic_ns()

    def count(self, tokens: int = 1) -> None:
        self.last_ns = time.monotonic_ns()
        if self.tokens == 0:
            self.first_ns = self.last_ns
        self.tokens += tokens

    @property
    def prefill_s(self) -> float:
        return (self.prefilled_ns - self.begin_ns) / 1e9

    @property
    def ttft_s(self) -> float | None:
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
    """Yields the continuation of a prompt: an event per token and a last event.

    Ends at a stop token (`stop_ids`), a stop string, `max_tokens` (None: no limit), or the end of
    the model's context. Stop tokens and stop strings are not in the text. `cache`, `draft`, the
    options `sampling` and `history`, and the errors are those of `generate_tokens`.

    The tokenizer adds its BOS, if any, to a prompt of text that lacks it and does not continue a
    cache. Empty text begins with the model's BOS, as in llama.cpp.
    """
    clock = TokenClock()
    if not isinstance(prompt, str):
        ids = list(prompt)
    elif cache is not None and cache_length(cache) > 0:
        ids = [int(i) for i in tokenizer.encode(prompt, add_special_tokens=False)]
    else:
        bos = model.config.bos_token_id
        ids = encode_beginning(tokenizer, prompt) or ([] if bos is None else [bos])
    options |= {"max_tokens": max_tokens, "cache": cache, "draft": draft}
    tokens = generate_tokens(model, ids, on_prefill=clock.prefilled, **options)
    return text_events(tokens, tokenizer, StopScanner(stop), clock, len(ids), draft)


def generate(model: Model, tokenizer: Any, prompt: str | Sequence[int], **options: Any) -> str:
    """The continuation of a prompt as one string; options and errors of `stream_generate`."""
    return "".join(event.text for event in stream_generate(model, tokenizer, prompt, **options))


def encode_beginning(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text at the beginning of a prompt; like mlx-lm it adds no second BOS."""
    bos = tokenizer.bos_token
    lacks_bos = bos is None or not text.startswith(bos)
    return [int(i) for i in tokenizer.encode(text, add_special_tokens=lacks_bos)]


def stop_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that end a generation: the tokenizer's EOS ids and its `STOP_TOKENS`."""
    named = [token_id(tokenizer, name) for name in STOP_TOKENS]
    return frozenset(int(i) for i in (*tokenizer.eos_token_ids, *named) if i is not None)


class StopScanner:
    """Passes text in pieces on up to the first stop string to be complete, the longest of several.

    Text that could become a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        if "" in self._stops:
            raise EdgeError("a stop string is empty; leave it out or give it some text.")
        self._most = max((len(stop) for stop in self._stops), default=1) - 1
        self.held = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """Text that cannot be part of a stop string; "" once `found` is set."""
        if self.found is not None:
            return ""
        text, self.held = self.held + text, ""
        ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops]
        complete = min((end for end in ends if end[2] in text), default=None)
        if complete is not None:
            end, _, self.found = complete
            return text[: end - len(self.found)]
        for length in range(min(self._most, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                self.held = tail
                return text[:-length]
        return text

    def finish(self) -> str:
        """Text that was held back, at the end of the stream."""
        rest, self.held = self.held, ""
        return rest


def text_events(
    tokens: TokensOrNone,
    tokenizer: Any,
    scanner: StopScanner,
    clock: TokenClock,
    prompt_tokens: int,
    draft: PromptLookup | None,
    stops: Collection[int] | None = None,
) -> Generator[TextEvent, None, None]:
    """Yields the text of ids as `stream_generate` does; None for `stops` are `stop_ids`.

    Where a batch has no id yet, the event has neither text nor ids.
    """
    detokenizer = StreamingDetokenizer(tokenizer)
    stops = stop_ids(tokenizer) if stops is None else stops
    stopped_by: StoppedBy = "length"
    text = ""
    ids: tuple[int, ...] = ()
    # Closes the tokens at once if the text ends before them.
    with contextlib.closing(tokens):
        for token in tokens:
            if token is None:
                yield TextEvent("", (), None, None)
                continue
            clock.count()
            if token in stops:
                stopped_by, ids = "stop token", (token,)
                break
            text = scanner.add(detokenizer.add(token))
            if scanner.found is not None:
                ids = (token,)
                break
            yield TextEvent(text, (token,), None, None)
            text = ""
    text += scanner.add(detokenizer.finish()) + scanner.finish()
    if scanner.found is not None:
        stopped_by = "stop string"
    drafted, accepted = (0, 0) if draft is None else (draft.drafted, draft.accepted)
    rates = (clock.prefill_s, clock.ttft_s, clock.decode_tok_s)
    stats = Stats(prompt_tokens, clock.tokens, *rates, drafted, accepted)
    yield TextEvent(text, ids, stopped_by, stats)
