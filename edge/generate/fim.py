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
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError
from edge.generate.fim_prompt import (
    REPO_TOKEN,
    FimTokens,
    Order,
    fit,
    near_beginning,
    near_end,
    step_tokens,
    without_beginning,
)
from edge.generate.fim_stop import StopRules
from edge.generate.sampling import GREEDY, Sampling
from edge.generate.stop import stop_ids
from edge.generate.token_source import MlxSource, TokenSource
from edge.tokenizer.detokenizer import REPLACEMENT_CHARACTER, StreamingDetokenizer
from edge.tokenizer.special_tokens import encode_text, special_ids

if TYPE_CHECKING:
    from edge.model.stablelm import Model

MAX_TOKENS = 128


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
class MiddleEvent:
    """One step of a completion.

    Attributes:
        text: what of the middle became certain: no rule can take it back. Joined over all
            events it is the middle.
        completion: None, and in the last event the whole.
    """

    text: str
    completion: Completion | None


class _Clock:
    """Stamps of one call, by the monotonic clock."""

    def __init__(self) -> None:
        self._call_s = time.monotonic()
        self._stamps: list[float] = []

    def token(self) -> None:
        """A token is there."""
        self._stamps.append(time.monotonic())

    def completion(self, text: str, prompt_tokens: int, reused: int, stopped_by: str) -> Completion:
        """What the call gave, and what the stamps say."""
        first, last = self._stamps[0], self._stamps[-1]
        count = len(self._stamps)
        return Completion(
            text=text,
            prompt_tokens=prompt_tokens,
            reused_tokens=reused,
            generated_tokens=count,
            ttft_s=first - self._call_s,
            total_s=time.monotonic() - self._call_s,
            decode_tok_s=(count - 1) / (last - first) if last > first else None,
            stopped_by=stopped_by,
        )


class Infiller:
    """Completes with what any source of tokens gives.

    Args:
        source: MLX's or llama.cpp's.
        tokenizer: the model's; one of mlx-lm or a fast one of transformers do too.

    Raises:
        EdgeError: the model was not trained to fill in the middle.
    """

    def __init__(self, source: TokenSource, tokenizer: Any):
        self._source = source
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._tokens = FimTokens.find(self._backend)
        self._stops = stop_ids(tokenizer) | special_ids(self._backend)

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
        *_, last = self.stream(
            prefix,
            suffix,
            context=context,
            order=order,
            max_tokens=max_tokens,
            max_lines=max_lines,
            stop_rules=stop_rules,
            sampling=sampling,
        )
        assert last.completion is not None
        return last.completion

    def stream(
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
    ) -> Generator[MiddleEvent, None, None]:
        """The same as it comes, with the arguments of `complete`, and its errors at the first step.

        Closed early, it leaves a cache that is right.
        """
        clock = _Clock()
        crlf = _is_crlf(prefix, suffix)
        if crlf:
            prefix, suffix = _lf(prefix), _lf(suffix)
        limit = self._source.context_tokens
        prefix, suffix = near_end(prefix, limit), near_beginning(suffix, limit)
        ids = self._prompt(prefix, suffix, context, order, max_tokens)
        rules = StopRules(prefix, suffix, max_lines, stop_rules)
        reused, tokens = self._source.follow(ids, max_tokens, sampling)
        shown = 0
        with contextlib.closing(self._middle(tokens, rules, clock)) as steps:
            for text, certain, stopped_by in steps:
                piece, shown = text[shown:certain], max(shown, certain)
                completion = None
                if stopped_by is not None:
                    whole = _crlf(text) if crlf else text
                    completion = clock.completion(whole, len(ids), reused, stopped_by)
                yield MiddleEvent(_crlf(piece) if crlf else piece, completion)

    def forget(self) -> None:
        """Keep nothing of the prompts so far: the next one is computed as if it were the first."""
        self._source.forget()

    def _prompt(
        self, prefix: str, suffix: str, context: Sequence[str], order: Order, max_tokens: int
    ) -> list[int]:
        """The ids of the prompt, cut to what the window has room for."""
        limit = self._source.context_tokens
        room = limit - max_tokens - 3
        if max_tokens < 1 or room < 1:
            raise EdgeError(
                f"max_tokens is {max_tokens} and the model's context has {limit} positions; "
                f"choose from 1 to {limit - 4}."
            )
        before, after, left = fit(self._encode(prefix), self._encode(suffix), room)
        others = without_beginning(self._context(context), left, step_tokens(room))
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
        limit = self._source.context_tokens
        texts = [near_end(text, limit) for text in files]
        return [i for text in texts for i in (*self._encode(text), self._tokens.repo or 0)]

    def _encode(self, text: str) -> list[int]:
        return encode_text(self._backend, text)

    def _middle(
        self, tokens: Generator[int, None, None], rules: StopRules, clock: _Clock
    ) -> Generator[tuple[str, int, str | None], None, None]:
        """Per token the text so far, how much of it is certain, and at last why it ended."""
        detokenizer, text = StreamingDetokenizer(self._tokenizer), ""
        with contextlib.closing(tokens):
            for token in tokens:
                clock.token()
                if token in self._stops:
                    text += detokenizer.finish()
                    yield _ended(rules, text, "stop token")
                    return
                text += detokenizer.add(token)
                stop = rules.find_stop(text)
                if stop is not None:
                    yield text[: stop.cut], stop.cut, stop.rule
                    return
                yield text, rules.find_certain(text), None
        # Half a character is nothing that anybody wants in a file.
        text += detokenizer.finish().rstrip(REPLACEMENT_CHARACTER)
        yield _ended(rules, text, "max tokens")


class Completer(Infiller):
    """Completes with one model and keeps the keys and values of the last prompt.

    The next prompt pays for what differs from the first differing token on. While somebody types,
    that is the end of the prefix: PSM computes it and the whole suffix again, SPM, where the
    suffix comes first, the end of the prefix alone.

    Args:
        model: the network, as `edge.load` returns it.
        tokenizer: its tokenizer; one of mlx-lm or a fast one of transformers do too.
        kv_bits: 8 or 4 to keep keys and values quantised; None as they are computed.

    Raises:
        EdgeError: the model was not trained to fill in the middle.
    """

    def __init__(self, model: Model, tokenizer: Any, kv_bits: int | None = None):
        super().__init__(MlxSource(model, kv_bits), tokenizer)


def _ended(rules: StopRules, text: str, reason: str) -> tuple[str, int, str]:
    """The middle of a text that nothing will follow, its length, and why it ends there."""
    stop = rules.find_last_stop(text)
    if stop is not None:
        text, reason = text[: stop.cut], stop.rule
    return text, len(text), reason


def _is_crlf(*texts: str) -> bool:
    """Whether there are line ends, and all of them are CRLF."""
    pairs = sum(text.count("\r\n") for text in texts)
    return pairs > 0 and all(sum(t.count(c) for t in texts) == pairs for c in "\r\n")


def _lf(text: str) -> str:
    return text.replace("\r\n", "\n")


def _crlf(text: str) -> str:
    return text.replace("\n", "\r\n")
