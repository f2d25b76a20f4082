"""Chat templates: Jinja code of strangers, run in a sandbox and within limits."""

import ctypes
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, NoReturn

import psutil

from edge.errors import EdgeError

# Of a rendered conversation; one that fills the family's longest context has some 100,000.
MAX_CHARACTERS = 10_000_000
MAX_S, MAX_GROWTH_BYTES = 4.0, 200_000_000
WATCH_S = 0.05


class _LimitError(BaseException):
    """Ends a template; nothing in jinja2 catches it."""


def render_chat_template(
    template: str, messages: Sequence[Mapping[str, Any]], **variables: Any
) -> str:
    """Text of a conversation by an untrusted Jinja template, the same as transformers'.

    Runs in a sandbox: a template sees strings, and cannot change or reach Python objects. Raises an
    EdgeError if it is broken, rejects these messages, does something forbidden, or takes too long
    or too much memory.
    """
    values, text = {"tools": None, "documents": None, **variables}, ""
    try:
        plain = json.loads(json.dumps([dict(message) for message in messages]))
        with _limits():
            for piece in _compiled(template).generate(messages=plain, **values):
                text += piece
                if len(text) > MAX_CHARACTERS:
                    raise OverflowError(f"it writes more than {MAX_CHARACTERS} characters")
    except (Exception, _LimitError) as error:  # the template's code can raise any
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise EdgeError(
            f"the model's chat template does not take this conversation ({reason}); change the "
            f"messages, or the template beside the model."
        ) from None
    return text


@contextmanager
def _limits() -> Iterator[None]:
    """Ends the block with a _LimitError when its time or memory is used up.

    Works in any thread, and between two steps of Python: one long step goes on to its end.
    """
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(ended, threading.get_ident()), daemon=True)
    watch.start()
    try:
        yield
    except _LimitError:
        raise _LimitError(
            f"it takes more than {MAX_S:g} s or {MAX_GROWTH_BYTES // 10**6} MB"
        ) from None
    finally:
        ended.set()
        watch.join()


def _watch(ended: threading.Event, thread: int) -> None:
    memory = psutil.Process().memory_info
    end_s, most_bytes = time.monotonic() + MAX_S, memory().rss + MAX_GROWTH_BYTES
    while not ended.wait(WATCH_S):
        if time.monotonic() > end_s or memory().rss > most_bytes:
            raise_there = ctypes.pythonapi.PyThreadState_SetAsyncExc
            raise_there(ctypes.c_ulong(thread), ctypes.py_object(_LimitError))
            return


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    # Imported here: completing code needs no template.
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Scope
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the model's text for training; it has no effect here."""

        tags = {"generation"}  # noqa: RUF012  (as the base class declares it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), True), lineno=line)

    class Sandbox(ImmutableSandboxedEnvironment):
        """Refuses large products, which one line computes."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if _product_size(operator, left, right) > MAX_CHARACTERS:
                raise OverflowError(f"a product has more than {MAX_CHARACTERS} characters or bits")
            return super().call_binop(context, operator, left, right)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    # As in transformers: jinja2's own filter would escape for HTML.
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda layout: datetime.now().strftime(layout),
    }
    return environment.from_string(template)


def _product_size(operator: str, left: Any, right: Any) -> int:
    """Bits of a whole number, or characters or items of a repeated text or list."""
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() * (right if operator == "**" else 1)
    repeated, times = (right, left) if isinstance(left, int) else (left, right)
    return len(repeated) * times if isinstance(repeated, str | list) and times > 0 else 0


def _raise_exception(message: str) -> NoReturn:
    raise ValueError(message)
