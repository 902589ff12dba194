"""A field of a policy in JSON: what is read, what is written, and what the schema says of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from blindbox_attestation import policy_form, strict_json
from blindbox_attestation.policy_form import Form
from blindbox_attestation.strict_json import JsonRefused

SHORT = {"type": "string", "pattern": "^[0-9a-f]{4}$"}
EITHER = {"type": "string", "pattern": "^[0-9a-f]{4}$|^[0-9a-f]{8}$"}
A, B = b"\x0a\x0a", b"\x0b\x0b\x0b\x0b"


def set_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "uniqueItems": True, "items": items, "description": "about"}


def printable(most: int) -> dict[str, Any]:
    return {"type": "string", "maxLength": most, "pattern": r"^[\x20-\x7e]*$"}


REGISTERS = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": False,
    "properties": {
        str(number): {"type": "array", "minItems": 1, "uniqueItems": True, "items": SHORT}
        for number in (0, 12)
    },
    "description": "about",
}

FORMS: dict[str, tuple[Any, dict[str, Any], list[tuple[Any, Any]], list[Any]]] = {
    # name: (a form, its schema, [(JSON, value)], [JSON that is refused])
    "hex_set": (
        lambda **more: policy_form.hex_set(4, 2, about="about", **more),
        set_of(EITHER),
        [(["0a0a", "0b0b0b0b"], frozenset({A, B})), (["0a0a"], frozenset({A}))],
        [["0a0a", "0a0a"], ["0A0A"], ["0a"], ["0a0a0a"], [1], "0a0a", None, {}],
    ),
    "hex_one": (
        lambda **more: policy_form.hex_one(2, 4, about="about", **more),
        {**EITHER, "description": "about"},
        [("0a0a", A), ("0b0b0b0b", B)],
        ["0a", "0A0A", ["0a0a"], "", 1, None],
    ),
    "names": (
        lambda **more: policy_form.names({"b", "a"}, about="about", **more),
        set_of({"enum": ["a", "b"]}),
        [(["a", "b"], frozenset({"a", "b"}))],
        [["a", "a"], [1], "a", [["a"]]],
    ),
    "texts": (
        lambda **more: policy_form.texts(about="about", most=3, **more),
        set_of(printable(3)),
        [(["abc", "d"], frozenset({"abc", "d"}))],
        [["abcd"], ["a", "a"], [1], "abc", ["é"]],
    ),
    "one_text": (
        lambda **more: policy_form.one_text(about="about", most=3, **more),
        {**printable(3), "description": "about"},
        [("abc", "abc"), ("d", "d")],
        ["abcd", ["abc"], 1, None],
    ),
    "choice": (
        lambda **more: policy_form.choice({"b", "a"}, about="about", **more),
        {"enum": ["a", "b"], "description": "about"},
        [("a", "a")],
        [1, None, ["a"]],
    ),
    "integer": (
        lambda **more: policy_form.integer(7, about="about", least=2, **more),
        {"type": "integer", "minimum": 2, "maximum": 7, "description": "about"},
        [(2, 2), (7, 7)],
        [1, 8, True, "2", None],
    ),
    "flag": (
        lambda **more: policy_form.flag(about="about", **more),
        {"type": "boolean", "description": "about"},
        [(True, True), (False, False)],
        [0, 1, None, "true"],
    ),
    "registers": (
        lambda **more: policy_form.registers(2, (0, 12), about="about", **more),
        REGISTERS,
        [({"0": ["0a0a"], "12": ["0a0a", "0b0b"]}, {0: frozenset({A}), 12: frozenset({A, b"\x0b\x0b"})})],
        [{"1": ["0a0a"]}, {"00": ["0a0a"]}, {"0": ["0a"]}, {"0": "0a0a"}, {"0": ["0a0a", "0a0a"]}, [], None],
    ),
    "nested": (
        lambda **more: policy_form.nested(strict_json.boolean, bool, {"type": "boolean"}, **more),
        {"type": "boolean"},
        [(True, True)],
        [1],
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_field_is_read_written_and_described_as_its_form_says(name: str) -> None:
    """C-22: what is read is written back the same, and everything else is refused."""
    make, schema, good, bad = FORMS[name]
    form: Form = make()
    assert form.schema == schema
    assert not form.required
    assert make(required=True).required
    for told, value in good:
        assert form.read(told, "here") == value
        assert form.write(value) == told
    for wrong in bad:
        with pytest.raises(JsonRefused, match="here"):
            form.read(wrong, "here")


def test_bounds_that_are_not_given() -> None:
    assert policy_form.integer(7, about="").read(0, "here") == 0
    assert policy_form.texts(about="").read(["x" * 256], "here") == {"x" * 256}
    assert policy_form.one_text(about="").read("x" * 256, "here") == "x" * 256
    with pytest.raises(JsonRefused):
        policy_form.integer(7, about="").read(-1, "here")
    for form, wrong in (
        (policy_form.texts(about=""), ["x" * 257]),
        (policy_form.one_text(about=""), "x" * 257),
    ):
        with pytest.raises(JsonRefused):
            form.read(wrong, "here")


@dataclass(frozen=True)
class Wishes:
    """A policy of two fields."""

    must: bool
    may: int | None = None


TABLE = {"must": policy_form.flag(about="a", required=True), "may": policy_form.integer(7, about="b")}


def test_a_table_of_forms_reads_writes_and_describes_the_whole_object() -> None:
    for told, wishes in (({"must": True}, Wishes(True)), ({"must": False, "may": 0}, Wishes(False, 0))):
        assert policy_form.read_fields(told, "here", TABLE) == {**told}
        assert policy_form.write_fields(wishes, TABLE) == told
    assert policy_form.object_schema(TABLE, "about") == {
        "type": "object",
        "description": "about",
        "additionalProperties": False,
        "required": ["must"],
        "properties": {"must": TABLE["must"].schema, "may": TABLE["may"].schema},
    }


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({}, "must"),
        ({"may": 1}, "must"),
        ({"must": True, "might": 1}, "might"),
        ({"must": True, "may": None}, "here: may"),
        ([], "here"),
        (None, "here"),
    ],
)
def test_a_missing_unknown_or_empty_field_is_refused(told: object, match: str) -> None:
    """C-22: a misspelt wish is not dropped."""
    with pytest.raises(JsonRefused, match=match):
        policy_form.read_fields(told, "here", TABLE)
