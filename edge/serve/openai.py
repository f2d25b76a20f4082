"""OpenAI's dialect: /v1/models, /v1/completions, /v1/chat/completions.

Also Mistral's /v1/fim/completions, which clients of OpenAI's use to fill in the middle. Sampling
has llama-server's further fields and defaults.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field
from starlette.requests import Request as Http
from starlette.responses import Response
from starlette.routing import BaseRoute

from edge.generate.fim import MAX_TOKENS
from edge.serve.http import (
    Answer,
    Service,
    begun,
    check_model,
    json_response,
    read_body,
    route,
    sse_response,
    usage_fields,
    whole_answers,
)
from edge.serve.request import (
    AnswerCount,
    AnswerFields,
    Chat,
    End,
    Event,
    Hole,
    Prompt,
    Refused,
    SentMessage,
    Text,
    Token,
    Usage,
)

COMPLETION_TOKENS = 16  # OpenAI's default
MOST_LOGPROBS = 20
UNSUPPORTED = ("echo", "frequency_penalty", "presence_penalty", "logit_bias", "tools", "functions")
TokenCount = Annotated[int, Meta(ge=-1)]
LogprobCount = Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)]
Json = dict[str, Any]


class StreamOptions(Struct):
    """With `include_usage` a stream ends with the counts."""

    include_usage: bool = False


class ResponseFormat(Struct):
    """Only text."""

    type: Literal["text"] = "text"


class Common(AnswerFields):
    """Fields of all completions; max_tokens of -1 goes on to the end of the context."""

    model: str = ""
    max_tokens: TokenCount | None = None
    n: AnswerCount = 1
    stream: bool = False
    stream_options: StreamOptions = field(default_factory=StreamOptions)


class Completion(Common):
    """A text or the ids of one, also as a list of one; with a suffix the middle is wanted."""

    prompt: str | list[str | int | list[int]] = ""
    suffix: str | None = None
    logprobs: LogprobCount | None = None
    best_of: Annotated[int, Meta(le=1)] = 1


class ChatCompletion(Common):
    """A conversation."""

    messages: list[SentMessage] = field(default_factory=list)
    max_completion_tokens: TokenCount | None = None
    logprobs: bool = False
    top_logprobs: LogprobCount = 0
    response_format: ResponseFormat = field(default_factory=ResponseFormat)


def routes(service: Service) -> list[BaseRoute]:
    return [
        route(service, "GET", "/v1/models", _models),
        route(service, "GET", "/v1/models/{name:path}", _model),
        route(service, "POST", "/v1/completions", _completion),
        route(service, "POST", "/v1/fim/completions", _fim),
        route(service, "POST", "/v1/chat/completions", _chat),
    ]


async def _models(http: Http, service: Service) -> Response:
    return json_response({"object": "list", "data": [_described(service)]})


async def _model(http: Http, service: Service) -> Response:
    check_model(service, http.path_params["name"])
    return json_response(_described(service))


def _described(service: Service) -> Json:
    return {
        "id": service.name,
        "object": "model",
        "created": service.started_s,
        "owned_by": "edge",
        "meta": {"n_ctx": service.context_tokens},
    }


async def _completion(http: Http, service: Service) -> Response:
    body = await read_body(http, service, Completion, UNSUPPORTED)
    words = Words(service, is_chat=False, logprobs=body.logprobs)
    if body.suffix is not None:
        return await _answered(http, service, body, words, _hole(body), MAX_TOKENS)
    return await _answered(http, service, body, words, _text(body.prompt), COMPLETION_TOKENS)


async def _fim(http: Http, service: Service) -> Response:
    body = await read_body(http, service, Completion, UNSUPPORTED)
    words = Words(service, is_chat=True)
    return await _answered(http, service, body, words, _hole(body), MAX_TOKENS)


async def _chat(http: Http, service: Service) -> Response:
    body = await read_body(http, service, ChatCompletion, UNSUPPORTED)
    words = Words(service, True, body.top_logprobs if body.logprobs else None)
    prompt = Chat(tuple(message.message() for message in body.messages))
    if body.max_tokens is None:
        body.max_tokens = body.max_completion_tokens
    return await _answered(http, service, body, words, prompt, None)


def _text(prompt: str | Sequence[str | int | list[int]]) -> Text:
    if isinstance(prompt, str):
        return Text((prompt,))
    if len(prompt) == 1 and not isinstance(prompt[0], int):
        return _text(prompt[0])
    ids = tuple(part for part in prompt if isinstance(part, int))
    if len(ids) < len(prompt):
        raise Refused("prompt is a list of several prompts; send a request for each.")
    return Text(ids)


def _hole(body: Completion) -> Hole:
    (first, *rest) = _text(body.prompt).parts or ("",)
    if rest or isinstance(first, int):
        raise Refused("a suffix needs a prompt of text, not of ids.")
    return Hole(first, body.suffix or "")


class Words:
    """The words for all answers to one request."""

    def __init__(self, service: Service, is_chat: bool, logprobs: int | None = None):
        self.logprobs, self._is_chat = logprobs, is_chat
        kind = "chatcmpl" if is_chat else "cmpl"
        self._head = {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.name,
        }

    def whole(self, answers: Sequence[Answer]) -> Json:
        kind = "chat.completion" if self._is_chat else "text_completion"
        choices = [self._whole(answer) for answer in answers]
        usage = usage_fields(*(answer.end.usage for answer in answers))
        return {**self._head, "object": kind, "choices": choices, "usage": usage}

    def chunk(self, *choices: Json, **more: Any) -> Json:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, **more}

    def delta(self, event: Event, is_first: bool) -> Json:
        """A choice of a chunk: the next piece, or the end, of an answer."""
        said = {"role": "assistant"} if is_first else {}
        if isinstance(event, End):
            return self._choice(event.index, "", {"delta": said}, (), event.reason)
        said["content"] = event.text
        return self._choice(event.index, event.text, {"delta": said}, event.tokens)

    def _whole(self, answer: Answer) -> Json:
        end, said = answer.end, {"role": "assistant", "content": answer.text}
        return self._choice(end.index, answer.text, {"message": said}, answer.tokens, end.reason)

    def _choice(
        self, index: int, text: str, said: Json, tokens: Sequence[Token], reason: str | None = None
    ) -> Json:
        """A choice with what is `said` in a chat, with the text elsewhere."""
        return {
            "index": index,
            **(said if self._is_chat else {"text": text}),
            "logprobs": None if self.logprobs is None else self._described(tokens),
            "finish_reason": reason,
        }

    def _described(self, tokens: Sequence[Token]) -> Json:
        if self._is_chat:
            return {"content": [_token(token) for token in tokens], "refusal": None}
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{text: value for _, text, value in token.top} for token in tokens],
        }


def _token(token: Token) -> Json:
    top = [_logprob(text, value) for _, text, value in token.top]
    return {**_logprob(token.text, token.logprob), "top_logprobs": top}


def _logprob(text: str, value: float) -> Json:
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


async def _answered(
    http: Http, service: Service, body: Common, words: Words, prompt: Prompt, most: int | None
) -> Response:
    check_model(service, body.model)
    if body.max_tokens is not None:
        most = None if body.max_tokens == -1 else body.max_tokens
    context_tokens, logprobs = service.context_tokens, words.logprobs
    request = body.request(prompt, most, context_tokens, body.n, logprobs=logprobs)
    if body.stream:
        events = await begun(http, service, request)
        has_usage = body.stream_options.include_usage
        return sse_response(http.url.path, _stream(events, words, has_usage), last=["[DONE]"])
    answers = await whole_answers(http, service, request)
    return json_response(words.whole(answers))


async def _stream(
    events: AsyncGenerator[Event, None], words: Words, has_usage: bool
) -> AsyncGenerator[Json, None]:
    usages: list[Usage] = []
    is_first = True
    async with aclosing(events):
        async for event in events:
            if isinstance(event, End):
                usages.append(event.usage)
            elif not event.text and (words.logprobs is None or not event.tokens):
                continue
            yield words.chunk(words.delta(event, is_first))
            is_first = isinstance(event, End)
    if has_usage:
        yield words.chunk(usage=usage_fields(*usages))
