"""The decode loop: chunked prefill, then one token at a time.

The loop is one step ahead, like mlx-lm's `generate_step`: the graph of the next step is built and
submitted before the current token is read, so the device never waits for Python.
"""

from collections.abc import Callable, Generator, Sequence

import mlx.core as mx

from edge.errors import EdgeError
from edge.generate.sampling import GREEDY, Picker, Sampling
from edge.generate.speculate import (
    TOKENS_BETWEEN_CLEARS,
    PromptLookup,
    Speculation,
    can_speculate,
    trim_to_shortest,
)
from edge.model.kv_cache import make_cache
from edge.model.stablelm import Cache, Model

# mlx-lm's default: bounds the memory of a long prefill.
PREFILL_TOKENS = 2048
# A last part with more positions per layer is split before its last position (`prefill_parts`).
# On the demo, four layers on a CPU, that pays from about 16 positions on: 1.25 x at 256.
POSITIONS_PER_LAYER = 4
Tokens = Generator[int, None, None]
# Called with the number of prompt tokens processed so far, and of all.
OnPrefill = Callable[[int, int], None]


def _decode(
    model: Model,
    prompt: Sequence[int],
    cache: Sequence[Cache],
    pick: Picker,
    count: int,
    on_prefill: OnPrefill,
    draft: PromptLookup | None,
) -> Tokens:
    try:
        hidden = _prefill(model, prompt, cache, on_prefill)
        if count == 0:
            return
        token = pick(model.head(hidden)[:, -1])
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
    draft: PromptLookup | None = None,
    history: Sequence[int] = (),
) -> Tokens:
    """Yields the ids that follow a prompt, stop tokens included.

    Args:
        model: the network.
        prompt: the ids that follow those in the cache.
        cache: one of mlx-lm's caches per layer, extended in place. However the iterator ends,
            all layers hold the prompt and the yielded ids, except the last of `max_tokens`.
        sampling: a penalty sees this prompt and the generated ids.
        max_tokens: None continues to the end of the model's context; 0 only fills the cache.
        on_prefill: called after each part of the prompt.
        draft: proposes tokens that are checked several at a time; the ids stay the same.
        history: the ids in the cache, for the drafter.

    Raises:
        EdgeError: at the call: an empty prompt, unknown ids, no room in the model's context.
    """
    cache = make_cache(model) if cache is None else cache
    prompt = [int(token) for token in prompt]
    _check_prompt(prompt, model.config.vocab_size)
    count = _context_room(model, cache, len(prompt))
    if max_tokens is not None:
        if max_tokens < 0:
            raise EdgeError(f"max_tokens is {max_tokens}; choose 0 or more.")
        count = min(max_tokens, count)
    if draft is not None:
        draft.begin([*history, *prompt])
        draft = draft if can_speculate(cache) else None
    return _decode(model, prompt, cache, Picker(sampling, prompt), count, on_prefill, draft)


def cache_length(cache: Sequence[Cache]) -> int:
    """Number of positions in a cache."""
    return int(cache[0].offset)


def prefill_parts(length: int, step: int, layers: int) -> list[range]:
    """The parts of a prompt to compute one after another, as ranges of positions.

    The last layer of the last part is computed for all its positions; a long part is split so
    that only one position is left for it.
    """
    parts = [range(start, min(start + step, length)) for start in range(0, length, step)]
    if len(parts[-1]) > POSITIONS_PER_LAYER * layers:
        parts[-1:] = [parts[-1][:-1], parts[-1][-1:]]
    return parts


def _prefill(
    model: Model, prompt: Sequence[int], cache: Sequence[Cache], on_prefill: OnPrefill
) -> mx.array:
    """Fills the cache; returns the hidden state of the last position (1, 1, hidden)."""
    *parts, last = prefill_parts(len(prompt), PREFILL_TOKENS, len(model.layers))
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


def _context_room(model: Model, cache: Sequence[Cache], prompt_tokens: int) -> int:
    held, limit = cache_length(cache), model.config.max_position_embeddings
    if getattr(cache[0], "max_size", None) is not None:
        return 2**31  # a rotating cache drops the oldest positions, so it has no end
    room = limit - held - prompt_tokens
    if room > 0:
        return room
    before = f" after {held} tokens in the cache" if held else ""
    raise EdgeError(
        f"the prompt has {prompt_tokens} tokens{before} and the model's context ends at {limit}, "
        f"one of which is for the answer; shorten it by {1 - room} or more."
    )


def _check_prompt(prompt: Sequence[int], vocab_size: int) -> None:
    if not prompt:
        raise EdgeError("the prompt has no tokens; give it some text to continue.")
    for token in (min(prompt), max(prompt)):
        if not 0 <= token < vocab_size:
            raise EdgeError(
                f"the prompt has the token {token} and the model's vocabulary ends at "
                f"{vocab_size - 1}; encode it with the model's own tokenizer."
            )
