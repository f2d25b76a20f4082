"""OpenAI's dialect: /v1/models, /v1/completions, /v1/chat/completions.

Also Mistral's /v1/fim/completions, which clients of OpenAI's use to fill in the middle. Sampling
has llama-server's further fields and defaults.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, field
from starlette.requests import Request as Http
from starlette.responses import Response

from edge.generate.fim import MAX_TOKENS
from edge.serve.http import (
    Answer,
    Json,
    Service,
    Words,
    answered,
    check_model,
    json_response,
    read_body,
    token_fields,
    usage_fields,
)
from edge.serve.request import (
    AnswerCount,
    AnswerFields,
    Chat,
    End,
    Event,
    Hole,
    LogprobCount,
    Prompt,
    Refused,
    SentMessage,
    Text,
    Token,
    Usage,
)

COMPLETION_TOKENS = 16  # OpenAI's default
UNSUPPORTED = ("echo", "frequency_penalty", "presence_penalty", "logit_bias", "tools", "functions")
TokenCount = Annotated[int, Meta(ge=-1)]


class StreamOptions(Struct):
    """With `include_usage` a stream ends with the counts."""

    include_usage: bool = False


class ResponseFormat(Struct):
    """Only text."""

    type: Literal["text"] = "text"


class Common(AnswerFields):
    """Fields of all completions; max_tokens of -1 goes on to the end of the context.

    llama.vim calls it n_predict here, too.
    """

    model: str = ""
    max_tokens: TokenCount | None = None
    n_predict: TokenCount | None = None
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
    if body.suffix is not None:
        return await _answered(http, service, body, _hole(body), MAX_TOKENS, body.logprobs)
    prompt = _text(body.prompt)
    return await _answered(http, service, body, prompt, COMPLETION_TOKENS, body.logprobs)


async def _fim(http: Http, service: Service) -> Response:
    body = await read_body(http, service, Completion, UNSUPPORTED)
    return await _answered(http, service, body, _hole(body), MAX_TOKENS, None, is_chat=True)


async def _chat(http: Http, service: Service) -> Response:
    body = await read_body(http, service, ChatCompletion, UNSUPPORTED)
    if body.max_tokens is None:
        body.max_tokens = body.max_completion_tokens
    logprobs = body.top_logprobs if body.logprobs else None
    prompt = Chat.of(body.messages)
    return await _answered(http, service, body, prompt, None, logprobs, is_chat=True)


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


async def _answered(
    http: Http,
    service: Service,
    body: Common,
    prompt: Prompt,
    most: int | None,
    logprobs: int | None,
    is_chat: bool = False,
) -> Response:
    check_model(service, body.model)
    asked = body.n_predict if body.max_tokens is None else body.max_tokens
    if asked is not None:
        most = None if asked == -1 else asked
    request = body.request(prompt, most, service.context_tokens, body.n, logprobs=logprobs)
    words = OpenAIWords(service.name, body, logprobs is not None, is_chat)
    return await answered(http, service, request, words, body.stream)


class OpenAIWords(Words):
    """OpenAI's fields; `is_chat` for those of a chat."""

    def __init__(self, model: str, body: Common, has_logprobs: bool, is_chat: bool):
        self._has_usage = body.stream_options.include_usage
        self._has_logprobs, self._is_chat = has_logprobs, is_chat
        identity = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._head = {"id": identity, "created": int(time.time()), "model": model}
        self._begun: set[int] = set()
        self._usages: list[Usage] = []

    def whole(self, answers: Sequence[Answer]) -> Json:
        kind = "chat.completion" if self._is_chat else "text_completion"
        choices = []
        for answer in answers:
            said = {"message": {"role": "assistant", "content": answer.text}}
            end = answer.end
            choices.append(self._choice(end.index, answer.text, said, answer.tokens, end.reason))
        usage = usage_fields(*(answer.end.usage for answer in answers))
        return {**self._head, "object": kind, "choices": choices, "usage": usage}

    def chunk(self, event: Event) -> Json:
        delta = {} if event.index in self._begun else {"role": "assistant"}
        self._begun.add(event.index)
        if isinstance(event, End):
            self._usages.append(event.usage)
            return self._chunk(self._choice(event.index, "", {"delta": delta}, (), event.reason))
        delta["content"] = event.text
        return self._chunk(self._choice(event.index, event.text, {"delta": delta}, event.tokens))

    def last(self) -> Sequence[Any]:
        counts = [self._chunk(usage=usage_fields(*self._usages))] if self._has_usage else []
        return [*counts, Raw(b"[DONE]")]

    def _chunk(self, *choices: Json, **more: Json) -> Json:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, **more}

    def _choice(
        self, index: int, text: str, said: Json, tokens: Sequence[Token], reason: str | None = None
    ) -> Json:
        """A choice with what is `said` in a chat, with the text elsewhere."""
        return {
            "index": index,
            **(said if self._is_chat else {"text": text}),
            "logprobs": self._described(tokens) if self._has_logprobs else None,
            "finish_reason": reason,
        }

    def _described(self, tokens: Sequence[Token]) -> Json:
        if self._is_chat:
            return {"content": [token_fields(token) for token in tokens], "refusal": None}
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{text: value for _, text, value in token.top} for token in tokens],
        }


ROUTES = (
    ("GET", "/v1/models", _models),
    ("GET", "/v1/models/{name:path}", _model),
    ("POST", "/v1/completions", _completion),
    ("POST", "/v1/fim/completions", _fim),
    ("POST", "/v1/chat/completions", _chat),
)
