"""The decode loop, and sources of tokens that keep their KV cache between prompts.

The loop is one step ahead, like mlx-lm's `generate_step`: the graph of the next step is built and
submitted before the current token is read, so the device never waits for Python.

A source is a network on MLX or llama.cpp. However the iterator over its tokens ends, the source
knows which ids its cache holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from edge.errors import EdgeError
from edge.generate.sampling import GREEDY, OnPick, Picker, Sampling
from edge.generate.speculate import (
    TOKENS_BETWEEN_CLEARS,
    PromptLookup,
    Speculation,
    can_speculate,
    trim_to_shortest,
)
from edge.model.kv_cache import cache_bytes, make_cache
from edge.model.stablelm import Cache, Model

if TYPE_CHECKING:  # importing numpy would take a large part of a short completion
    from edge.llama_cpp.session import LlamaSession

# mlx-lm's default: bounds the memory of a long prefill.
PREFILL_TOKENS = 2048
# llama.cpp computes this many positions at once, whatever it is given.
LLAMA_PREFILL_TOKENS = 512
# A last part with more positions per layer is split before its last position (`prefill_parts`).
# On the demo, four layers on a CPU, that pays from about 16 positions on: 1.25 x at 256.
POSITIONS_PER_LAYER = 4
Tokens = Generator[int, None, None]
# None for "nothing yet": then a batch has to make a step.
TokensOrNone = Generator[int | None, None, None]
Continued = tuple[int, TokensOrNone]
# Called with the number of prompt tokens processed so far, and of all.
OnPrefill = Callable[[int, int], None]


def _decode(
    model: Model,
    prompt: Sequence[int],
    cache: Sequence[Cache],
    pick: Picker,
    count: int,
    on_prefill: OnPrefill,
    prefill_tokens: int,
    draft: PromptLookup | None,
) -> Tokens:
    try:
        hidden = _prefill(model, prompt, cache, on_prefill, prefill_tokens)
        if count == 0:
            return
        logits = model.head(hidden)[:, -1]
        check_finite(logits)
        token = pick(logits)
        if draft is not None:
            yield from Speculation(model, cache, pick, count, draft).run(token)
            return
        for made in range(1, count):
            hidden = model.model(token[None], cache)
            ahead = pick(model.head(hidden)[:, -1])
            yield int(token.item())  # type: ignore[arg-type]  # waits for the token
            if made % TOKENS_BETWEEN_CLEARS == 0:
                mx.clear_cache()
            token = ahead
        yield int(token.item())  # type: ignore[arg-type]  # not fed: its logits are not needed
    finally:
        trim_to_shortest(cache)


def generate_tokens(
    model: Model,
    prompt: Sequence[int],
    *,
    cache: Sequence[Cache] | None = None,
    sampling: Sampling = GREEDY,
    max_tokens: int | None = None,
    on_prefill: OnPrefill = lambda done, total: None,
    prefill_tokens: int = PREFILL_TOKENS,
    on_pick: OnPick | None = None,
    draft: PromptLookup | None = None,
    history: Sequence[int] = (),
) -> Tokens:
    """Yields the ids that follow a prompt, stop tokens included.

    `cache` has one of mlx-lm's caches per layer, extended in place. However the iterator ends, all
    layers hold the prompt and the yielded ids, except the last of `max_tokens`. `prompt` follows
    the ids in the cache, which are `history` for a drafter; a penalty does not see them.
    `max_tokens` of None continues to the end of the model's context, 0 only fills the cache. With
    `draft` tokens are checked several at a time; the ids stay the same. `on_prefill` is called
    after every `prefill_tokens`, and may raise to end the generation.

    The call raises an EdgeError for an empty prompt, unknown ids, or no room in the context.
    """
    cache = make_cache(model) if cache is None else cache
    check_prompt(prompt, model.config.vocab_size)
    is_endless = getattr(cache[0], "max_size", None) is not None  # rotating: it drops the oldest
    limit = 2**31 if is_endless else model.config.max_position_embeddings
    count = tokens_to_make(limit, cache_length(cache), len(prompt), max_tokens)
    if draft is not None:
        draft.begin([*history, *prompt])
        draft = draft if can_speculate(cache) else None
    pick = Picker(sampling, prompt, on_pick, getattr(cache[0], "bits", None))
    return _decode(model, prompt, cache, pick, count, on_prefill, prefill_tokens, draft)


def cache_length(cache: Sequence[Cache]) -> int:
    return int(cache[0].offset)


def prefill_parts(length: int, step: int, layers: int) -> list[range]:
    """The parts of a prompt to compute, as ranges of positions.

    A long last part is split before its last position: its last layer runs on all positions.
    """
    parts = [range(start, min(start + step, length)) for start in range(0, length, step)]
    if len(parts[-1]) > POSITIONS_PER_LAYER * layers:
        parts[-1:] = [parts[-1][:-1], parts[-1][-1:]]
    return parts


def _prefill(
    model: Model,
    prompt: Sequence[int],
    cache: Sequence[Cache],
    on_prefill: OnPrefill,
    prefill_tokens: int,
) -> mx.array:
    """Fills the cache; returns the hidden state of the last position (1, 1, hidden)."""
    *parts, last = prefill_parts(len(prompt), prefill_tokens, len(model.layers))
    for part in parts:
        model.model(mx.array([prompt[part.start : part.stop]]), cache)
        mx.eval([layer.state for layer in cache])
        on_prefill(part.stop, len(prompt))
        mx.clear_cache()
    hidden = model.model(mx.array([prompt[last.start :]]), cache)[:, -1:]
    mx.eval(hidden)
    on_prefill(len(prompt), len(prompt))
    mx.clear_cache()
    return hidden


def tokens_to_make(limit: int, held: int, prompt_tokens: int, max_tokens: int | None) -> int:
    """`max_tokens`, or fewer at the end of the context; an EdgeError without room for one."""
    room = limit - held - prompt_tokens
    if room <= 0:
        before = f" after {held} tokens in the cache" if held else ""
        raise EdgeError(
            f"the prompt has {prompt_tokens} tokens{before} and the model's context ends at "
            f"{limit}, one of which is for the answer; shorten it by {1 - room} or more."
        )
    if max_tokens is None:
        return room
    if max_tokens < 0:
        raise EdgeError(f"max_tokens is {max_tokens}; choose 0 or more.")
    return min(max_tokens, room)


def check_prompt(prompt: Sequence[int], vocab_size: int) -> None:
    if not prompt:
        raise EdgeError("the prompt has no tokens; give it some text to continue.")
    for token in (min(prompt), max(prompt)):
        if not 0 <= token < vocab_size:
            raise EdgeError(
                f"the prompt has the token {token} and the model's vocabulary ends at "
                f"{vocab_size - 1}; leave that token's text out."
            )


def common_length(a: Sequence[object], b: Sequence[object]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def reusable(held: Sequence[int], ids: Sequence[int], sampling: Sampling) -> int:
    """Length of the prompt's beginning that is held and need not be computed again."""
    return common_length(held, ids[: max(0, len(ids) - sampling.looks_back)])


def check_finite(logits: mx.array) -> None:
    """Raises an EdgeError for the first logits of damaged weights; their argmax is an id too."""
    if not mx.isfinite(logits).all().item():
        raise EdgeError(
            "the model computes NaN or infinity instead of logits, so its weights are damaged; "
            "convert or download it again."
        )


class MlxSource:
    """A network on MLX; `held` are the ids in its cache."""

    def __init__(
        self,
        model: Model,
        kv_bits: int | None = None,
        context_tokens: int | None = None,
        draft: PromptLookup | None = None,
    ):
        self._model, self._kv_bits, self.draft = model, kv_bits, draft
        most = model.config.max_position_embeddings
        self.context_tokens = most if context_tokens is None else min(most, context_tokens)
        self.reset()

    def reset(self) -> None:
        self._cache = make_cache(self._model, self._kv_bits)
        self.held: list[int] = []

    @property
    def cache_bytes(self) -> int:
        return cache_bytes(self._cache)

    @property
    def memory_bytes(self) -> tuple[int, int]:
        return mx.get_active_memory(), mx.get_peak_memory()

    def generate(
        self, ids: Sequence[int], max_tokens: int | None, sampling: Sampling, **more: Any
    ) -> tuple[int, Tokens]:
        """The number of reused ids, and the ids that follow; options of `generate_tokens`."""
        reused = reusable(self.held, ids, sampling)
        for layer in self._cache:
            layer.trim(layer.offset - reused)
        del self.held[reused:]
        more |= {"max_tokens": max_tokens, "sampling": sampling, "cache": self._cache}
        more |= {"draft": self.draft, "history": ids[:reused]}
        return reused, self._fed(ids, generate_tokens(self._model, ids[reused:], **more))

    def _fed(self, ids: Sequence[int], tokens: Tokens) -> Tokens:
        fed = list(ids)
        try:
            with contextlib.closing(tokens):
                for token in tokens:
                    fed.append(token)
                    yield token
        finally:
            # A second interrupt can leave layers of different lengths.
            if len({layer.offset for layer in self._cache}) > 1:
                self.reset()
            self.held = fed[: cache_length(self._cache)]


class LlamaSource:
    """A GGUF file in a llama.cpp session with an empty cache.

    A session with fewer positions than `context_tokens` grows when they are needed.
    """

    draft = None

    def __init__(self, session: LlamaSession, context_tokens: int):
        self._session = session
        self.context_tokens = context_tokens
        self.held: list[int] = []

    @property
    def cache_bytes(self) -> int:
        return self._session.cache_bytes

    @property
    def memory_bytes(self) -> tuple[int, int]:
        """Bytes of the weights, which may be mapped, and of the cache; twice."""
        used_bytes = self._session.weight_bytes + self.cache_bytes
        return used_bytes, used_bytes

    def generate(
        self,
        ids: Sequence[int],
        max_tokens: int | None,
        sampling: Sampling,
        on_prefill: OnPrefill = lambda done, total: None,
        prefill_tokens: int = LLAMA_PREFILL_TOKENS,
        on_pick: OnPick | None = None,
    ) -> tuple[int, Tokens]:
        """The number of reused ids, and the ids that follow, chosen as on MLX."""
        check_prompt(ids, self._session.vocab_size)
        room = self.context_tokens - len(ids)
        count = room if max_tokens is None else min(max_tokens, room)
        reused = self._trim(reusable(self.held, ids, sampling))
        # A penalty sees the ids that are computed now, as on MLX.
        pick = Picker(sampling, ids[reused:], on_pick)
        fresh = list(ids[reused:])
        return reused, self._tokens(fresh, count, pick, on_prefill, prefill_tokens)

    def reset(self) -> None:
        self._trim(0)

    def close(self) -> None:
        self._session.close()

    def _tokens(
        self, fresh: list[int], count: int, pick: Picker, on_prefill: OnPrefill, step: int
    ) -> Tokens:
        fresh = self._with_room(fresh)
        for begin in range(0, len(fresh), step):
            part = fresh[begin : begin + step]
            self._decode(part)
            on_prefill(begin + len(part), len(fresh))
        for made in range(1, count + 1):
            logits = mx.array(self._session.last_logits())[None]
            if made == 1:
                check_finite(logits)
            token = int(pick(logits).item())  # type: ignore[arg-type]
            yield token
            if made < count:  # and another token is wanted
                self._decode(self._with_room([token]))

    def _with_room(self, fresh: list[int]) -> list[int]:
        """The ids to compute: after growing, which empties the cache, all that were held too."""
        needed = len(self.held) + len(fresh)
        if needed > self._session.context_tokens:
            self._session.resize(min(2 * needed, self.context_tokens))
            fresh, self.held = self.held + fresh, []
        return fresh

    def _decode(self, ids: list[int]) -> None:
        try:
            self._session.decode(ids)
        except BaseException:  # after an interrupt llama.cpp's position is unknown
            self._trim(0)
            raise
        self.held += ids

    def _trim(self, length: int) -> int:
        if not self._session.trim(length):
            self._session.trim(0)
            length = 0
        del self.held[length:]
        return length


TokenSource = MlxSource | LlamaSource


def open_source(
    model: Model | LlamaSource, kv_bits: int | None = None, draft: PromptLookup | None = None
) -> TokenSource:
    """The source of a model's tokens; that of a GGUF file takes no other options."""
    return model if isinstance(model, LlamaSource) else MlxSource(model, kv_bits, draft=draft)
