r"""Fill in the middle: what belongs between the text before a cursor and the text after it.

    model, tokenizer = edge.load("models/demo/mlx-fp16")
    completer = Completer(MlxSource(model), tokenizer)
    completer.complete("for key, value in d.", "():\n    print(key, value)\n", order="spm").text

The parts of the prompt are encoded one by one: <fim_middle> in a source file is text.
"""

import contextlib
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from edge.errors import EdgeError
from edge.generate.decode import Tokens
from edge.generate.fim_prompt import REPO_TOKEN, FimTokens, Order, near_beginning, near_end
from edge.generate.fim_stop import StopRules
from edge.generate.sampling import GREEDY, Sampling
from edge.generate.sources import TokenSource
from edge.generate.stream import TokenClock, stop_ids
from edge.tokenizer.detokenizer import REPLACEMENT_CHARACTER, StreamingDetokenizer
from edge.tokenizer.tokenizer import encode_text, special_ids

MAX_TOKENS = 128


@dataclass(frozen=True)
class Completion:
    """A middle and what it took; times begin with the call.

    Attributes:
        reused_tokens: of the prompt, taken from the cache of the calls before.
        generated_tokens: a stop token and what was cut off included.
        decode_tok_s: (N - 1) / (t_N - t_1); None for fewer than two tokens.
        stopped_by: "stop token", "max tokens" or a rule of `fim_stop`.
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
    """Text of the middle that no rule can take back any more; at last the whole."""

    text: str
    completion: Completion | None


class Completer:
    """Completes with what a source of tokens gives; refuses models not trained for it.

    The source keeps the keys and values of the last prompt, so the next one pays from the first
    differing token on. While a user types, PSM computes the end of the prefix and the whole
    suffix again; SPM, where the suffix comes first, the end of the prefix alone.
    """

    def __init__(self, source: TokenSource, tokenizer: Any):
        self.source = source
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._tokens = FimTokens.find(self._backend)
        self._stops = stop_ids(tokenizer) | special_ids(self._backend)

    def complete(self, prefix: str, suffix: str = "", **options: Any) -> Completion:
        """The text between prefix and suffix; options and errors of `stream`."""
        *_, last = self.stream(prefix, suffix, **options)
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
        """Yields the text between prefix and suffix as it comes.

        Text whose line ends are all CRLF is completed as if they were LF, and gets CRLF.

        Args:
            prefix: everything before the cursor.
            suffix: everything after it.
            context: other files of the repository, the most important last.
            order: of the prompt.
            max_tokens: the window keeps room for so many.
            max_lines: of the middle; blank ones before it are free.
            stop_rules: apply the rules of `fim_stop`.
            sampling: how tokens are chosen.

        Raises an EdgeError at the first step if there is no room, or no token for context.
        """
        clock = TokenClock()
        line_end = "\r\n" if _is_crlf(prefix, suffix) else "\n"
        limit = self.source.context_tokens
        prefix = near_end(prefix.replace(line_end, "\n"), limit)
        suffix = near_beginning(suffix.replace(line_end, "\n"), limit)
        ids = self._prompt(prefix, suffix, context, order, max_tokens)
        rules = StopRules(prefix, suffix, max_lines, stop_rules)
        reused, tokens = self.source.generate(ids, max_tokens, sampling)
        shown = 0
        with contextlib.closing(self._middle(tokens, rules, clock)) as steps:
            for text, certain, stopped_by in steps:
                piece, shown = text[shown:certain], max(shown, certain)
                completion = None
                if stopped_by is not None:
                    completion = Completion(
                        text.replace("\n", line_end),
                        prompt_tokens=len(ids),
                        reused_tokens=reused,
                        generated_tokens=clock.tokens,
                        ttft_s=clock.ttft_s or 0.0,
                        total_s=(time.monotonic_ns() - clock.begin_ns) / 1e9,
                        decode_tok_s=clock.decode_tok_s,
                        stopped_by=stopped_by,
                    )
                yield MiddleEvent(piece.replace("\n", line_end), completion)

    def _prompt(
        self, prefix: str, suffix: str, context: Sequence[str], order: Order, max_tokens: int
    ) -> list[int]:
        limit = self.source.context_tokens
        room = limit - max_tokens - 3
        if max_tokens < 1 or room < 1:
            raise EdgeError(
                f"max_tokens is {max_tokens} and the model's context has {limit} positions; "
                f"choose from 1 to {limit - 4}."
            )
        repo = self._tokens.repo
        if context and repo is None:
            raise EdgeError(
                f"the model's vocabulary has no {REPO_TOKEN}, which joins the files of a "
                f"repository; leave out the context."
            )
        encode = partial(encode_text, self._backend)
        before, after = encode(prefix), encode(suffix)
        files: list[int] = []
        for text in context:
            files += [*encode(near_end(text, limit)), repo or 0]
        return self._tokens.prompt(before, after, files, room, order)

    def _middle(
        self, tokens: Tokens, rules: StopRules, clock: TokenClock
    ) -> Generator[tuple[str, int, str | None], None, None]:
        """Per token the text so far, how much of it is certain, and at last why it ended."""
        detokenizer, text, reason = StreamingDetokenizer(self._tokenizer), "", "max tokens"
        with contextlib.closing(tokens):
            for token in tokens:
                clock.count()
                if token in self._stops:
                    reason = "stop token"
                    break
                text += detokenizer.add(token)
                stop = rules.find_stop(text)
                if stop is not None:
                    yield text[: stop.cut], stop.cut, stop.rule
                    return
                yield text, rules.find_certain(text), None
        rest = detokenizer.finish()
        # Drops a character that max_tokens cut in half.
        text += rest if reason == "stop token" else rest.rstrip(REPLACEMENT_CHARACTER)
        stop = rules.find_last_stop(text)
        if stop is not None:
            text, reason = text[: stop.cut], stop.rule
        yield text, len(text), reason


def _is_crlf(*texts: str) -> bool:
    """There are line ends, and all of them are CRLF."""
    pairs = sum(text.count("\r\n") for text in texts)
    return pairs > 0 and all(sum(t.count(c) for t in texts) == pairs for c in "\r\n")
