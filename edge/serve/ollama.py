"""Ollama's dialect: /api/generate, /api/chat, /api/show, /api/tags and their like.

A prompt of /api/generate is put into the chat template, unless it is `raw` or has a suffix.
`keep_alive` is accepted; the model always stays.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from math import prod
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, field
from starlette.requests import Request as Http
from starlette.responses import Response

import edge
from edge.convert.artefacts.content import gguf_precision, mlx_precision, packings, read_mlx
from edge.generate.fim import MAX_TOKENS
from edge.generate.transcript import Message
from edge.model.load import read_directory
from edge.model.tensors import parameter_count
from edge.serve.engine import Engine
from edge.serve.http import (
    Answer,
    Json,
    Service,
    Words,
    answered,
    check_model,
    energy_fields,
    json_response,
    read_body,
)
from edge.serve.request import AnswerFields, Chat, End, Event, Hole, Prompt, SentMessage, Text

# Whose routes these are: clients refuse versions that are too old for them.
VERSION = "0.12.0"
NEVER = "2318-01-01T00:00:00Z"
# In Go's language; clients look for .Suffix in it.
PLAIN_TEMPLATE, FIM_TEMPLATE = "{{ .Prompt }}", "{{ .Prompt }}{{ .Suffix }}"
UNSUPPORTED = ("format", "tools", "think", "images", "context")
Said = Callable[[str], Json]


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


async def _listed(service: Service) -> Json:
    about = await asyncio.to_thread(_about, Path(service.path))
    return {"name": service.name, "model": service.name, **about}


@cache
def _about(path: Path) -> Json:
    """What the files of a model say of it."""
    from edge.convert.targets import file_bytes  # here: numpy, which an answer does not need

    kind, family, precision, parameters = _facts(path)
    size = file_bytes(path)
    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    # Reading gigabytes for a digest of the content would keep editors waiting.
    digest = hashlib.sha256(f"{path} {size} {changed}".encode()).hexdigest()
    billions = parameters >= 10**9
    details = {
        "format": kind,
        "family": family,
        "parameter_size": f"{parameters / 1e9:.1f}B" if billions else f"{parameters / 1e6:.2f}M",
        "quantization_level": precision,
    }
    return {"modified_at": _stamp(changed), "size": size, "digest": digest, "details": details}


def _facts(path: Path) -> tuple[str, str, str, int]:
    """Format, architecture, precision, number of weights."""
    if path.is_dir():
        _, config = read_directory(path)
        quantisation, tensors = read_mlx(path)
        precision = mlx_precision(quantisation, tensors, packings(quantisation, tensors))
        return "mlx", config.model_type, precision, parameter_count(config)
    from edge.formats.gguf import read_model  # here: as above

    file = read_model(path)
    weights = sum(prod(tensor.shape) for tensor in file.tensors)
    return "gguf", str(file.keys.get("general.architecture")), gguf_precision(file), weights


async def _generate(http: Http, service: Service) -> Response:
    body = await read_body(http, service, Generate, UNSUPPORTED)
    prompt = _prompt(body, service.queue.engine)
    return await _answered(http, service, body, prompt, lambda text: {"response": text})


async def _chat(http: Http, service: Service) -> Response:
    body = await read_body(http, service, ChatBody, UNSUPPORTED)
    prompt = Chat.of(body.messages) if body.messages else None

    def said(text: str) -> Json:
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
    check_model(service, body.model)
    words = OllamaWords(service.name, said)
    if prompt is None:
        return json_response(words.line("", done=True, done_reason="load"))
    options, most = body.options, MAX_TOKENS if isinstance(prompt, Hole) else None
    asked = most if options.num_predict < 0 else options.num_predict
    request = options.request(prompt, asked, service.context_tokens)
    return await answered(http, service, request, words, body.stream)


class OllamaWords(Words):
    """Ollama's fields; `said` are those of a piece of text."""

    frame = b"%b\n"
    media_type = "application/x-ndjson"
    ping_s = 0

    def __init__(self, model: str, said: Said):
        self._model, self._said = model, said
        self._begin_ns = time.monotonic_ns()

    def line(self, text: str, **more: Any) -> Json:
        head = {"model": self._model, "created_at": _stamp(datetime.now(UTC))}
        return {**head, **self._said(text), **more}

    def whole(self, answers: Sequence[Answer]) -> Json:
        (answer,) = answers
        return self.line(answer.text, **self._last(answer.end))

    def chunk(self, event: Event) -> Json:
        if isinstance(event, End):
            return self.line("", **self._last(event))
        return self.line(event.text, done=False)

    def _last(self, end: End) -> Json:
        usage = end.usage
        return {
            "done": True,
            "done_reason": end.reason,
            "total_duration": time.monotonic_ns() - self._begin_ns,
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": usage.prefilled_ns - usage.begin_ns,
            "eval_count": usage.generated_tokens,
            "eval_duration": usage.end_ns - usage.prefilled_ns,
            **energy_fields(usage),
        }


def _stamp(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


ROUTES = (
    ("GET", "/", _root),
    ("GET", "/api/version", _version),
    ("GET", "/api/tags", _tags),
    ("GET", "/api/ps", _ps),
    ("POST", "/api/show", _show),
    ("POST", "/api/generate", _generate),
    ("POST", "/api/chat", _chat),
)
