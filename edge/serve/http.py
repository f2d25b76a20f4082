"""What all dialects need of HTTP: bodies within limits, errors, answers, clients that leave."""

import asyncio
import logging
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import msgspec
from sse_starlette import EventSourceResponse
from starlette.requests import Request as Http
from starlette.responses import Response
from starlette.routing import Route

from edge.errors import EdgeError, printable
from edge.serve.metrics import Metrics
from edge.serve.queue import Queue
from edge.serve.request import End, Event, Piece, Refused, Request, Token, Usage

MOST_BODY_BYTES = 8 << 20
BODY_S = 30.0
# A client that does not read its stream for this long is left.
SEND_S = 60.0
RETRY_AFTER_S = 1
# After Ctrl-C a running answer has this long to end.
GRACE_S = 30
T = TypeVar("T")
Json = dict[str, Any]
log = logging.getLogger("edge.serve")


@dataclass(frozen=True)
class Service:
    """What the endpoints share."""

    queue: Queue
    name: str  # of the model, for clients
    path: str  # of the model's files
    log_prompts: bool = False
    started_s: int = field(default_factory=lambda: int(time.time()))
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def context_tokens(self) -> int:
        return self.queue.engine.model.source.context_tokens


Endpoint = Callable[[Http, Service], Awaitable[Response]]


class Gone(Exception):
    """The client has left; nobody reads an answer."""


def route(service: Service, method: str, path: str, endpoint: Endpoint) -> Route:
    """A route whose errors are one JSON sentence."""

    async def run(http: Http) -> Response:
        try:
            return await endpoint(http, service)
        except Gone:
            return Response(status_code=499)  # as nginx logs it
        except Exception as error:
            return error_response(path, *_failure(path, error))

    return Route(path, run, methods=[method])


def _failure(path: str, error: Exception) -> tuple[int, str]:
    """Status and sentence; of an unexpected error the log has the place, but not the text.

    The text may quote a prompt.
    """
    if isinstance(error, EdgeError):
        return error.status if isinstance(error, Refused) else 400, str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    log.info(f"{path} failed: {type(error).__name__} in {frame.filename}, line {frame.lineno}")
    return 500, "edge failed; its log says where."


def json_response(value: Any, status: int = 200) -> Response:
    """Compact JSON: llama.vim looks for `"content":"` without a space."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def error_response(path: str, status: int, sentence: str) -> Response:
    """An error in the words of the dialect that the path belongs to."""
    response = json_response(error_body(path, status, sentence), status)
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def error_body(path: str, status: int, sentence: str) -> Json:
    if path.startswith("/api/"):  # Ollama's
        return {"error": sentence}
    kinds = {401: "authentication_error", 503: "unavailable_error", 500: "server_error"}
    kind = kinds.get(status, "invalid_request_error")
    return {"error": {"message": sentence, "type": kind, "param": None, "code": status}}


def check_model(service: Service, name: str) -> None:
    """Refuses the name of another model; Ollama's clients may add its tag."""
    if name not in ("", service.name, f"{service.name}:latest"):
        raise Refused(f"the model {name[:99]!r} is not here; ask for {service.name!r}.", 404)


async def read_body(
    http: Http, service: Service, kind: type[T], unsupported: Sequence[str] = ()
) -> T:
    """The body as a struct; refuses other values, and fields that nothing here would honour."""
    body = await _body(http)
    if service.log_prompts:
        log.info(f"{http.url.path} {printable(body.decode('utf-8', 'replace'))}")
    try:
        fields = msgspec.json.decode(body)
        if not isinstance(fields, dict):
            raise Refused("the body is not a JSON object.")
        for name in unsupported:
            if fields.get(name):
                raise Refused(f"{name} is not supported; leave it out.")
        return msgspec.convert(_given(fields), type=kind)
    except msgspec.ValidationError as error:
        raise Refused(f"the request is not as expected: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(f"the body is not JSON: {error}.") from None
    except RecursionError:
        raise Refused("the body is JSON nested too deeply.") from None


def _given(value: Any) -> Any:
    """Objects without null, which clients write for what they leave out."""
    if not isinstance(value, dict):
        return value
    return {name: _given(inner) for name, inner in value.items() if inner is not None}


async def _body(http: Http) -> bytes:
    too_large = Refused(
        f"the body is larger than {MOST_BODY_BYTES >> 20} MiB; send less text.", 413
    )
    if int(http.headers.get("content-length", "0")) > MOST_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in http.stream():
                body += chunk
                if len(body) > MOST_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise Refused(f"the body did not come within {BODY_S:g} s; send it again.", 408) from None
    return bytes(body)


@dataclass(frozen=True)
class Answer:
    """One whole answer."""

    text: str
    tokens: tuple[Token, ...]
    end: End


class Words(ABC):
    """A dialect's words for the answers to one request: JSON values, one or several in a stream."""

    frame: ClassVar[bytes] = b"data: %b\n\n"
    media_type: ClassVar[str] = "text/event-stream"
    ping_s: ClassVar[int] = 15

    @abstractmethod
    def whole(self, answers: Sequence[Answer]) -> Any:
        """All answers together."""

    @abstractmethod
    def chunk(self, event: Event) -> Any:
        """A piece or the end of an answer, in a stream."""

    def last(self) -> Sequence[Any]:
        """What a stream ends with."""
        return ()


async def answered(
    http: Http, service: Service, request: Request, words: Words, streams: bool
) -> Response:
    """The answers to a request, at once or as a stream; raises Gone when the client leaves."""
    events = service.metrics.counted(service.queue.answer(request))
    if not streams:
        return json_response(words.whole(await _unless_gone(http, _collected(events))))
    # The first is awaited: its errors have a status of their own.
    first = await _unless_gone(http, anext(events))
    has_tokens = request.logprobs is not None
    return EventSourceResponse(
        _encoded(http.url.path, first, events, words, has_tokens),
        media_type=words.media_type,
        ping=words.ping_s,
        send_timeout=SEND_S,
        shutdown_grace_period=GRACE_S,
    )


async def _unless_gone(http: Http, work: Awaitable[T]) -> T:
    """The result of the work, which is cancelled when the client leaves; then raises Gone."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_wait_for_leaving(http))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _wait_for_leaving(http: Http) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _collected(events: AsyncGenerator[Event, None]) -> list[Answer]:
    """All answers; each begins after the end of the one before."""
    answers: list[Answer] = []
    pieces: list[Piece] = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Piece):
                pieces.append(event)
                continue
            tokens = tuple(token for piece in pieces for token in piece.tokens)
            answers.append(Answer("".join(piece.text for piece in pieces), tokens, event))
            pieces.clear()
    return answers


async def _encoded(
    path: str,
    first: Event,
    events: AsyncGenerator[Event, None],
    words: Words,
    has_tokens: bool,
) -> AsyncGenerator[bytes, None]:
    """The lines of a stream; an error becomes its last one."""
    event: Event | None = first
    async with aclosing(events):
        try:
            while event is not None:
                if isinstance(event, End) or event.text or (has_tokens and event.tokens):
                    yield words.frame % msgspec.json.encode(words.chunk(event))
                event = await anext(events, None)
        except Exception as error:
            yield words.frame % msgspec.json.encode(error_body(path, *_failure(path, error)))
            return
    for value in words.last():
        yield words.frame % msgspec.json.encode(value)


def usage_fields(*usages: Usage) -> Json:
    """OpenAI's `usage` of all answers to one prompt."""
    prompt_tokens, cached_tokens = usages[0].prompt_tokens, usages[0].cached_tokens
    generated_tokens = sum(usage.generated_tokens for usage in usages)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated_tokens,
        "total_tokens": prompt_tokens + generated_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        **energy_fields(*usages),
    }


def energy_fields(*usages: Usage) -> Json:
    """The energy of answers together; empty where it is not known of each."""
    known = [usage.energy for usage in usages if usage.energy is not None]
    if len(known) < len(usages):
        return {}
    joules = sum(energy.total_j for energy in known)
    return {"energy_j": joules, "energy_boundary": known[0].boundary}


def token_fields(token: Token) -> Json:
    """A token with its log probability and those of the most probable ones."""
    top = [_logprob(*each) for each in token.top]
    return {**_logprob(token.id, token.text, token.logprob), "top_logprobs": top}


def _logprob(token_id: int, text: str, value: float) -> Json:
    return {"id": token_id, "token": text, "bytes": list(text.encode()), "logprob": value}
