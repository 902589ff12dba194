"""
JSON schemas that an answer has to follow: what is taken of them, and how large they may be.

An engine turns a schema into a grammar over all its tokens. A small schema can make a huge grammar
(repetitions, deep nesting, references into elsewhere), so what multiplies is bounded here, before any engine
sees it. `response_format` is read here as well; calls of tools have schemas of their own (`tools.py`).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ..engines import Card, Constraint
from ..refusals import Refusal
from ..settings import Settings
from .bodies import Body
from .wishes import able

MOST_DEPTH: Final = 16
MOST_REPEATED: Final = 1000
MOST_PATTERN: Final = 256
MOST_PARTS: Final = 2000
_REPEATING: Final = frozenset(
    {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties", "minContains"}
)


class JsonSchema(Body):
    """`response_format.json_schema`."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


def constraint_of(wanted: ResponseFormat | None, card: Card, settings: Settings) -> Constraint | None:
    """What the answer has to be, in the engine's words."""
    if wanted is None or wanted.type == "text":
        return None
    able(card, "schema", "response_format", 'Leave it out, or send {"type": "text"}.')
    if wanted.type == "json_object":
        return Constraint('{"type":"object"}')
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        param = "response_format.json_schema" + ("" if wanted.json_schema is None else ".schema")
        raise Refusal(f'With the type "json_schema", {param} is needed.', code="missing_field", param=param)
    param = "response_format.json_schema.schema"
    bounded(wanted.json_schema.schema_, settings, param)
    return Constraint(json.dumps(wanted.json_schema.schema_, ensure_ascii=False))


def bounded(schema: dict[str, Any], settings: Settings, param: str) -> None:
    """Refuse a schema that is larger than what a grammar is made of here."""
    size = len(json.dumps(schema, ensure_ascii=False).encode())
    if size > settings.max_schema_bytes:
        raise _refused(f"has {size} bytes; it may have {settings.max_schema_bytes}", param)
    parts = 0
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        part, depth = waiting.pop()
        parts += 1
        if parts > MOST_PARTS:
            raise _refused(f"has more than {MOST_PARTS} parts", param)
        if depth > 2 * MOST_DEPTH:  # an object and its properties are two steps
            raise _refused(f"is nested deeper than {MOST_DEPTH} objects", param)
        if isinstance(part, dict):
            _bounded_keywords(part, param)
            waiting += [(each, depth + 1) for each in part.values() if isinstance(each, dict | list)]
        else:
            waiting += [(each, depth + 1) for each in part if isinstance(each, dict | list)]


def _bounded_keywords(part: dict[str, Any], param: str) -> None:
    for name in _REPEATING & part.keys():
        value = part[name]
        if isinstance(value, int | float) and not 0 <= value <= MOST_REPEATED:
            raise _refused(f"asks for {name} outside 0 to {MOST_REPEATED}", param)
    pattern = part.get("pattern")
    if isinstance(pattern, str) and len(pattern) > MOST_PATTERN:
        raise _refused(f"has a pattern of more than {MOST_PATTERN} characters", param)
    reference = part.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise _refused("refers to another document ($ref)", param)


def _refused(what: str, param: str) -> Refusal:
    return Refusal(f"The schema {what}.", code="invalid_value", param=param)
