"""llama.cpp's dialect: /infill, /completion, /tokenize, /props and their like.

Fields and defaults are those of llama-server. Where it gives no temperature an infill is greedy
and ends by the rules of `edge complete`; a completion is drawn as llama-server draws it.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, field
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request as Http
from starlette.responses import Response

import edge
from edge.generate.fim import MAX_TOKENS
from edge.serve.http import (
    Answer,
    Json,
    Service,
    Words,
    answered,
    json_response,
    read_body,
    token_fields,
    usage_fields,
)
from edge.serve.request import (
    RANDOM_SEED,
    AnswerCount,
    AnswerFields,
    End,
    Event,
    Hole,
    LogprobCount,
    Piece,
    Refused,
    Request,
    SentMessage,
    Text,
    Usage,
)

UNSUPPORTED = ("grammar", "json_schema")
STOP_TYPES = {"stop token": "eos", "stop string": "word"}  # else "limit"
SETTINGS = (*AnswerFields.__struct_fields__, "n_predict", "n_probs", "stream")


class Extra(Struct):
    """A piece of another file; `time` is a number or, in Vim, two."""

    text: str = ""
    time: float | list[float] | None = None

    @property
    def age(self) -> list[float]:
        if self.time is None:
            return []
        return self.time if isinstance(self.time, list) else [self.time]


class Common(AnswerFields):
    """Fields of /infill and /completion."""

    n_predict: Annotated[int, Meta(ge=-2)] = -1
    stream: bool = False
    n_cmpl: AnswerCount = 1
    n_probs: LogprobCount = 0
    t_max_predict_ms: float = 0
    response_fields: list[str] | None = None


class Infill(Common):
    """The text around the cursor; `prompt` is that before it on its line."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[Extra] = field(default_factory=list)
    prompt: str = ""


class Completion(Common):
    """A prompt of text, or of text and ids."""

    prompt: str | list[str | int] = ""


class Tokenize(Struct):
    """A text; `parse_special` makes names of special tokens these tokens."""

    content: str = ""
    add_special: bool = False
    parse_special: bool = True


class Detokenize(Struct):
    """Ids of tokens."""

    tokens: list[Annotated[int, Meta(ge=0, lt=2**31)]] = []


class ApplyTemplate(Struct):
    """A conversation."""

    messages: list[SentMessage] = []


async def _health(http: Http, service: Service) -> Response:
    if not service.queue.is_alive:
        raise Refused("the model's thread has ended; start the server again.", 503)
    energy = service.queue.energy
    reason = energy.reason or None
    return json_response(
        {"status": "ok", "energy_boundary": energy.boundary, "energy_missing": reason}
    )


async def _props(http: Http, service: Service) -> Response:
    tokenizer = service.queue.engine.tokenizer
    return json_response(
        {
            "default_generation_settings": {"n_ctx": service.context_tokens},
            "total_slots": service.queue.engine.places,
            "model_alias": service.name,
            "model_path": service.path,
            "chat_template": tokenizer.chat_template or "",
            "bos_token": tokenizer.bos_token or "",
            "eos_token": tokenizer.eos_token or "",
            "modalities": {"vision": False, "audio": False},
            "build_info": f"edge {edge.__version__}",
        }
    )


async def _slots(http: Http, service: Service) -> Response:
    running, _ = service.queue.counts
    slots = range(service.queue.engine.places)
    n_ctx = service.context_tokens
    return json_response([{"id": i, "n_ctx": n_ctx, "is_processing": i < running} for i in slots])


async def _metrics(http: Http, service: Service) -> Response:
    text = service.metrics.text(*service.queue.counts)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def _infill(http: Http, service: Service) -> Response:
    body = await read_body(http, service, Infill, UNSUPPORTED)
    files = tuple(extra.text for extra in sorted(body.input_extra, key=lambda e: e.age))
    hole = Hole(body.input_prefix + body.prompt, body.input_suffix, files)
    return await _answered(http, service, body, hole, MAX_TOKENS)


async def _completion(http: Http, service: Service) -> Response:
    body = await read_body(http, service, Completion, UNSUPPORTED)
    parts = (body.prompt,) if isinstance(body.prompt, str) else tuple(body.prompt)
    return await _answered(http, service, body, Text(parts), None)


async def _answered(
    http: Http, service: Service, body: Common, prompt: Hole | Text, most: int | None
) -> Response:
    request = body.request(
        prompt,
        most if body.n_predict < 0 else body.n_predict,
        service.context_tokens,
        body.n_cmpl,
        max_predict_s=body.t_max_predict_ms / 1e3 if body.t_max_predict_ms > 0 else None,
        logprobs=body.n_probs or None,
    )
    words = LlamaWords(service, body, request)
    return await answered(http, service, request, words, body.stream)


class LlamaWords(Words):
    """llama-server's fields."""

    def __init__(self, service: Service, body: Common, request: Request):
        self._service, self._body, self._request = service, body, request

    def whole(self, answers: Sequence[Answer]) -> Json | list[Json]:
        made = [self._document(answer) for answer in answers]
        return made if self._body.n_cmpl > 1 else made[0]

    def chunk(self, event: Event) -> Json:
        if isinstance(event, End):
            return self._document(Answer("", (), event))
        return {"index": event.index, **self._said(event), "stop": False}

    def _said(self, said: Answer | Piece) -> Json:
        probabilities = [token_fields(token) for token in said.tokens]
        return {
            "content": said.text,
            "tokens": [token.id for token in said.tokens],
            "id_slot": 0,
            **({"completion_probabilities": probabilities} if self._body.n_probs else {}),
        }

    def _document(self, answer: Answer) -> Json:
        """An answer with all fields, or the asked ones among them."""
        end, usage = answer.end, answer.end.usage
        positions = usage.prompt_tokens + usage.generated_tokens
        document = {
            "index": end.index,
            **self._said(answer),
            "stop": True,
            "model": self._service.name,
            "tokens_predicted": usage.generated_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "generation_settings": self._settings(end.index),
            "truncated": end.reason == "length" and positions >= self._service.context_tokens,
            "stop_type": STOP_TYPES.get(end.stopped_by, "limit"),
            "stopped_by": end.stopped_by,
            "stopping_word": end.stop or "",
            "tokens_cached": usage.prompt_tokens + max(0, usage.generated_tokens - 1),
            "timings": _timings(usage),
            "usage": usage_fields(usage),
        }
        if self._body.response_fields is None:
            return document
        found = {path: _nested(document, path) for path in self._body.response_fields}
        return {path: value for path, value in found.items() if value is not UNSET}

    def _settings(self, index: int) -> Json:
        """The answer's settings; without a given seed, llama-server's number for a random one."""
        request, sampling = self._request, self._request.samplings[index]
        asked = {name: getattr(self._body, name) for name in SETTINGS}
        return {
            **asked,
            "temperature": sampling.temperature,
            "seed": RANDOM_SEED if sampling.seed is None else sampling.seed,
            "n_predict": -1 if request.max_tokens is None else request.max_tokens,
            "stop": request.stop,
        }


def _nested(document: Mapping[str, Any], path: str) -> Any:
    """The value of a path such as timings/prompt_n; UNSET without one."""
    value: Any = document
    for name in path.split("/"):
        value = value.get(name, UNSET) if isinstance(value, dict) else UNSET
    return value


def _timings(usage: Usage) -> dict[str, Any]:
    computed = usage.prompt_tokens - usage.cached_tokens
    timings: dict[str, Any] = {"cache_n": usage.cached_tokens}
    spans = (
        ("prompt", computed, usage.prefill_s),
        ("predicted", usage.generated_tokens, usage.decode_s),
    )
    for name, tokens, seconds in spans:
        timings[f"{name}_n"] = tokens
        timings[f"{name}_ms"] = seconds * 1e3
        timings[f"{name}_per_token_ms"] = seconds * 1e3 / tokens if tokens else 0.0
        timings[f"{name}_per_second"] = tokens / seconds if seconds else 0.0
    if usage.energy is not None:
        timings["prompt_energy_j"] = usage.energy.prefill_j
        timings["predicted_energy_j"] = usage.energy.decode_j
        timings["energy_boundary"] = usage.energy.boundary
    return timings


async def _tokenize(http: Http, service: Service) -> Response:
    body = await read_body(http, service, Tokenize)
    ids = await service.queue.call(
        lambda engine: engine.tokenize(body.content, body.add_special, body.parse_special)
    )
    return json_response({"tokens": ids})


async def _detokenize(http: Http, service: Service) -> Response:
    ids = (await read_body(http, service, Detokenize)).tokens
    text = await service.queue.call(lambda engine: engine.detokenize(ids))
    return json_response({"content": text})


async def _apply_template(http: Http, service: Service) -> Response:
    sent = (await read_body(http, service, ApplyTemplate)).messages
    messages = [message.message() for message in sent]
    text = await service.queue.call(lambda engine: engine.render(messages))
    return json_response({"prompt": text})


ROUTES = (
    ("GET", "/health", _health),
    ("GET", "/v1/health", _health),
    ("GET", "/props", _props),
    ("GET", "/slots", _slots),
    ("GET", "/metrics", _metrics),
    ("POST", "/infill", _infill),
    ("POST", "/completion", _completion),
    ("POST", "/completions", _completion),
    ("POST", "/tokenize", _tokenize),
    ("POST", "/detokenize", _detokenize),
    ("POST", "/apply-template", _apply_template),
)
