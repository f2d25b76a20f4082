"""From a prompt's ids to generated ids: chunked prefill, then one token after another.

The loop stays one step ahead, as mlx-lm's `generate_step` does: the graph of the next step is
built and under way before the current token is read, so the device never waits for Python.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from edge.errors import EdgeError
from edge.generate.sampling import GREEDY, Picker, Sampling
from edge.generate.speculate import Drafter, Speculation, can_speculate, level
from edge.model.kv_cache import make_cache

if TYPE_CHECKING:
    from edge.model.stablelm import Cache, Model

# mlx-lm's default: bounds the memory of a long prefill.
PREFILL_TOKENS = 2048
# Buffers of outgrown key-value arrays are given back this often. Without it MLX held 22.8 GB
# instead of 4.0 GB in ml-explore/mlx-examples#1081, for 1 % of speed.
TOKENS_BETWEEN_CLEARS = 256
# A last part with more positions than this for each layer is cut before its last position (see
# `prefill_parts`). On the demo, four layers on a CPU, the cut pays from about 16 positions on and
# is worth 1.25 x at 256.
POSITIONS_PER_LAYER = 4
# What a prefill callback is told: prompt tokens processed so far, and of how many.
OnPrefill = Callable[[int, int], None]


def generate_tokens(
    model: Model,
    prompt: Sequence[int],
    *,
    cache: Sequence[Cache] | None = None,
    sampling: Sampling = GREEDY,
    max_tokens: int | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
    on_prefill: OnPrefill | None = None,
    draft: Drafter | None = None,
    history: Sequence[int] = (),
) -> Generator[int, None, None]:
    """Yield the ids that follow a prompt, stop tokens among them.

    Args:
        model: the network.
        prompt: ids to begin with; with a cache, those that follow what it holds.
        cache: one of mlx-lm's caches per layer, extended in place. Whenever this iterator is
            not running, also after it was closed or interrupted, all layers hold the same
            positions: the prompt and the yielded ids, the last of `max_tokens` excepted. The
            caches' `offset` says how many. While it waits with a drafter, and only then, they
            may hold proposals beyond, which closing takes back.
        sampling: how tokens are chosen. A penalty sees this prompt and what was generated.
        max_tokens: at most so many; None goes on to the model's context limit, where
            generation always ends. 0 only fills the cache.
        prefill_tokens: prompt tokens processed at a time; fewer need less memory.
        on_prefill: called with (done, total) after each part of the prompt was computed.
        draft: proposes tokens, many of which one pass can check (see `speculate`); for one
            generation at a time. The tokens are the same without. Not used where the cache
            rotates, which cannot take back what was proposed in vain.
        history: the ids that the cache holds, where they are known: what a drafter looks at
            besides the prompt.

    Raises:
        EdgeError: an empty prompt, ids outside the vocabulary, a prompt that with the cache
            leaves no room in the model's context, or numbers that cannot be. Raised by the call
            itself, before the first token is asked for.
    """
    if cache is None:
        cache = make_cache(model)
    prompt = [int(token) for token in prompt]
    _check_prompt(prompt, model.config.vocab_size)
    _check_at_least(max_tokens, 0, "max_tokens")
    _check_at_least(prefill_tokens, 1, "prefill_tokens")
    room = context_room(model, cache, len(prompt))
    count = room if max_tokens is None else min(max_tokens, room)
    pick = Picker(sampling, prompt)
    if draft is not None:
        draft.begin([*history, *prompt])
        draft = draft if can_speculate(cache) else None
    on_prefill = on_prefill or _ignore
    return _decode(model, prompt, cache, pick, count, prefill_tokens, on_prefill, draft)


def context_room(model: Model, cache: Sequence[Cache], prompt_tokens: int) -> int:
    """How many tokens fit between the end of the prompt and the end of the model's context.

    A cache that rotates forgets the oldest positions instead, so it has no end.

    Raises:
        EdgeError: there is no room for a single one.
    """
    held, limit = cache_length(cache), model.config.max_position_embeddings
    if getattr(cache[0], "max_size", None) is not None:
        return 2**31
    if held + prompt_tokens < limit:
        return limit - held - prompt_tokens
    excess = held + prompt_tokens - limit + 1
    before = f" after {held} tokens in the cache" if held else ""
    raise EdgeError(
        f"the prompt has {prompt_tokens} tokens{before} and the model's context ends at {limit}, "
        f"one of which is for the answer; shorten the prompt by "
        f"{excess} token{'s' if excess > 1 else ''} or more."
    )


def cache_length(cache: Sequence[Cache]) -> int:
    """How many positions a cache has seen."""
    return int(cache[0].offset)


def _decode(
    model: Model,
    prompt: Sequence[int],
    cache: Sequence[Cache],
    pick: Picker,
    count: int,
    prefill_tokens: int,
    on_prefill: OnPrefill,
    draft: Drafter | None,
) -> Generator[int, None, None]:
    try:
        hidden = _prefill(model, prompt, cache, prefill_tokens, on_prefill)
        if count == 0:
            return
        token = _submit(pick(_logits(model, hidden)))
        if draft is not None:
            loop = Speculation(model, cache, pick, count, draft, TOKENS_BETWEEN_CLEARS)
            yield from loop.run(token)
            return
        for made in range(1, count):
            ahead = _submit(pick(_logits(model, model.model(token[None], cache))))
            yield _read(token)
            if made % TOKENS_BETWEEN_CLEARS == 0:
                mx.clear_cache()
            token = ahead
        # The last token is not fed: its logits would be for nothing.
        yield _read(token)
    finally:
        level(cache)


def _prefill(
    model: Model,
    prompt: Sequence[int],
    cache: Sequence[Cache],
    step: int,
    on_prefill: OnPrefill,
) -> mx.array:
    """Fill the cache with the prompt; the hidden state of its last position (1, 1, hidden)."""
    *parts, last = prefill_parts(len(prompt), step, len(model.layers))
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


def prefill_parts(length: int, step: int, layers: int) -> list[range]:
    """The positions of a prompt, of at least one, in the parts to compute them in.

    Of all parts but the last only the cache is evaluated, which leaves out what the last layer
    does after its keys and values. Where that is more than reading the weights once more, the
    last position is a part of its own, as it always is in mlx-lm.
    """
    parts = [range(start, min(start + step, length)) for start in range(0, length, step)]
    if len(parts[-1]) > POSITIONS_PER_LAYER * layers:
        parts[-1:] = [parts[-1][:-1], parts[-1][-1:]]
    return parts


def _logits(model: Model, hidden: mx.array) -> mx.array:
    """Hidden state (1, 1, hidden) -> logits (1, vocab)."""
    return model.head(hidden)[:, -1]


def _submit(token: mx.array) -> mx.array:
    mx.async_eval(token)  # type: ignore[no-untyped-call]
    return token


def _read(token: mx.array) -> int:
    """Wait for a submitted token."""
    return int(token.item())  # type: ignore[arg-type]  # an integer array's item is an int


def _check_prompt(prompt: Sequence[int], vocab_size: int) -> None:
    if not len(prompt):
        raise EdgeError("the prompt has no tokens; give it some text to continue.")
    for token in (min(prompt), max(prompt)):
        if not 0 <= token < vocab_size:
            raise EdgeError(
                f"the prompt has the token {token} and the model's vocabulary ends at "
                f"{vocab_size - 1}; encode it with the model's own tokenizer."
            )


def _check_at_least(value: int | None, least: int, name: str) -> None:
    if value is not None and value < least:
        raise EdgeError(f"{name} is {value}; choose {least} or more.")


def _ignore(done: int, total: int) -> None:
    """Nobody asked for progress."""
