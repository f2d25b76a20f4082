"""Whether data has the shape that the schema asks for, said so that a contributor understands it.

Knows the words of JSON Schema that profile.schema.json uses and refuses a schema with others, so
that none is passed over in silence. A validator from elsewhere would bring four packages, one of
them compiled, for these two hundred lines, and its sentences would need translating.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

from edge.profile.fault import Finding, Place, shown

Schema = Mapping[str, Any]
# What says nothing about the data.
SILENT = {"$schema", "$id", "$defs", "title", "description"}
TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "object": ("an object", lambda v: isinstance(v, dict)),
    "array": ("a list", lambda v: isinstance(v, list)),
    "string": ("a text", lambda v: isinstance(v, str)),
    "number": ("a number", lambda v: _is_number(v)),
    "integer": ("a whole number", lambda v: _is_number(v) and v == v // 1),
    "boolean": ("true or false", lambda v: isinstance(v, bool)),
    "null": ("null", lambda v: v is None),
}
# Beyond this no quantity of a profile lies, and arithmetic with it overflows.
LARGEST = 2**63


@cache
def profile_schema() -> Schema:
    """The schema, as it lies in the package."""
    text = (resources.files("edge") / "data" / "profile.schema.json").read_text("utf-8")
    schema: Schema = json.loads(text)
    return schema


def shape_faults(data: Any, schema: Schema, root: Schema | None = None) -> Iterator[Finding]:
    """Everything in which data is not as a schema says.

    Args:
        data: as `json` gives it.
        schema: what it should be like.
        root: where $ref looks; by default the same schema.
    """
    yield from _walk(data, schema, schema if root is None else root, ())


def size_faults(data: Any, place: Place = ()) -> Iterator[Finding]:
    """Numbers that no arithmetic can be done with, wherever they stand."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from size_faults(value, (*place, key))
    elif isinstance(data, list):
        if data and all(type(value) is int for value in data) and max(map(abs, data)) <= LARGEST:
            return
        for index, value in enumerate(data):
            if isinstance(value, float | int | dict | list):
                yield from size_faults(value, (*place, index))
    elif _is_number(data) and not abs(data) <= LARGEST:  # NaN is not, either
        yield Finding(place, "is larger than any quantity can be.")


def _walk(data: Any, schema: Schema, root: Schema, place: Place) -> Iterator[Finding]:
    if "type" in schema and not _has_type(data, schema["type"]):
        yield Finding(place, f"is {shown(data)}, but must be {_types(schema['type'])}.")
        return  # what follows is about values of the right type
    for word, wanted in schema.items():
        if word in RULES:
            yield from RULES[word](data, wanted, schema, root, place)
        elif word != "type" and word not in SILENT:
            raise ValueError(f"the schema uses {word}, which is not understood here")


Rule = Callable[[Any, Any, Schema, Schema, Place], Iterator[Finding]]


def _reference(data: Any, wanted: Any, _: Schema, root: Schema, place: Place) -> Iterator[Finding]:
    yield from _walk(data, _target(wanted, root), root, place)


def _target(reference: str, root: Schema) -> Schema:
    target = root
    for key in reference.removeprefix("#/").split("/"):
        target = target[key]
    return target


def _const(data: Any, wanted: Any, _: Schema, __: Schema, place: Place) -> Iterator[Finding]:
    if isinstance(data, bool) != isinstance(wanted, bool) or data != wanted:
        yield Finding(place, f"is {shown(data)}, but must be {shown(wanted)}.")


def _enum(data: Any, wanted: Any, _: Schema, __: Schema, place: Place) -> Iterator[Finding]:
    if not any(data == v and isinstance(data, bool) == isinstance(v, bool) for v in wanted):
        choices = ", ".join(map(shown, wanted))
        yield Finding(place, f"is {shown(data)}, but must be one of {choices}.")


def _required(data: Any, wanted: Any, _: Schema, __: Schema, place: Place) -> Iterator[Finding]:
    if isinstance(data, dict):
        for key in wanted:
            if key not in data:
                yield Finding(place, f"lacks {key}.")


def _properties(data: Any, wanted: Any, _: Schema, root: Schema, place: Place) -> Iterator[Finding]:
    if isinstance(data, dict):
        for key, schema in wanted.items():
            if key in data:
                yield from _walk(data[key], schema, root, (*place, key))


def _additional(
    data: Any, wanted: Any, schema: Schema, root: Schema, place: Place
) -> Iterator[Finding]:
    if isinstance(data, dict):
        for key in data.keys() - schema.get("properties", {}).keys():
            yield from _walk(data[key], wanted, root, (*place, key))


def _items(data: Any, wanted: Any, _: Schema, root: Schema, place: Place) -> Iterator[Finding]:
    if isinstance(data, list) and not _are_fine_integers(data, wanted, root):
        for index, value in enumerate(data):
            yield from _walk(value, wanted, root, (*place, index))


def _are_fine_integers(data: list[Any], wanted: Schema, root: Schema) -> bool:
    """Whether there is nothing to say about a list: of stamps a profile has thousands."""
    while "$ref" in wanted and len(wanted) == 1:
        wanted = _target(wanted["$ref"], root)
    plain = wanted.get("type") == "integer" and wanted.keys() <= {"type", "minimum", *SILENT}
    if not plain or not all(type(value) is int for value in data):
        return False
    return not data or min(data) >= wanted.get("minimum", -math.inf)


def _any_of(data: Any, wanted: Any, _: Schema, root: Schema, place: Place) -> Iterator[Finding]:
    """Of several alternatives that all fail, the one that data comes nearest to."""
    tries = [list(_walk(data, schema, root, place)) for schema in wanted]
    if all(tries):
        yield from min(tries, key=lambda found: (len(found), -max(len(f.place) for f in found)))


def _limit(fails: Callable[[Any, Any], bool], words: str, kind: type | tuple[type, ...]) -> Rule:
    """A rule about values of one kind that a limit speaks of."""

    def rule(data: Any, wanted: Any, _: Schema, __: Schema, place: Place) -> Iterator[Finding]:
        if isinstance(data, kind) and not isinstance(data, bool) and fails(data, wanted):
            yield Finding(place, f"is {shown(data)}, but must {words.format(shown(wanted))}.")

    return rule


NUMBER = (int, float)
RULES: dict[str, Rule] = {
    "$ref": _reference,
    "const": _const,
    "enum": _enum,
    "required": _required,
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
    "anyOf": _any_of,
    "minimum": _limit(lambda v, least: v < least, "be at least {}", NUMBER),
    "maximum": _limit(lambda v, most: v > most, "be at most {}", NUMBER),
    "exclusiveMinimum": _limit(lambda v, below: v <= below, "be above {}", NUMBER),
    "minLength": _limit(lambda v, least: len(v) < least, "have {} character or more", str),
    "minItems": _limit(lambda v, least: len(v) < least, "have {} entries or more", list),
    "maxItems": _limit(lambda v, most: len(v) > most, "have {} entries or fewer", list),
    "pattern": _limit(lambda v, p: re.search(p, v) is None, "look like {}", str),
}


def _has_type(data: Any, wanted: str | list[str]) -> bool:
    names = [wanted] if isinstance(wanted, str) else wanted
    return any(TYPES[name][1](data) for name in names)


def _types(wanted: str | list[str]) -> str:
    names = [wanted] if isinstance(wanted, str) else wanted
    return " or ".join(TYPES[name][0] for name in names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
