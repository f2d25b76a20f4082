"""The server: routes, who may ask, time limits, and its begin and end."""

import contextlib
import hmac
import ipaddress
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as Http
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge.errors import EdgeError, printable
from edge.serve import llama_cpp, ollama, openai
from edge.serve.http import GRACE_S, Service, error_response, log, route

HEADERS_S = 10.0
OPEN_PATHS = ("/health", "/v1/health")
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
ROUTES = (*llama_cpp.ROUTES, *openai.ROUTES, *ollama.ROUTES)


@dataclass(frozen=True)
class Access:
    """Who may ask: the address, names of this machine in Host, websites in Origin, the key."""

    host: str
    port: int
    allowed_hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    key: str | None = None

    def check(self) -> None:
        """Refuses an address that others reach without a key."""
        if self.key is None and not _is_loopback(self.host):
            raise EdgeError(
                f"{self.host} can be reached by other machines; give a key with --api-key FILE or "
                f"in EDGE_API_KEY, or use --host 127.0.0.1."
            )

    def refusal(self, headers: Headers, path: str) -> tuple[int, str] | None:
        """Status and sentence for a request that is not allowed."""
        host = _without_port(headers.get("host", ""))
        if not self._is_own(host):
            return 403, f"the host {host!r} is not this server's; allow it with --allow-host."
        origin = headers.get("origin")
        if origin is not None and not {origin, "*"} & set(self.origins):
            return 403, f"the website {origin!r} may not ask; allow it with --cors."
        if self.key is None or path in OPEN_PATHS:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.encode(), self.key.encode()):
            return None
        return 401, "the API key is missing or wrong; send it as Authorization: Bearer KEY."

    def _is_own(self, host: str) -> bool:
        """True for our own names: a website can make its own name lead here (DNS rebinding)."""
        own = (self.host, f"[{self.host}]", *self.allowed_hosts)
        if host in map(str.lower, own) or (_is_loopback(self.host) and host in LOCAL_NAMES):
            return True
        bound = _address(self.host)
        is_every = bound is not None and bound.is_unspecified
        return is_every and (host in LOCAL_NAMES or _address(host.strip("[]")) is not None)


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return (name if name and port.isdecimal() else host).lower()


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


class Guard:
    """Middleware that refuses what `Access` does not allow, and writes the log."""

    def __init__(self, app: ASGIApp, access: Access):
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin_s, status, path = time.monotonic(), 0, scope["path"]
        refusal = self._access.refusal(Headers(scope=scope), path)

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            app = self._app if refusal is None else error_response(path, *refusal)
            await app(scope, receive, noted)
        finally:
            seconds = time.monotonic() - begin_s
            log.info(f"{scope['method']} {printable(path[:99])} {status} {seconds:.3f} s")


def make_app(service: Service, access: Access) -> Starlette:
    """The application with all dialects."""
    middleware = [Middleware(Guard, access=access)]
    if access.origins:
        every = ["*"]
        cors = Middleware(
            CORSMiddleware, allow_origins=access.origins, allow_methods=every, allow_headers=every
        )
        middleware.insert(0, cors)
    return Starlette(
        routes=[route(service, *each) for each in ROUTES],
        middleware=middleware,
        exception_handlers={HTTPException: _http_error},
    )


async def _http_error(http: Http, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, sentence = http.url.path, f"{error.detail}."
    if error.status_code == 404:
        near = get_close_matches(path[:99], [known for _, known, _ in ROUTES], 3, cutoff=0)
        sentence = f"this path does not exist; those most like it are {', '.join(near)}."
    elif error.status_code == 405:
        sentence = f"{http.method} is not allowed here; use another method."
    response = error_response(path, error.status_code, sentence)
    response.headers.update(error.headers or {})
    return response


class _Protocol(H11Protocol):
    """Closes connections whose headers do not come in time."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_headers()

    def _expect_headers(self) -> None:
        self.loop.call_later(HEADERS_S, self._close_without_request, self.cycle)

    def _close_without_request(self, last: object) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete
        if self.cycle is last and is_idle and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """Tells the queue when Ctrl-C asks for the end."""

    def __init__(self, config: uvicorn.Config, on_end: Callable[[], None]):
        super().__init__(config)
        self._on_end = on_end

    def handle_exit(self, sig: int, frame: Any) -> None:
        if not self.should_exit:
            log.info("ending; Ctrl-C again ends at once")
        super().handle_exit(sig, frame)
        self._on_end()


def listen(access: Access) -> socket.socket:
    """A socket that listens at the address; an EdgeError where that is not possible."""
    family = socket.AF_INET6 if ":" in access.host else socket.AF_INET
    try:
        return socket.create_server((access.host, access.port), family=family, backlog=128)
    except OSError as error:
        known = error.errno and error.errno > 0  # not of names that are not found
        reason = os.strerror(error.errno or 0) if known else str(error.strerror)
        raise EdgeError(
            f"{access.host}:{access.port} cannot be used ({reason.lower()}); choose another "
            f"--port or --host."
        ) from None


def make_server(service: Service, access: Access) -> uvicorn.Server:
    config = uvicorn.Config(
        make_app(service, access),
        http=_Protocol,
        ws="none",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=GRACE_S,
    )
    return _Server(config, service.queue.end)


def serve(service: Service, access: Access, listening: socket.socket) -> None:
    """Serves until Ctrl-C or SIGTERM; then finishes the running answer and refuses others."""
    # On a descriptor of its own: a tokenizer's errors are discarded by closing the usual one.
    handler = logging.StreamHandler(os.fdopen(os.dup(2), "w", errors="backslashreplace"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    # uvicorn raises the signal again at its end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        make_server(service, access).run(sockets=[listening])
