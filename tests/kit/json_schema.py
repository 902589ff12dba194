"""
A reader of JSON Schema 2020-12, as much of it as the policy's schema uses; an unknown keyword is an error.

So that a test can ask whether the schema that is handed out says the same as the code that reads.
"""

from __future__ import annotations

import re
from typing import Any, Final

_ABOUT: Final = {"$schema", "$defs", "title", "description"}
_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
}


def fits(value: Any, schema: dict[str, Any], whole: dict[str, Any] | None = None) -> bool:
    """Whether the value is as the schema says."""
    whole = schema if whole is None else whole
    return all(_keyword(word, told, value, schema, whole) for word, told in schema.items())


def _keyword(word: str, told: Any, value: Any, schema: dict[str, Any], whole: dict[str, Any]) -> bool:
    if word in _ABOUT:
        return True
    if word == "$ref":
        return fits(value, whole["$defs"][told.removeprefix("#/$defs/")], whole)
    if word in ("oneOf", "anyOf"):
        found = sum(fits(value, one, whole) for one in told)
        return found == 1 if word == "oneOf" else found > 0
    if word == "const":
        return bool(value == told and type(value) is type(told))
    if word == "enum":
        return value in told
    if word == "type":
        return isinstance(value, _TYPES[told]) and not (told == "integer" and isinstance(value, bool))
    if isinstance(value, dict):
        return _of_object(word, told, value, schema, whole)
    if isinstance(value, list):
        return _of_array(word, told, value, whole)
    return _of_scalar(word, told, value)


def _of_object(
    word: str, told: Any, value: dict[str, Any], schema: dict[str, Any], whole: dict[str, Any]
) -> bool:
    if word == "required":
        return all(name in value for name in told)
    if word == "minProperties":
        return len(value) >= int(told)
    if word == "properties":
        return all(fits(value[name], one, whole) for name, one in told.items() if name in value)
    if word == "patternProperties":
        return all(
            fits(found, one, whole)
            for pattern, one in told.items()
            for name, found in value.items()
            if re.search(pattern, name)
        )
    if word == "additionalProperties":
        assert told is False
        patterns = schema.get("patternProperties", {})
        return all(
            name in schema.get("properties", {}) or any(re.search(pattern, name) for pattern in patterns)
            for name in value
        )
    return _foreign(word)


def _of_array(word: str, told: Any, value: list[Any], whole: dict[str, Any]) -> bool:
    if word == "items":
        return all(fits(one, told, whole) for one in value)
    if word in ("minItems", "maxItems"):
        return len(value) >= told if word == "minItems" else len(value) <= told
    if word == "uniqueItems":
        return all(one not in value[:at] for at, one in enumerate(value))
    return _foreign(word)


def _of_scalar(word: str, told: Any, value: Any) -> bool:
    if word == "pattern":
        return not isinstance(value, str) or re.search(told, value) is not None
    if word == "maxLength":
        return not isinstance(value, str) or len(value) <= told
    if word in ("minimum", "maximum"):
        if not isinstance(value, int):
            return True
        return bool(value >= told) if word == "minimum" else bool(value <= told)
    return _foreign(word)


_OTHERS: Final = {
    *("required", "minProperties", "properties", "patternProperties", "additionalProperties"),
    *("items", "minItems", "maxItems", "uniqueItems", "pattern", "maxLength", "minimum", "maximum"),
}


def _foreign(word: str) -> bool:
    """A keyword about another type says nothing about this value; one that is not known here is an error."""
    if word not in _OTHERS:
        raise ValueError(f"the keyword {word!r} is not known here")
    return True
