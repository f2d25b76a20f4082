"""Chat templates: untrusted Jinja that came with a model.

Rendered as transformers does, to the same text, in a sandbox: a template sees strings, changes
nothing and reaches nothing of Python.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from edge.errors import EdgeError

# A conversation that fills the longest context of the family has some 100,000 characters.
MAX_CHARACTERS = 10_000_000


def render(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """The text of a conversation: messages with `role` and `content`, and what else is used.

    An EdgeError where the template is broken, refuses these messages or does what it may not.
    """
    values, text = {"tools": None, "documents": None, **variables}, ""
    try:
        plain = json.loads(json.dumps([dict(message) for message in messages]))
        for piece in _compiled(template).generate(messages=plain, **values):
            text += piece
            if len(text) > MAX_CHARACTERS:
                raise OverflowError(f"it writes more than {MAX_CHARACTERS} characters")
    except Exception as error:  # what runs here is the template's code, so it can be any
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise EdgeError(
            f"the model's chat template does not take this conversation ({reason}); change the "
            f"messages, or the template beside the model."
        ) from None
    return text


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    # Imported here: completing code needs no template.
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Scope
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what a model said, for training; here it is only text."""

        tags = {"generation"}  # noqa: RUF012  (as the base class declares it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), True), lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda layout: datetime.now().strftime(layout),
    }
    return environment.from_string(template)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """As transformers: jinja2's own filter would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise ValueError(message)
