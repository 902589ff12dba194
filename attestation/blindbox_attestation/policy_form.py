"""
The JSON form of a policy's fields, said once: how a field is read, written and described in the schema.

Each platform has a table of its own fields (`<platform>/policy_json.py`); reading, writing and the schema all
follow from it. What the values *mean* is checked where the policy object is made (`<platform>/policy.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from . import strict_json

INTEGER_MOST: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Form:
    """One field: from a JSON value (and where it stands, for errors), back to one, and its JSON Schema."""

    read: Callable[[object, str], Any]
    write: Callable[[Any], Any]
    schema: strict_json.Object
    required: bool = False


def _set(value: object, where: str, read: Callable[[object], Any]) -> frozenset[Any]:
    """A list that stands for a set: nothing is there twice."""
    found = [read(one) for one in strict_json.items(value, where)]
    if len(frozenset(found)) != len(found):
        raise strict_json.JsonRefused(f"{where} names something twice", "wrong-type")
    return frozenset(found)


def _set_schema(items: strict_json.Object) -> strict_json.Object:
    return {"type": "array", "minItems": 1, "uniqueItems": True, "items": items}


def _text_schema(most: int) -> strict_json.Object:
    return {"type": "string", "maxLength": most, "pattern": r"^[\x20-\x7e]*$"}


def hex_set(*sizes: int, about: str, required: bool = False) -> Form:
    """A set of byte strings of one of these sizes; `frozenset[bytes]` in Python."""
    return Form(
        lambda value, where: _set(value, where, lambda one: strict_json.from_hex(one, where, sizes)),
        lambda values: sorted(value.hex() for value in values),
        {**_set_schema(hex_schema(sizes)), "description": about},
        required,
    )


def hex_one(*sizes: int, about: str, required: bool = False) -> Form:
    return Form(
        lambda value, where: strict_json.from_hex(value, where, sizes),
        lambda value: value.hex(),
        {**hex_schema(sizes), "description": about},
        required,
    )


def names(choices: Collection[str], *, about: str, required: bool = False) -> Form:
    """A set of words out of `choices`; `frozenset[str]` in Python. The policy object refuses unknown ones."""
    return Form(
        lambda value, where: _set(value, where, lambda one: strict_json.text(one, where)),
        sorted,
        {**_set_schema({"enum": sorted(choices)}), "description": about},
        required,
    )


def texts(*, about: str, most: int = 256, required: bool = False) -> Form:
    """A set of free words (addresses, digests with a prefix, …)."""
    return Form(
        lambda value, where: _set(value, where, lambda one: strict_json.text(one, where, most)),
        sorted,
        {**_set_schema(_text_schema(most)), "description": about},
        required,
    )


def one_text(*, about: str, most: int = 256, required: bool = False) -> Form:
    return Form(
        lambda value, where: strict_json.text(value, where, most),
        str,
        {**_text_schema(most), "description": about},
        required,
    )


def choice(choices: Collection[str], *, about: str, required: bool = False) -> Form:
    return Form(strict_json.text, str, {"enum": sorted(choices), "description": about}, required)


def integer(most: int, *, about: str, least: int = 0, required: bool = False) -> Form:
    return Form(
        lambda value, where: strict_json.integer(value, where, least, most),
        int,
        {"type": "integer", "minimum": least, "maximum": most, "description": about},
        required,
    )


def flag(*, about: str, required: bool = False) -> Form:
    return Form(strict_json.boolean, bool, {"type": "boolean", "description": about}, required)


def registers(size: int, numbers: Iterable[int], *, about: str, required: bool = False) -> Form:
    """Register number (text in JSON) → the values it may have; `Mapping[int, frozenset[bytes]]` in Python."""
    known = {str(number): number for number in numbers}
    hexes = hex_set(size, about=about)

    def read(value: object, where: str) -> dict[int, frozenset[bytes]]:
        told = strict_json.fields(value, where, (), tuple(known))
        return {known[name]: hexes.read(values, f"{where} {name}") for name, values in told.items()}

    allowed = _set_schema(hex_schema((size,)))
    return Form(
        read,
        lambda value: {str(number): hexes.write(values) for number, values in sorted(value.items())},
        {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": False,
            "properties": dict.fromkeys(known, allowed),
            "description": about,
        },
        required,
    )


def nested(
    read: Callable[[object, str], Any],
    write: Callable[[Any], Any],
    schema: strict_json.Object,
    *,
    required: bool = False,
) -> Form:
    """A part of a policy that has a form of its own."""
    return Form(read, write, schema, required)


def hex_schema(sizes: Collection[int]) -> strict_json.Object:
    return {"type": "string", "pattern": "|".join(f"^[0-9a-f]{{{2 * size}}}$" for size in sorted(sizes))}


def read_fields(value: object, where: str, forms: Mapping[str, Form]) -> dict[str, Any]:
    """The keyword arguments for a policy object, from its JSON. Raises `JsonRefused`."""
    told = strict_json.fields(
        value,
        where,
        tuple(name for name, form in forms.items() if form.required),
        tuple(name for name, form in forms.items() if not form.required),
    )
    return {name: forms[name].read(found, f"{where}: {name}") for name, found in told.items()}


def write_fields(policy: object, forms: Mapping[str, Form]) -> strict_json.Object:
    """The policy object as JSON, in the table's order; fields that are None are left out."""
    return {
        name: form.write(value)
        for name, form in forms.items()
        if (value := getattr(policy, name)) is not None
    }


def object_schema(forms: Mapping[str, Form], about: str) -> strict_json.Object:
    return {
        "type": "object",
        "description": about,
        "additionalProperties": False,
        "required": [name for name, form in forms.items() if form.required],
        "properties": {name: form.schema for name, form in forms.items()},
    }
