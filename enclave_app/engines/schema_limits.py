"""
Which JSON schemas an answer may be held to: those the grammar library sees to, and quickly.

The library (xgrammar, inside OpenVINO GenAI) passes over keywords it does not know, and some small schemas
keep it busy for minutes while every other caller waits. So this names what is taken: keywords that were seen
to hold, in sizes that compile in about a second. Anything else is refused, in words that say which part.

Patterns are written into the answer as they stand, also what JSON would have to escape; so they may match
plain characters only, and lengths, with which the library forgets to escape, become such patterns.

What remains wrong with a schema (a reference to nowhere, a faulty pattern) `grammar.py` finds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from ..refusals import Refusal, listed

MOST_DEPTH: Final = 16  # schemas within schemas
MOST_PARTS: Final = 512  # schemas altogether
MOST_OPTIONAL: Final = 128  # properties that need not be there, altogether
MOST_VALUES: Final = 2000  # of enums, altogether
MOST_STEPS: Final = 100
"""
Characters that are counted. Each is a state in which every word of the vocabulary has to be tried: with
50,000 words a hundred take 1.6 s of one core. Bounds of equal length share their states.
"""

_SAYING_NOTHING: Final = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$schema", "$id", "$comment", "$defs", "definitions"}
)
_OF_TYPE: Final[Mapping[str, frozenset[str]]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
_PLAIN: Final = r"[ !#-\[\]-~\u0080-\ud7ff\ue000-\uffff]"
"""Characters that stand for themselves in JSON; the library cannot count those beyond U+FFFF."""
_CHARACTER: Final = r"(?:[^\x00-\x1f\"\\\]\[]|\\[dw.^$*+?()\[\]{}|/-])"
_ATOM: Final = re.compile(rf"(?![.]){_CHARACTER}|\[(?!\^)(?:{_CHARACTER})+\]")
_MEMBER: Final = re.compile(rf"({_CHARACTER})(?:-({_CHARACTER}))?")
_BOUNDS: Final = re.compile(r"[0-9]{1,5}(?:,[0-9]{0,5})?")
_FORMATS: Final = frozenset(
    {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)


def checked(text: str, *, param: str) -> dict[str, Any]:
    """The schema as the library can see to it; raises `Refusal` with `param`."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise Refusal("The schema is not JSON.", code="invalid_schema", param=param) from None
    if not isinstance(schema, dict):
        raise Refusal("The schema has to be an object.", code="invalid_schema", param=param)
    _Judge(param).judge(schema, 0)
    return schema


class _Judge:
    """Goes through one schema and counts."""

    def __init__(self, param: str) -> None:
        self._param = param
        self._parts = self._optional = self._values = self._steps = 0
        self._counted: set[tuple[object, ...]] = set()

    def judge(self, schema: Any, depth: int) -> None:
        self._parts = self._within("parts", self._parts + 1, MOST_PARTS)
        self._within("levels", depth, MOST_DEPTH)
        if schema is True:
            return
        if not isinstance(schema, dict):
            raise self._invalid("A schema within it is neither an object nor true.")
        for name in ("$defs", "definitions"):
            for part in self._named(schema, name).values():
                self.judge(part, depth + 1)
        said = {key for key in schema if key not in _SAYING_NOTHING}
        if "$ref" in said:
            self._only(said, {"$ref"})
            if not (isinstance(schema["$ref"], str) and schema["$ref"].startswith("#")):
                raise self._unsupported('"$ref" can only name a part of the same schema ("#/$defs/…").')
        elif "anyOf" in said or "allOf" in said:
            self._combined(schema, said, depth)
        elif "const" in said or "enum" in said:
            self._chosen(schema, said)
        else:
            self._typed(schema, said, depth)

    def _combined(self, schema: dict[str, Any], said: set[str], depth: int) -> None:
        name = "anyOf" if "anyOf" in said else "allOf"
        self._only(said, {name})
        parts = schema[name]
        if not isinstance(parts, list) or not parts:
            raise self._invalid(f'"{name}" has to be a list of schemas.')
        if name == "allOf" and len(parts) > 1:
            raise self._unsupported('"allOf" of more than one schema is not supported; write them as one.')
        for part in parts:
            self.judge(part, depth + 1)

    def _chosen(self, schema: dict[str, Any], said: set[str]) -> None:
        self._only(said, {"const", "enum", "type"} - ({"enum"} if "const" in said else set()))
        values = [schema["const"]] if "const" in said else schema["enum"]
        if not isinstance(values, list) or not values:
            raise self._invalid('"enum" has to be a list of values.')
        self._values = self._within("values of enums", self._values + len(values), MOST_VALUES)
        types = self._types(schema)
        if types and any(not any(_is_of(value, kind) for kind in types) for value in values):
            raise self._invalid("A value of an enum or const is not of the type beside it.")

    def _typed(self, schema: dict[str, Any], said: set[str], depth: int) -> None:
        types = self._types(schema)
        known = {"type"}.union(*_OF_TYPE.values())
        self._only(said, known)
        if not types and said:
            raise self._unsupported(f'{listed(sorted(said))} needs a "type" beside it.')
        self._only(said, {"type"}.union(*(_OF_TYPE[kind] for kind in types)))
        if "object" in types:
            self._object(schema, depth)
        if "array" in types:
            self._array(schema, depth)
        if "string" in types:
            self._string(schema)

    def _object(self, schema: dict[str, Any], depth: int) -> None:
        properties = self._named(schema, "properties")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self._invalid('"required" has to be a list of names.')
        unknown = [name for name in required if name not in properties]
        if unknown:
            raise self._unsupported(
                f'"required" names {listed(unknown, 3)}, which "properties" does not have.'
            )
        optional = len(properties) - len(set(required))
        self._optional = self._within("optional properties", self._optional + optional, MOST_OPTIONAL)
        for part in properties.values():
            self.judge(part, depth + 1)
        if schema.get("additionalProperties", False) is not False:
            self.judge(schema["additionalProperties"], depth + 1)

    def _array(self, schema: dict[str, Any], depth: int) -> None:
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise self._invalid('"prefixItems" has to be a list of schemas.')
        for part in first:
            self.judge(part, depth + 1)
        if schema.get("items", True) is not False:
            self.judge(schema.get("items", True), depth + 1)
        for name in ("minItems", "maxItems"):
            self._number(schema, name)

    def _string(self, schema: dict[str, Any]) -> None:
        pattern, form = schema.get("pattern"), schema.get("format")
        lengths = (self._number(schema, "minLength"), self._number(schema, "maxLength"))
        if (pattern is not None) + (form is not None) + (lengths != (None, None)) > 1:
            raise self._unsupported("Of length, pattern and format a string can have one.")
        if form is not None and form not in _FORMATS:
            raise self._unsupported(f'Of "format" there are: {listed(sorted(_FORMATS))}.')
        if pattern is not None:
            if not isinstance(pattern, str):
                raise self._invalid('"pattern" has to be a text.')
            self._count(("pattern", pattern), self._pattern_steps(pattern))
        if lengths != (None, None):
            self._count(("length", *lengths), max(lengths[0] or 0, lengths[1] or 0))
            least, most = schema.pop("minLength", 0), schema.pop("maxLength", "")
            if most != "" and least > most:
                raise self._invalid(f'"minLength" is {least} and "maxLength" {most}.')
            schema["pattern"] = f"^{_PLAIN}{{{least},{most}}}$"

    def _pattern_steps(self, pattern: str) -> int:
        """How many characters a regular expression counts, repetitions multiplied out."""
        open_groups = [0]  # what each group that is open counts so far
        last = 0  # what a repetition would repeat
        at = 0
        while at < len(pattern):
            letter = pattern[at]
            at += 1
            if letter == "(":
                if pattern.startswith("?", at) and not pattern.startswith("?:", at):
                    raise self._unsupported('"pattern" can have no look-around and no named groups.')
                at += 2 * pattern.startswith("?:", at)
                open_groups.append(0)
            elif letter == ")":
                last = open_groups.pop()
                if not open_groups:
                    raise self._invalid('"pattern" closes a bracket that is not open.')
                open_groups[-1] += last
            elif letter == "{":
                bounds, closed, _ = pattern[at:].partition("}")
                if not closed or not _BOUNDS.fullmatch(bounds):
                    raise self._invalid('"pattern" has a repetition that is not {n}, {n,} or {n,m}.')
                times = max(1, *(int(part) for part in bounds.split(",") if part))
                open_groups[-1] += last * (times - 1)
                last *= times
                at += len(bounds) + 1
            elif (letter == "^" and at > 1) or (letter == "$" and at < len(pattern)):
                raise self._unsupported('"pattern" can have "^" only at its beginning and "$" at its end.')
            elif letter not in "*+?|^$":
                at = self._plain_atom(pattern, at - 1)
                open_groups[-1] += 1
                last = 1
            self._within("characters counted by patterns", open_groups[-1], MOST_STEPS)
        return open_groups[0]

    def _plain_atom(self, pattern: str, at: int) -> int:
        """Where a character or a class ends, if nothing it matches has to be escaped in JSON."""
        found = _ATOM.match(pattern, at)
        if found is None or any(
            ord(low) <= ord(bad) <= ord(high) for low, high in _ranges(found[0]) for bad in '"\\'
        ):
            raise self._unsupported(
                '"pattern" can match plain characters and classes of them, like [a-z0-9_] or \\d; no ".", no '
                "[^…], no quotation mark and no backslash."
            )
        return found.end()

    def _count(self, what: tuple[object, ...], steps: int) -> None:
        if what not in self._counted:
            self._counted.add(what)
            self._steps = self._within(
                "characters counted by lengths and patterns", self._steps + steps, MOST_STEPS
            )

    def _types(self, schema: dict[str, Any]) -> list[str]:
        said = schema.get("type", [])
        types = said if isinstance(said, list) else [said]
        if not all(isinstance(kind, str) and kind in _OF_TYPE for kind in types):
            raise self._invalid(f'Of "type" there are: {listed(sorted(_OF_TYPE))}.')
        return types

    def _named(self, schema: dict[str, Any], name: str) -> dict[str, Any]:
        parts = schema.get(name, {})
        if not isinstance(parts, dict):
            raise self._invalid(f'"{name}" has to be an object.')
        return parts

    def _number(self, schema: dict[str, Any], name: str) -> int | None:
        number = schema.get(name)
        if number is not None and (type(number) is not int or number < 0):
            raise self._invalid(f'"{name}" has to be a whole number.')
        return number

    def _only(self, said: set[str], known: set[str]) -> None:
        if said - known:
            beside = f" beside {listed(sorted(said & known))}" if said & known else ""
            raise self._unsupported(f"{listed(sorted(said - known), 5)}{beside} is not supported.")

    def _within(self, what: str, number: int, most: int) -> int:
        if number > most:
            raise Refusal(
                f"The schema has too many {what}; at most {most} are taken.",
                code="schema_too_complex",
                param=self._param,
            )
        return number

    def _invalid(self, message: str) -> Refusal:
        return Refusal(f"The schema cannot be used. {message}", code="invalid_schema", param=self._param)

    def _unsupported(self, message: str) -> Refusal:
        return Refusal(
            f"The model's engine cannot hold an answer to this schema. {message}",
            code="unsupported_schema",
            param=self._param,
        )


def _ranges(atom: str) -> list[tuple[str, str]]:
    """The characters that a character or class stands for, from … to."""
    if atom in (r"\d", r"\w"):
        return []
    inside = atom[1:-1] if len(atom) > 1 and atom.startswith("[") else atom
    return [
        (low[-1], (high or low)[-1]) for low, high in _MEMBER.findall(inside) if low not in (r"\d", r"\w")
    ]


def _is_of(value: Any, kind: str) -> bool:
    match kind:
        case "integer":
            return type(value) is int
        case "number":
            return type(value) in (int, float)
        case "boolean":
            return type(value) is bool
        case "null":
            return value is None
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
    return isinstance(value, dict)
