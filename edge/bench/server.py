"""Measures a running server through its OpenAI route, from outside.

client = Client("http://localhost:8080", "model")
trials = ServedTrials(client, Workload(512, 128, joint=True))

Servers differ in what they accept and report: Ollama, LM Studio, llama-server, mlx_lm.server and
llama-cpp-python's server all have `/v1/completions` as a stream. A profile holds neither the
server's address nor its host.
"""

import json
import random
import re
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psutil
from msgspec.structs import replace

from edge.bench.trial import MAX_PASSES, make_trial
from edge.errors import EdgeError
from edge.profile.profile import EngineFacts, Workload
from edge.profile.trial import Count, Trial

ROUTE = "/v1/completions"
# A prompt of many thousand tokens can take minutes on a slow machine.
SILENCE_S = 300.0
LONGEST_LINE, LONGEST_ERROR, LONGEST_LIST = 1 << 20, 4000, 1 << 22
# Statuses with which servers refuse a field that they do not know.
UNKNOWN_FIELD = (400, 422)
# Share of a prompt from the server's cache that changes no conclusion; chunks per token.
MAX_CACHED, FEW_CHUNKS = 0.1, 0.75
# Requests without a rate before a trial is given up.
TRIES = 8
# Models go on with numbers for hundreds of tokens, where random words soon make them end.
TAIL, TAIL_FROM_TOKENS = "\nnumbers = [1, 2, 3, 4, 5, 6, 7, 8, 9,", 32
# Short words, most of them one token.
WORDS = (
    "time year day way man world life hand part child eye place work week case point number group "
    "fact water room money story book side kind head house page power game line end law car city "
    "name team idea body back face door art war party result change morning reason research girl "
    "food air table word music light family night home road market"
)
FIRST_PROBE_WORDS = 4
LOCAL, REMOTE = "local server", "remote server"
JSON = {"Content-Type": "application/json"}
WITH_USAGE = {"stream_options": {"include_usage": True}}
REMARKS = (
    "measured through HTTP: times include tokenising, sampling and detokenising in the server, and "
    "the way to it and back; power, where measured, is that of the client too",
    "bandwidth_fraction: the bytes that a served model reads per token are not known",
    "peak_memory_bytes: the memory of a server is not measured",
)
NO_USAGE = (
    "the server reports no token counts (usage): each chunk of its stream is counted as a token, "
    "and prefill_tok_s is not known"
)


class Refused(EdgeError):
    """An answer other than 200."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class _Details(msgspec.Struct):
    cached_tokens: Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


@dataclass(frozen=True)
class Answer:
    """One request: stamps of its start, first text and end; counts are None where not reported."""

    begin_ns: int
    first_ns: int
    end_ns: int
    chunks: int
    counted: int | None
    prompt_tokens: int | None
    cached_tokens: int

    @property
    def tokens(self) -> int:
        return self.chunks if self.counted is None else self.counted


def server_url(text: str) -> str:
    """The address without a final slash and /v1; an EdgeError unless it is of http or https."""
    try:
        parts = urlsplit(text)
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        is_plain = not (parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:
        is_usable = is_plain = False
    if not (is_usable and is_plain and text.isascii() and text.isprintable() and " " not in text):
        raise EdgeError(
            f"{text!r} is not the address of a server; give one such as http://localhost:8080."
        )
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def is_local(url: str) -> bool:
    """The server's name is one of this machine; behind a tunnel that is not where it runs."""
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None)
    except (OSError, UnicodeError):
        return False
    own = {each.address for listed in psutil.net_if_addrs().values() for each in listed}
    addresses = {str(each[4][0]) for each in found}
    return all(a in own or a.startswith("127.") or a in ("::1", "0.0.0.0", "::") for a in addresses)


def short_name(model: str) -> str:
    """The last part of a served model's name, which can be a path on the server."""
    last = re.split(r"[/\\]", model.rstrip("/\\"))[-1]
    return re.sub(r"[^\w.:+-]+", "-", last)[:60] or "model"


def choose_model(url: str, asked: str | None, warn: Callable[[str], None]) -> str:
    """The model to ask for, after a short request; `warn` is told where it is not listed."""
    listed = Client(url, "").models()
    if asked is None and not listed:
        raise EdgeError(
            "The server lists no model; name one with --model (mlx_lm.server: default_model)."
        )
    if asked is None and len(listed) > 1:
        names = ", ".join(listed[:20])
        raise EdgeError(f"The server lists {len(listed)} models; choose with --model: {names}.")
    name = listed[0] if asked is None else asked
    Client(url, name).complete("Hello", 1)
    if listed and name not in listed and f"{name}:latest" not in listed:
        warn(f"the server does not list {name!r}, so it may run another model")
    return name


@dataclass
class Client:
    """Sends one request at a time, each on a connection of its own."""

    url: str
    model: str
    silence_s: float = SILENCE_S
    _refused: int = 0  # how many of the extra fields' levels the server has refused

    def models(self) -> list[str]:
        """The names that the server lists; none where it has no such list."""
        try:
            with self._response("GET", "/v1/models") as (response, _):
                listed = json.loads(response.read(LONGEST_LIST))["data"]
                return [str(each["id"]) for each in listed]
        except (Refused, ValueError, KeyError, TypeError):
            return []

    def complete(self, prompt: str, tokens: int) -> Answer:
        """Streams a completion of `tokens` tokens; an EdgeError where it is refused or breaks."""
        extra_fields: tuple[Mapping[str, Any], ...] = (
            # llama-server and vLLM, llama-cpp-python, llama-server: others ignore them.
            {"ignore_eos": True, "min_tokens": tokens, "cache_prompt": False, **WITH_USAGE},
            WITH_USAGE,
            {},
        )
        fields = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        while True:
            body = {**fields, "stream": True, **extra_fields[self._refused]}
            try:
                with self._response("POST", ROUTE, body) as (response, begin_ns):
                    return self._answer(response, begin_ns)
            except Refused as error:
                if error.status not in UNKNOWN_FIELD or self._refused + 1 == len(extra_fields):
                    raise
                self._refused += 1

    @contextmanager
    def _response(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[HTTPResponse, int]]:
        """The answer of status 200, and the stamp before the request on an open connection."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.silence_s)
        sent = None if body is None else json.dumps(body).encode()
        try:
            connection.connect()
            begin_ns = time.monotonic_ns()
            connection.request(method, parts.path + path, sent, JSON)
            response = connection.getresponse()
            if response.status != 200:
                said = self._quoted(response.read(LONGEST_ERROR))
                sentence = f"The server answers {path} with status {response.status}{said}"
                raise Refused(f"{sentence}; check --server and --model.", response.status)
            yield response, begin_ns
        except TimeoutError:
            raise EdgeError(
                f"The server sent nothing for {self.silence_s:g} s; look at its log, or restart it."
            ) from None
        except (OSError, HTTPException, UnicodeError) as error:
            why = self._private(str(error) or type(error).__name__)
            raise EdgeError(
                f"The connection to the server failed ({why}); start it, or check --server."
            ) from None
        finally:
            connection.close()

    def _answer(self, response: HTTPResponse, begin_ns: int) -> Answer:
        """Reads the stream; the end is the stamp of the last event with a choice."""
        texts_ns: list[int] = []
        end_ns, usage, is_finished = 0, _Usage(), False
        for event, now_ns in self._events(response):
            usage = event.usage or usage
            for choice in event.choices or ():
                end_ns = now_ns
                is_finished |= choice.finish_reason is not None
                if choice.text:
                    texts_ns.append(now_ns)
        if not is_finished:
            raise EdgeError(
                f"The stream ended in the middle, after {len(texts_ns)} chunks; look at the log of "
                f"the server."
            )
        details = usage.prompt_tokens_details or _Details()
        return Answer(
            begin_ns=begin_ns,
            first_ns=texts_ns[0] if texts_ns else end_ns,
            end_ns=end_ns,
            chunks=len(texts_ns),
            counted=usage.completion_tokens,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=details.cached_tokens or 0,
        )

    def _events(self, response: HTTPResponse) -> Iterator[tuple[_Event, int]]:
        """Events and their stamps up to [DONE]; comments that keep the connection are skipped."""
        while line := response.readline(LONGEST_LINE):
            now_ns = time.monotonic_ns()
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if not line.startswith((b"data:", b"{")):  # an error can come as plain JSON
                continue
            try:
                event = msgspec.json.decode(data, type=_Event)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise EdgeError(f"The server sent an invalid event{self._quoted(data)}.") from None
            if event.error is not None:
                raise EdgeError(f"The server reports an error{self._quoted(data)}.")
            yield event, now_ns

    def _quoted(self, body: bytes) -> str:
        """What an answer says about an error, in brackets."""
        text = body.decode("utf-8", "replace")
        with suppress(ValueError, AttributeError):  # not a JSON object: quoted as it is
            found = json.loads(text)
            error = found.get("error", found.get("detail", text))
            text = error.get("message", text) if isinstance(error, dict) else error
        text = self._private(" ".join(str(text).split())[:200]).rstrip(".")
        return f" ({text})" if text else ""

    def _private(self, text: str) -> str:
        """Text without the server's host: reasons are part of a profile."""
        host = re.escape(urlsplit(self.url).hostname or "")
        return re.sub(host, "HOST", text, flags=re.IGNORECASE)


@dataclass
class ServedTrials:
    """Trials of one workload; every prompt is new, so that no prompt cache has it."""

    client: Client
    workload: Workload
    words: int = 0
    _counted: list[Answer] = field(default_factory=list)
    _random: random.Random = field(default_factory=random.SystemRandom)

    def fit_prompt(self) -> None:
        """Finds how many words make the prompt's tokens, from the counts of two short requests."""
        few, more = FIRST_PROBE_WORDS, FIRST_PROBE_WORDS + max(1, self.workload.prompt // 2)
        at_few, at_more = (
            self.client.complete(self._prompt(words), 1).prompt_tokens for words in (few, more)
        )
        self.words = self.workload.prompt
        if at_few is not None and at_more is not None and at_more > at_few:
            per_word = (at_more - at_few) / (more - few)
            self.words = max(1, few + round((self.workload.prompt - at_few) / per_word))

    def run(self, least_s: float, is_warmup: bool) -> Trial:
        """Requests until the spans of both the prefills and the generations last `least_s`.

        A request that ends after one token has no rate, but counts for the prefill.
        """
        has_rate = self.workload.generate > 1
        answers = [self._request()]
        while self._shortest_ns(answers) < least_s * 1e9 and len(answers) < MAX_PASSES:
            answers.append(self._request())
        while has_rate and not any(a.tokens > 1 for a in answers):
            if len(answers) >= TRIES:
                raise EdgeError(
                    f"The server stopped after at most one token in {len(answers)} requests, which "
                    f"gives no rate; use another prompt length (-p) or model."
                )
            answers.append(self._request())
        if not is_warmup:
            self._counted += answers
        prompts = [a.prompt_tokens for a in answers if a.prompt_tokens is not None]
        rated = [a for a in answers if has_rate and a.tokens > 1]
        trial = make_trial(
            round(statistics.fmean(prompts)) if prompts else 0,
            [(a.begin_ns, a.first_ns) for a in answers],
            [(a.first_ns, a.end_ns) for a in rated],
        )
        if not rated:
            return trial
        rate = sum(a.tokens - 1 for a in rated) / sum(a.end_ns - a.first_ns for a in rated) * 1e9
        return replace(trial, decode_tok_s=rate, token_us=[], pass_tokens=[a.tokens for a in rated])

    def _shortest_ns(self, answers: list[Answer]) -> int:
        first, last = answers[0], answers[-1]
        prefill_ns, decode_ns = last.first_ns - first.begin_ns, last.end_ns - first.first_ns
        return min(prefill_ns, decode_ns) if self.workload.generate > 1 else prefill_ns

    def facts(self, where: str) -> EngineFacts:
        remarks = list(REMARKS)
        if any(a.counted is None for a in self._counted):
            remarks.append(NO_USAGE)
        tokens, chunks = (
            sum(a.tokens for a in self._counted),
            sum(a.chunks for a in self._counted),
        )
        if chunks < FEW_CHUNKS * tokens:
            remarks.append(
                f"{tokens} tokens came in {chunks} chunks: the first is taken for the first token"
            )
        return EngineFacts(device=where, remarks=remarks)

    def warnings(self) -> list[str]:
        """The most that a prompt cache knew, where that is more than a little."""
        known = [(a.prompt_tokens, a.cached_tokens) for a in self._counted if a.prompt_tokens]
        tokens, cached = max(known, key=lambda counts: counts[1] / counts[0], default=(1, 0))
        if cached <= MAX_CACHED * tokens:
            return []
        return [
            f"the server took up to {cached} of {tokens} prompt tokens from its cache, so that "
            f"prefill looks too fast: switch its prompt cache off"
        ]

    def _prompt(self, words: int) -> str:
        tail = TAIL if self.workload.prompt >= TAIL_FROM_TOKENS else ""
        return " ".join(self._random.choices(WORDS.split(), k=words)) + tail

    def _request(self) -> Answer:
        answer = self.client.complete(self._prompt(self.words), max(self.workload.generate, 1))
        if self.workload.generate > 1 and answer.tokens > 1 and answer.end_ns <= answer.first_ns:
            raise EdgeError("The server sent its whole answer at once; use one that streams.")
        return answer
