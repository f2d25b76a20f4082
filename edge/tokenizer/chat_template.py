"""Chat templates: Jinja that came with a model, which nobody vouches for.

Rendered as transformers renders them, settings, functions and filters alike, so that a template
written for it gives the same text. In a sandbox: a template sees strings and can change nothing.
Texts that it joins, repeats, pads or replaces are bounded at every step; what it cannot be kept
from, here as there, is taking long.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, NoReturn

from edge.errors import EdgeError

if TYPE_CHECKING:
    from jinja2 import Template, nodes
    from jinja2.parser import Parser
    from jinja2.sandbox import SandboxedEnvironment

# A conversation that fills the longest context of the family has some 100,000 characters.
MAX_CHARACTERS = 10_000_000
# Replacing in such a conversation multiplies it with two short texts, and is no harm.
MAX_PRODUCT = 100 * MAX_CHARACTERS
ABSURD_WIDTH = re.compile(r"\d{9}")


def render(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """The text of a conversation.

    Args:
        template: Jinja.
        messages: each with `role` and `content`.
        variables: what else the template may use: add_generation_prompt, bos_token, tools.

    Raises:
        EdgeError: the template is broken, refuses these messages or does what it may not.
    """
    values = {"tools": None, "documents": None, **variables}
    try:
        plain = json.loads(json.dumps([dict(message) for message in messages]))
        return _joined(_compiled(template).generate(messages=plain, **values))
    except Exception as error:  # what runs here is the template's code, so it can be any
        raise EdgeError(
            f"the model's chat template does not take this conversation "
            f"({_reason(error)}); change the messages, or the template beside the model."
        ) from None


def _joined(pieces: Any) -> str:
    """The text of all pieces, given up when it gets absurdly long."""
    text: list[str] = []
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_CHARACTERS:
            raise OverflowError(f"it writes more than {MAX_CHARACTERS} characters")
        text.append(piece)
    return "".join(text)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    environment = _environment()
    filters = environment.filters
    filters |= {name: _bounded_filter(name, call) for name, call in filters.items()}
    filters |= {"tojson": _to_json, "bounded": _bounded}
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _namespace(),
    }
    return environment.from_string(template)


def _environment() -> SandboxedEnvironment:
    # Imported here: completing code needs no template.
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Concat, Filter, Scope
    from jinja2.nodes import Template as Tree
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what a model said, for training; here it is only text."""

        tags = {"generation"}  # noqa: RUF012  (as the base class declares it)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), True), lineno=line)

    class Environment(ImmutableSandboxedEnvironment):
        """Refuses what would take all memory; jinja2 does so for `range` only."""

        intercepted_binops = frozenset(["*", "**", "+", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operands(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(*args: Any, **kwargs: Any) -> Any:  # a name of any argument may be self
            function, given = args[2], args[3:]
            if isinstance(getattr(function, "__self__", None), str):
                _check_sizes(function.__name__, function.__self__, (*given, *kwargs.values()))
            return ImmutableSandboxedEnvironment.call(*args, **kwargs)

        def _parse(self, source: str, name: str | None, filename: str | None) -> Tree:
            tree = super()._parse(source, name, filename)
            for joined in list(tree.find_all(Concat)):  # `~`, which is no operator to intercept
                joined.nodes = [
                    Filter(part, "bounded", [], [], None, None, lineno=part.lineno)
                    for part in joined.nodes
                ]
            tree.set_environment(self)
            return tree

    return Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])


def _check_operands(operator: str, left: Any, right: Any) -> None:
    """Raise for a number or a sequence that is absurdly large."""
    sides = (left, right)
    sequence = any(hasattr(side, "__len__") for side in sides)
    if operator == "**":
        large = all(isinstance(side, int) for side in sides) and max(map(abs, sides)) > 1000
    elif operator == "%":
        large = isinstance(left, str) and ABSURD_WIDTH.search(left) is not None
    elif operator == "+":
        large = sequence and sum(map(_size, sides)) > MAX_CHARACTERS
    else:
        large = sequence and _size(left) * _size(right) > MAX_CHARACTERS
    if large:
        raise OverflowError(f"it computes an absurdly large {operator}")


def _check_sizes(name: str, value: Any, arguments: Iterable[Any]) -> None:
    """Raise where a text, padded or with all of it replaced, could be absurdly large."""
    sizes = [_size(argument) for argument in arguments]
    if hasattr(value, "__len__"):
        sizes.append(len(value))
    width = name == "format" and isinstance(value, str) and ABSURD_WIDTH.search(value)
    if width or math.prod(max(1, size) for size in sizes) > MAX_PRODUCT:
        raise OverflowError(f"its {name} could be absurdly large")


def _size(value: Any) -> int:
    """Items, or what a number may ask for."""
    if hasattr(value, "__len__"):
        return len(value)
    return abs(value) if isinstance(value, int) else 1


def _bounded_filter(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)  # with what jinja2 notes at a filter that wants the environment
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_sizes(name, args[0], (*args[1:], *kwargs.values()))
        return call(*args, **kwargs)

    return bounded


def _bounded(value: Any) -> Any:
    """A part of what `~` joins."""
    if hasattr(value, "__len__") and len(value) > MAX_CHARACTERS:
        raise OverflowError("it computes an absurdly large ~")
    return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers: jinja2's own filter would escape for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise ValueError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


class _Dict:
    """What templates need of `dict`, without the class and what hangs on it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _namespace() -> Callable[..., Any]:
    """jinja2's `namespace` without names that could reach into Python."""
    from jinja2.utils import Namespace

    class Guarded(Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:  # a value may be named self
            for name in dict(*args[1:], **kwargs):
                _check_name(name)
            Namespace.__init__(*args, **kwargs)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    return Guarded


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise ValueError(f"it names {name!r} in a namespace")
