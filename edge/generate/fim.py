r"""Fill in the middle: what belongs between the text before a cursor and the text after it.

    completer = Completer(*edge.load("models/demo/mlx-fp16"))
    completer.complete("for key, value in d.", "():\n    print(key, value)\n", order="spm").text

The prompt is StarCoder's, whose special tokens Stable Code has (Stable Code Technical Report,
sections 3 and 4.4; Bavarian et al. 2022, arXiv:2207.14255), nothing between the parts:

    psm   <fim_prefix>PREFIX<fim_suffix>SUFFIX<fim_middle>
    spm   <fim_prefix><fim_suffix>SUFFIX<fim_middle>PREFIX

Both were trained in equal shares, in Stable Code as in the demo. The report does not say how its
SPM is spelled; this is StarCoder's and the demo's. Other files of the repository come before,
each followed by <repo_continuation>, as the report's section 2 joins the files of a repository:
without names, in no particular order, the hole within one file.

The parts are encoded one by one and none of them can hold a special token: <fim_middle> in
somebody's source is text. What does not fit the window is left out from the far ends.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from edge.errors import EdgeError
from edge.generate.decode import cache_length, generate_tokens
from edge.generate.detokenizer import REPLACEMENT_CHARACTER, StreamingDetokenizer
from edge.generate.fim_stop import StopRules
from edge.generate.sampling import GREEDY, Sampling
from edge.generate.stop import stop_ids
from edge.model.kv_cache import make_cache

if TYPE_CHECKING:
    from edge.model.attention import Cache
    from edge.model.stablelm import Model

Order = Literal["psm", "spm"]
ORDERS: tuple[Order, ...] = ("psm", "spm")
MAX_TOKENS = 128
REPO_TOKEN = "<repo_continuation>"
# What the suffix may take where prefix and suffix together are too long.
SUFFIX_SHARE = 1 / 4
# What is too long is cut in steps: a window that moved with every keystroke would leave nothing
# of the cache to use again.
TRIM_STEP_TOKENS = 64


@dataclass(frozen=True)
class Completion:
    """A middle and what it took.

    Attributes:
        text: the middle; goes between prefix and suffix as it is.
        prompt_tokens: of the whole prompt.
        reused_tokens: of these, taken from the cache of the calls before.
        generated_tokens: a stop token and what was cut off included.
        ttft_s: from the call to the first token.
        total_s: from the call to the end.
        decode_tok_s: (N - 1) / (t_N - t_1); None for fewer than two tokens.
        stopped_by: "stop token", "max tokens", "max lines", or the rule: "blank line",
            "indent", "bracket", "suffix".
    """

    text: str
    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    ttft_s: float
    total_s: float
    decode_tok_s: float | None
    stopped_by: str


@dataclass(frozen=True)
class FimTokens:
    """Ids of the tokens that a prompt is built with; `repo` is None if the model has none."""

    prefix: int
    suffix: int
    middle: int
    repo: int | None

    @classmethod
    def find(cls, backend: Any) -> FimTokens:
        """By name in the vocabulary of a `tokenizers.Tokenizer`.

        Raises:
            EdgeError: the model has no such tokens.
        """
        names = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
        ids = [backend.token_to_id(name) for name in names]
        missing = [name for name, found in zip(names, ids, strict=True) if found is None]
        if missing:
            raise EdgeError(
                f"the model's vocabulary has no {', '.join(missing)}, so it was not trained to "
                f"fill in the middle; choose a model that was, such as stable-code-3b."
            )
        return cls(ids[0], ids[1], ids[2], backend.token_to_id(REPO_TOKEN))


class Completer:
    """Completes with one model and keeps the keys and values of the last prompt.

    The next prompt pays for what differs from the first differing token on. While somebody types,
    that is the end of the prefix: PSM computes it and the whole suffix again, SPM, where the
    suffix comes first, the end of the prefix alone.

    Args:
        model: the network, as `edge.load` returns it.
        tokenizer: its tokenizer: mlx-lm's TokenizerWrapper or a fast one of transformers.

    Raises:
        EdgeError: the model was not trained to fill in the middle.
    """

    def __init__(self, model: Model, tokenizer: Any):
        self._model = model
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._tokens = FimTokens.find(self._backend)
        self._stops = stop_ids(tokenizer) | _special_ids(self._backend)
        self._cache: Sequence[Cache] = ()
        self._held: list[int] = []  # the ids whose keys and values the cache holds

    def complete(
        self,
        prefix: str,
        suffix: str = "",
        *,
        context: Sequence[str] = (),
        order: Order = "psm",
        max_tokens: int = MAX_TOKENS,
        max_lines: int | None = None,
        stop_rules: bool = True,
        sampling: Sampling = GREEDY,
    ) -> Completion:
        r"""The text between prefix and suffix.

        Text whose line ends are all CRLF is completed as if they were LF, which is what models
        have mostly seen, and gets a middle with CRLF. Mixed line ends go to the model as is.

        Args:
            prefix: everything before the cursor.
            suffix: everything after it.
            context: other files of the repository, the most important last.
            order: how the prompt is arranged.
            max_tokens: at most so many; the window keeps room for them.
            max_lines: at most so many lines of the middle; blank ones before it are free.
            stop_rules: whether the rules of `fim_stop` end the middle.
            sampling: how tokens are chosen.

        Raises:
            EdgeError: no room in the window, or context for a model without <repo_continuation>.
        """
        call_s = time.monotonic()
        crlf = _is_crlf(prefix, suffix)
        if crlf:
            prefix, suffix = _lf(prefix), _lf(suffix)
        ids = self._prompt(prefix, suffix, context, order, max_tokens)
        rules = StopRules(prefix, suffix, max_lines, stop_rules)
        reused = self._reuse(ids)
        text, stopped_by, stamps = self._generate(ids, reused, rules, max_tokens, sampling)
        decode_s = stamps[-1] - stamps[0]
        return Completion(
            text=text.replace("\n", "\r\n") if crlf else text,
            prompt_tokens=len(ids),
            reused_tokens=reused,
            generated_tokens=len(stamps),
            ttft_s=stamps[0] - call_s,
            total_s=time.monotonic() - call_s,
            decode_tok_s=(len(stamps) - 1) / decode_s if decode_s else None,
            stopped_by=stopped_by,
        )

    def _prompt(
        self, prefix: str, suffix: str, context: Sequence[str], order: Order, max_tokens: int
    ) -> list[int]:
        """The ids of the prompt, cut to what the window has room for."""
        limit = self._model.config.max_position_embeddings
        room = limit - max_tokens - 3
        if max_tokens < 1 or room < 1:
            raise EdgeError(
                f"max_tokens is {max_tokens} and the model's context has {limit} positions; "
                f"choose from 1 to {limit - 4}."
            )
        before, after, left = fit(self._encode(prefix), self._encode(suffix), room)
        others = _without_beginning(self._context(context), left, _step(room))
        tokens = self._tokens
        if order == "spm":
            return [*others, tokens.prefix, tokens.suffix, *after, tokens.middle, *before]
        return [*others, tokens.prefix, *before, tokens.suffix, *after, tokens.middle]

    def _context(self, files: Sequence[str]) -> list[int]:
        """Ids of other files, each followed by the token that joins it to the next."""
        if files and self._tokens.repo is None:
            raise EdgeError(
                f"the model's vocabulary has no {REPO_TOKEN}, which joins the files of a "
                f"repository; leave out the context."
            )
        return [i for text in files for i in (*self._encode(text), self._tokens.repo or 0)]

    def _encode(self, text: str) -> list[int]:
        return encode_text(self._backend, text)

    def _reuse(self, ids: list[int]) -> int:
        """Cut the cache to what it has in common with these ids; how many that are.

        At least one token stays to be computed: its logits are the answer's first.
        """
        if not self._cache:
            self._cache = make_cache(self._model)
        common = common_length(self._held, ids[:-1])
        for layer in self._cache:  # as mlx-lm's trim_prompt_cache, without the import
            layer.trim(layer.offset - common)
        self._held = self._held[:common]
        return common

    def _generate(
        self, ids: list[int], reused: int, rules: StopRules, max_tokens: int, sampling: Sampling
    ) -> tuple[str, str, list[float]]:
        """The middle, why it ended, and the time of every token."""
        detokenizer, text = StreamingDetokenizer(self._tokenizer), ""
        stamps: list[float] = []
        for token in self._fed(ids, reused, max_tokens, sampling):
            stamps.append(time.monotonic())
            if token in self._stops:
                text += detokenizer.finish()
                return *_ended(rules, text, "stop token"), stamps
            text += detokenizer.add(token)
            stop = rules.find_stop(text)
            if stop is not None:
                return text[: stop.cut], stop.rule, stamps
        # Half a character is nothing that anybody wants in a file.
        text += detokenizer.finish().rstrip(REPLACEMENT_CHARACTER)
        return *_ended(rules, text, "max tokens"), stamps

    def _fed(
        self, ids: list[int], reused: int, max_tokens: int, sampling: Sampling
    ) -> Iterator[int]:
        """Generated ids; whatever ends them, `_held` then tells what the cache holds."""
        fed = list(ids)
        tokens = generate_tokens(
            self._model,
            ids[reused:],
            cache=self._cache,
            sampling=sampling,
            max_tokens=max_tokens,
        )
        try:
            with contextlib.closing(tokens):
                for token in tokens:
                    fed.append(token)
                    yield token
        finally:
            self._held = fed[: cache_length(self._cache)]


def encode_text(backend: Any, text: str) -> list[int]:
    """Ids of text in which the names of special tokens are text.

    Args:
        backend: a `tokenizers.Tokenizer`.
        text: anything.
    """
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        control = _special_ids(backend)
        if control.isdisjoint(ids):
            return ids
        # A name that the tokenizer does not flag as special: a cut within it breaks it up.
        names = sorted(filter(None, map(backend.id_to_token, control)))
        pieces = _cut_within(text, names)
        return [i for piece in pieces for i in backend.encode(piece, add_special_tokens=False).ids]
    finally:
        backend.encode_special_tokens = before


def fit(prefix: list[int], suffix: list[int], room: int) -> tuple[list[int], list[int], int]:
    """Cut prefix and suffix from their far ends to `room` tokens; and what context may have.

    The suffix may have a quarter, or what the prefix leaves; the prefix what the suffix leaves.
    Context has what both leave, and nothing where either was cut.
    """
    whole, step = len(prefix) + len(suffix), _step(room)
    if whole <= room:
        return prefix, suffix, room - whole
    suffix_room = max(int(room * SUFFIX_SHARE), room - len(prefix))
    if len(suffix) > suffix_room:
        suffix = suffix[: suffix_room // step * step]
    return _without_beginning(prefix, room - len(suffix), step), suffix, 0


def _step(room: int) -> int:
    return max(1, min(TRIM_STEP_TOKENS, room // 8))


def _without_beginning(ids: list[int], room: int, step: int) -> list[int]:
    """What fits of the end, cut at a multiple of `step` tokens."""
    excess = max(0, len(ids) - room)
    return ids[-(-excess // step) * step :]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first items are the same."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _ended(rules: StopRules, text: str, reason: str) -> tuple[str, str]:
    """The middle of a text that nothing will follow, and why it ends there."""
    stop = rules.find_last_stop(text)
    return (text, reason) if stop is None else (text[: stop.cut], stop.rule)


def _special_ids(backend: Any) -> frozenset[int]:
    """Ids that mean something other than their text, flagged so or not."""
    added = backend.get_added_tokens_decoder().items()
    return frozenset(i for i, token in added if token.special or _is_markup(token.content))


def _is_markup(name: str) -> bool:
    """Whether an added token looks like <fim_middle> or <|im_end|>, not like spaces."""
    return re.fullmatch(r"<\|?\w+\|?>", name) is not None


def _cut_within(text: str, names: Sequence[str]) -> list[str]:
    """Text in pieces, none of which holds any of the names."""
    pattern = "|".join(f"(?={re.escape(name)})" for name in names if len(name) > 1)
    cuts = [m.start() + 1 for m in re.finditer(pattern, text)]
    bounds = [0, *cuts, len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]


def _is_crlf(*texts: str) -> bool:
    """Whether there are line ends, and all of them are CRLF."""
    pairs = sum(text.count("\r\n") for text in texts)
    return pairs > 0 and all(sum(t.count(c) for t in texts) == pairs for c in "\r\n")


def _lf(text: str) -> str:
    return text.replace("\r\n", "\n")
