"""Ollama's dialect: /api/generate, /api/chat, /api/show, /api/tags and their like.

A prompt of /api/generate is put into the chat template, unless it is `raw` or has a suffix.
`keep_alive` is accepted; the model always stays.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, field
from starlette.requests import Request as Http
from starlette.responses import Response
from starlette.routing import BaseRoute

import edge
from edge.convert.artefacts.content import gguf_precision, mlx_precision, packings, read_mlx
from edge.formats.files import read_json_object, visible
from edge.generate.fim import MAX_TOKENS
from edge.generate.transcript import Message
from edge.serve.engine import Engine
from edge.serve.http import (
    Service,
    begun,
    check_model,
    energy_fields,
    json_response,
    ndjson_response,
    read_body,
    route,
    whole_answers,
)
from edge.serve.request import AnswerFields, Chat, End, Event, Hole, Prompt, SentMessage, Text

# Whose routes these are: clients refuse versions that are too old for them.
VERSION = "0.12.0"
NEVER = "2318-01-01T00:00:00Z"
# In Go's language; clients look for .Suffix in it.
PLAIN_TEMPLATE, FIM_TEMPLATE = "{{ .Prompt }}", "{{ .Prompt }}{{ .Suffix }}"
UNSUPPORTED = ("format", "tools", "think", "images", "context")
Said = Callable[[str], dict[str, Any]]


class Options(AnswerFields):
    """Settings of an answer."""

    num_predict: Annotated[int, Meta(ge=-2)] = -1


class Common(Struct):
    """Fields of /api/generate and /api/chat."""

    model: str = ""
    stream: bool = True
    options: Options = field(default_factory=Options)


class Generate(Common):
    """A prompt; with a suffix the middle is wanted."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    raw: bool = False


class ChatBody(Common):
    """A conversation."""

    messages: list[SentMessage] = field(default_factory=list)


class Show(Struct):
    """The name of a model, in older clients as `name`."""

    model: str = ""
    name: str = ""


def routes(service: Service) -> list[BaseRoute]:
    return [
        route(service, "GET", "/", _root),
        route(service, "GET", "/api/version", _version),
        route(service, "GET", "/api/tags", _tags),
        route(service, "GET", "/api/ps", _ps),
        route(service, "POST", "/api/show", _show),
        route(service, "POST", "/api/generate", _generate),
        route(service, "POST", "/api/chat", _chat),
    ]


async def _root(http: Http, service: Service) -> Response:
    return Response("edge is running", media_type="text/plain")


async def _version(http: Http, service: Service) -> Response:
    return json_response({"version": VERSION, "edge": edge.__version__})


async def _tags(http: Http, service: Service) -> Response:
    return json_response({"models": [await _listed(service)]})


async def _ps(http: Http, service: Service) -> Response:
    listed = await _listed(service)
    loaded = {"expires_at": NEVER, "size_vram": listed["size"]}
    context = {"context_length": service.context_tokens}
    return json_response({"models": [{**listed, **loaded, **context}]})


async def _show(http: Http, service: Service) -> Response:
    body = await read_body(http, service, Show)
    check_model(service, body.model or body.name)
    listed = await _listed(service)
    family, fills = listed["details"]["family"], service.queue.engine.fim is not None
    return json_response(
        {
            "template": FIM_TEMPLATE if fills else PLAIN_TEMPLATE,
            "parameters": f"num_ctx {service.context_tokens}",
            "details": listed["details"],
            "model_info": {
                "general.architecture": family,
                f"{family}.context_length": service.context_tokens,
            },
            "capabilities": ["completion", *(["insert"] if fills else [])],
            "modified_at": listed["modified_at"],
        }
    )


async def _listed(service: Service) -> dict[str, Any]:
    about = await asyncio.to_thread(_about, Path(service.path))
    return {"name": service.name, "model": service.name, **about}


@cache
def _about(path: Path) -> dict[str, Any]:
    """What the files of a model say of it."""
    kind, family, precision = _facts(path)
    size = sum(file.stat().st_size for file in (visible(path) if path.is_dir() else [path]))
    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    # Reading gigabytes for a digest of the content would keep editors waiting.
    digest = hashlib.sha256(f"{path} {size} {changed}".encode()).hexdigest()
    details = {
        "format": kind,
        "family": family,
        "parameter_size": "",
        "quantization_level": precision,
    }
    return {"modified_at": _stamp(changed), "size": size, "digest": digest, "details": details}


def _facts(path: Path) -> tuple[str, str, str]:
    """Format, architecture, precision."""
    if path.is_dir():
        family = str(read_json_object(path / "config.json").get("model_type"))
        quantisation, tensors = read_mlx(path)
        return "mlx", family, mlx_precision(quantisation, tensors, packings(quantisation, tensors))
    from edge.formats.gguf import read_model  # here: numpy, which MLX artefacts do not need

    file = read_model(path)
    return "gguf", str(file.keys.get("general.architecture")), gguf_precision(file)


async def _generate(http: Http, service: Service) -> Response:
    body = await read_body(http, service, Generate, UNSUPPORTED)
    prompt = _prompt(body, service.queue.engine)
    return await _answered(http, service, body, prompt, lambda text: {"response": text})


async def _chat(http: Http, service: Service) -> Response:
    body = await read_body(http, service, ChatBody, UNSUPPORTED)
    prompt = Chat(tuple(message.message() for message in body.messages)) if body.messages else None

    def said(text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    return await _answered(http, service, body, prompt, said)


def _prompt(body: Generate, engine: Engine) -> Prompt | None:
    """None where nothing is asked: clients load a model so."""
    if body.suffix:
        return Hole(body.prompt, body.suffix)
    if not body.prompt:
        return None
    if body.raw or engine.is_base:
        return Text((body.prompt,))
    system = [Message("system", body.system)] if body.system else []
    return Chat((*system, Message("user", body.prompt)))


async def _answered(
    http: Http, service: Service, body: Common, prompt: Prompt | None, said: Said
) -> Response:
    begin_ns = time.monotonic_ns()
    check_model(service, body.model)
    if prompt is None:
        return json_response({**_head(service), **said(""), "done": True, "done_reason": "load"})
    options, most = body.options, MAX_TOKENS if isinstance(prompt, Hole) else None
    asked = most if options.num_predict < 0 else options.num_predict
    request = options.request(prompt, asked, service.context_tokens)
    if body.stream:
        events = await begun(http, service, request)
        return ndjson_response(http.url.path, _stream(events, service, said, begin_ns))
    (answer,) = await whole_answers(http, service, request)
    return json_response({**_head(service), **said(answer.text), **_last(answer.end, begin_ns)})


async def _stream(
    events: AsyncGenerator[Event, None], service: Service, said: Said, begin_ns: int
) -> AsyncGenerator[dict[str, Any], None]:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, End):
                yield {**_head(service), **said(""), **_last(event, begin_ns)}
            elif event.text:
                yield {**_head(service), **said(event.text), "done": False}


def _head(service: Service) -> dict[str, Any]:
    return {"model": service.name, "created_at": _stamp(datetime.now(UTC))}


def _stamp(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _last(end: End, begin_ns: int) -> dict[str, Any]:
    usage = end.usage
    return {
        "done": True,
        "done_reason": end.reason,
        "total_duration": time.monotonic_ns() - begin_ns,
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": usage.prefilled_ns - usage.begin_ns,
        "eval_count": usage.generated_tokens,
        "eval_duration": usage.end_ns - usage.prefilled_ns,
        **energy_fields(usage),
    }
