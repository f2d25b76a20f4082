"""Answers of one model: prompts to ids, and tokens to the events of a request.

Everything here runs in the thread that owns the model.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from edge.errors import EdgeError
from edge.generate.batch import Batch
from edge.generate.chat_prompt import ChatPrompt, PlainPrompt, can_chat
from edge.generate.decode import Continued, LlamaSource, TokensOrNone
from edge.generate.fim import Completer
from edge.generate.sampling import Sampling
from edge.generate.stream import StopScanner, TokenClock, encode_beginning, text_events
from edge.generate.transcript import Message
from edge.serve.request import Chat, End, Event, Hole, Piece, Refused, Request, Text, Token, Usage
from edge.tokenizer.fim_tokens import FimTokens
from edge.tokenizer.tokenizer import bos_ids, encode_text

# Between two parts of a prompt other answers get a token, and a client that has left is noticed.
PREFILL_TOKENS = 512
# Text, the reason of the end (None before it).
Steps = Generator[tuple[str, str | None], None, None]


@dataclass(frozen=True)
class ServedModel:
    """A loaded model under the name that clients see."""

    name: str
    source: Batch | LlamaSource
    tokenizer: Any
    running_bytes: int = 0  # of MLX's buffers
    prefill_tokens: int = PREFILL_TOKENS


class Watch:
    """A source of one answer's tokens; keeps their stamps and ends the answer before its end.

    `check` is called between tokens and between parts of the prompt, and may raise. The
    iterator of a batch yields None while its next token is not computed.
    """

    def __init__(self, model: ServedModel, request: Request, check: Callable[[], None]):
        self._source, self._tokenizer = model.source, model.tokenizer
        self._prefill_tokens = model.prefill_tokens
        self._request, self._check = request, check
        self.context_tokens = model.source.context_tokens
        self.begin_ns = self.prefilled_ns = time.monotonic_ns()
        self.prompt_tokens = self.cached_tokens = self.generated_tokens = 0
        self.is_computing = self.timed_out = False
        self._fresh: list[Token] = []
        self._picked: list[tuple[mx.array, mx.array]] = []

    def generate(self, ids: Sequence[int], max_tokens: int | None, sampling: Sampling) -> Continued:
        """The number of reused ids, and the ids that follow; as the source does."""
        if len(ids) >= self.context_tokens:
            limit = self.context_tokens
            raise Refused(
                f"the prompt has {len(ids)} tokens and the model's context ends at {limit}, one of "
                f"which is for the answer; shorten it by {len(ids) - limit + 1} or more."
            )
        self._check()
        self.prompt_tokens = len(ids)
        self.cached_tokens, tokens = self._source.generate(
            ids,
            max_tokens,
            sampling,
            on_prefill=self._prefilled,
            prefill_tokens=self._prefill_tokens,
            on_pick=None if self._request.logprobs is None else self._keep_logprobs,
        )
        self.is_computing = True
        return self.cached_tokens, self._watched(tokens)

    def take(self) -> tuple[Token, ...]:
        """The tokens since the last call."""
        taken, self._fresh = tuple(self._fresh), []
        return taken

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            generated_tokens=self.generated_tokens,
            begin_ns=self.begin_ns,
            prefilled_ns=self.prefilled_ns,
            end_ns=time.monotonic_ns(),
        )

    def _prefilled(self, done: int, total: int) -> None:
        self.prefilled_ns = time.monotonic_ns()
        self._check()

    def _watched(self, tokens: TokensOrNone) -> TokensOrNone:
        limit_s, first_s, has_line_end = self._request.max_predict_s, 0.0, False
        with contextlib.closing(tokens):
            for token in tokens:
                if token is None:
                    yield None
                    self._check()
                    continue
                now_s = time.monotonic()
                first_s = first_s or now_s
                self.generated_tokens += 1
                self._fresh.append(self._described(token))
                yield token
                self._check()
                if limit_s is None:
                    continue
                has_line_end = has_line_end or "\n" in self._tokenizer.decode([token])
                if has_line_end and now_s - first_s > limit_s:
                    self.timed_out = True
                    return

    def _keep_logprobs(self, logits: mx.array, token: mx.array) -> None:
        logprobs = logits[0].astype(mx.float32)
        self._picked.append((logprobs - mx.logsumexp(logprobs), token))

    def _described(self, token: int) -> Token:
        """The token with its log probabilities: the choices are kept in the tokens' order."""
        count = self._request.logprobs
        if count is None:
            return Token(token)
        logprobs, _ = self._picked.pop(0)
        best = mx.argsort(-logprobs)[:count].tolist() if count else []
        text = self._tokenizer.decode
        top = tuple((i, text([i]), float(logprobs[i].item())) for i in best)  # type: ignore[arg-type, union-attr]
        return Token(token, text([token]), float(logprobs[token].item()), top)  # type: ignore[arg-type]


class Engine:
    """Answers requests with one model; `places` of them at once."""

    def __init__(self, model: ServedModel):
        self.model = model
        self._batch = model.source if isinstance(model.source, Batch) else None
        self.places = 1 if self._batch is None else self._batch.slots
        self.tokenizer, self._backend = model.tokenizer, model.tokenizer.backend_tokenizer
        self.is_base = not can_chat(self.tokenizer)
        self._chat = PlainPrompt(self.tokenizer) if self.is_base else ChatPrompt(self.tokenizer)
        # None and why, for a model that was not trained to fill in the middle.
        self.fim: FimTokens | None = None
        self.no_fim = ""
        try:
            self.fim = FimTokens.find(self._backend)
        except EdgeError as error:
            self.no_fim = str(error)
        self._bos = list(bos_ids(self._backend))
        if self.fim is not None:
            self._completer = Completer(model.source, self.tokenizer)

    def warm_up(self) -> None:
        """Makes one token: the first ones load libraries and compile kernels."""
        once = Request(Text(("\n",)), 1, (Sampling(temperature=1.0, top_p=0.9, top_k=9),))
        for _ in self.answer(once, lambda: None):
            self.step()
        self.model.source.reset()

    def step(self) -> None:
        """Computes for all answers that are open at once; without a batch they do it themselves."""
        if self._batch is not None:
            self._batch.step()

    def answer(
        self, request: Request, check: Callable[[], None]
    ) -> Generator[Event | None, None, None]:
        """The events of all answers, None before a `step`; `check` as in `Watch`."""
        for index, sampling in enumerate(request.samplings):
            watch = Watch(self.model, request, check)
            try:
                yield from self._one(index, request, sampling, watch)
            except EdgeError as error:
                # What is wrong with a request shows before anything is computed.
                status = 500 if watch.is_computing else 400
                raise error if isinstance(error, Refused) else Refused(str(error), status) from None

    def _one(
        self, index: int, request: Request, sampling: Sampling, watch: Watch
    ) -> Iterator[Event | None]:
        scanner = StopScanner(request.stop)
        with contextlib.closing(self._steps(request, sampling, watch)) as steps:
            for text, stopped_by in steps:
                shown = scanner.add(text)
                tokens = watch.take()
                if not tokens and stopped_by is None:
                    yield None
                    continue
                if stopped_by is not None:
                    shown += scanner.finish()
                    tokens = tokens[:-1] if stopped_by == "stop token" else tokens
                yield Piece(index, shown, tokens)
                if scanner.found is not None:
                    stopped_by = "stop string"
                if stopped_by is not None:
                    break
        if watch.timed_out and stopped_by == "length":
            stopped_by = "time"
        yield End(index, stopped_by or "length", scanner.found, watch.usage())

    def _steps(self, request: Request, sampling: Sampling, watch: Watch) -> Steps:
        if isinstance(request.prompt, Hole):
            yield from self._fill(request.prompt, request.max_tokens, sampling, watch)
            return
        ids = self.ids(request.prompt)
        _, tokens = watch.generate(ids, request.max_tokens, sampling)
        stops = () if request.ignores_stop_tokens else None
        scanner, clock = StopScanner(()), TokenClock()
        events = text_events(tokens, self.tokenizer, scanner, clock, len(ids), None, stops)
        with contextlib.closing(events):
            for event in events:
                yield event.text, event.stopped_by

    def _fill(self, hole: Hole, max_tokens: int | None, sampling: Sampling, watch: Watch) -> Steps:
        """Steps of `edge complete`, suffix first: a keystroke changes only the prompt's end."""
        if self.fim is None:
            raise Refused(self.no_fim)
        half = watch.context_tokens // 2  # the rest is for the prompt
        events = self._completer.stream(
            hole.prefix,
            hole.suffix,
            context=hole.files if self.fim.repo is not None else (),
            order="spm" if "spm" in self.fim.spelling.orders else "psm",
            max_tokens=half if max_tokens is None else min(max_tokens, half),
            sampling=sampling,
            source=watch,
        )
        with contextlib.closing(events):
            for event in events:
                done = event.completion
                yield event.text, None if done is None else done.stopped_by

    def ids(self, prompt: Text | Chat) -> list[int]:
        """The ids of a prompt; the first text gets the model's BOS."""
        if isinstance(prompt, Chat):
            return self._chat.ids(prompt.messages, {}, True)
        ids: list[int] = []
        for place, part in enumerate(prompt.parts):
            if isinstance(part, int):
                ids.append(part)
            elif place == 0:
                ids += encode_beginning(self.tokenizer, part)
            else:
                ids += self.tokenizer.encode(part, add_special_tokens=False)
        return ids or list(self._bos)

    def tokenize(self, text: str, adds_bos: bool, parses_special: bool) -> list[int]:
        if parses_special:
            return [int(i) for i in self.tokenizer.encode(text, add_special_tokens=adds_bos)]
        return [*(self._bos if adds_bos else ()), *encode_text(self._backend, text)]

    def detokenize(self, ids: Sequence[int]) -> str:
        last = len(self.tokenizer) - 1
        if (token := max(ids, default=0)) > last:
            raise Refused(f"the token {token} does not exist; the vocabulary ends at {last}.")
        return str(self.tokenizer.decode(ids))

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation with the beginning of an answer, without BOS's name."""
        if isinstance(self._chat, PlainPrompt):
            raise Refused(f"{self.model.name} is a base model without a chat template.")
        return self._chat.render(messages)
