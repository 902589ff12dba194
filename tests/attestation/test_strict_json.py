"""JSON as it is read here: what is at a bound is read, what is past it or spelled otherwise is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from blindbox_attestation import strict_json
from blindbox_attestation.strict_json import JsonRefused


def code_of(read: Callable[[], object]) -> str:
    """The code that reading ends with, or "read"."""
    try:
        read()
    except JsonRefused as error:
        return error.code
    return "read"


def nested(depth: int, first: bytes = b"") -> bytes:
    """An object, and lists in it, so many deep."""
    return b'{"a":[' + first + b"[" * (depth - 2) + b"]" * (depth - 2) + b"]}"


@pytest.mark.parametrize("first", [b"", b"{}," * 20, b"[]," * 20, b'{"[":"{"},' * 20])
def test_depth_is_what_is_open_at_one_time(first: bytes) -> None:
    """C-18: what was closed before does not count, neither for nor against."""
    deepest = strict_json.MAX_DEPTH
    assert code_of(lambda: strict_json.parse(nested(deepest, first))) == "read"
    assert code_of(lambda: strict_json.parse(nested(deepest + 1, first))) == "malformed-json"
    assert code_of(lambda: strict_json.parse(nested(3, first), deepest=3)) == "read"
    assert code_of(lambda: strict_json.parse(nested(4, first), deepest=3)) == "malformed-json"


@pytest.mark.parametrize("objects", [8, 9])
def test_objects_are_as_deep_as_lists(objects: int) -> None:
    """C-18."""
    data = b'{"a":' * objects + b"0" + b"}" * objects
    assert code_of(lambda: strict_json.parse(data)) == ("read" if objects == 8 else "malformed-json")


@pytest.mark.parametrize(
    ("digits", "code"),
    [
        (b"0", "read"),
        (b"9" * 19, "read"),
        (b"9" * 20, "malformed-json"),
        (b"-" + b"9" * 18, "read"),
        (b"-0", "malformed-json"),
        (b"00", "malformed-json"),
        (b"1.0", "wrong-type"),
        (b"1e3", "wrong-type"),
        (b"Infinity", "malformed-json"),
    ],
)
def test_a_number_has_one_spelling_and_64_bits(digits: bytes, code: str) -> None:
    """C-17."""
    assert code_of(lambda: strict_json.parse(b'{"a":' + digits + b"}")) == code


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (2, "read"),
        (5, "read"),
        (1, "wrong-type"),
        (6, "wrong-type"),
        (True, "wrong-type"),
        ("3", "wrong-type"),
    ],
)
def test_an_integer_is_between_its_bounds(value: object, code: str) -> None:
    assert code_of(lambda: strict_json.integer(value, "a", 2, 5)) == code


@pytest.mark.parametrize(
    ("value", "code"),
    [("", "read"), ("x" * 64, "read"), ("x" * 65, "wrong-type"), ("\n", "wrong-type"), ("ä", "wrong-type")],
)
def test_a_text_is_printable_and_not_too_long(value: object, code: str) -> None:
    assert code_of(lambda: strict_json.text(value, "a")) == code


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("ab", "read"),
        ("abcd", "read"),
        ("", "wrong-type"),
        ("abcdef", "wrong-type"),
        ("AB", "wrong-type"),
        ("a b ", "wrong-type"),
        ("zz", "wrong-type"),
        ("abc", "wrong-type"),
        (b"ab", "wrong-type"),
    ],
)
def test_hex_is_in_lower_case_and_of_an_expected_size(value: object, code: str) -> None:
    """C-17."""
    assert code_of(lambda: strict_json.from_hex(value, "a", (1, 2))) == code


def test_what_is_written_is_plain_and_short() -> None:
    assert strict_json.dump({"b": "ä", "a": [1, None]}) == b'{"b":"\\u00e4","a":[1,null]}'
    with pytest.raises(ValueError, match="JSON"):
        strict_json.dump({"a": float("nan")})


def test_each_kind_of_value_is_that_kind_and_no_other() -> None:
    """C-17: an error says what it was about."""
    assert strict_json.boolean(True, "a") is True
    assert strict_json.items([1], "a") == [1]
    assert strict_json.from_hex("ab", "a", (1,)) == b"\xab"
    assert code_of(lambda: strict_json.boolean(1, "a")) == "wrong-type"
    assert code_of(lambda: strict_json.items((1,), "a")) == "wrong-type"
    with pytest.raises(JsonRefused, match="nonce is not a list"):
        strict_json.items({}, "nonce")
    assert code_of(lambda: strict_json.parse(b'{"a":1,"a":1}')) == "malformed-json"
