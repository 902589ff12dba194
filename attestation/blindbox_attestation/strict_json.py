"""
JSON with one spelling per meaning: what is unknown, doubled, missing or of another type is refused.

This module reads values; what they mean is said in `evidence.py` and `policy.py`, which also turn
`JsonRefused` into their own errors. The document of SPEC §2 and the policy file are both read through here.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Collection
from typing import Any, NoReturn

MAX_DEPTH = 8
MAX_DIGITS = 19  # of an integer: 64 bits

Object = dict[str, Any]

# A string is skipped in one go, closed or not, so that the scan stays linear.
_ALL_BUT_BRACKETS = re.compile(r'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+"?+)++', re.DOTALL)
_DEEPER = {"{": 1, "[": 1, "}": -1, "]": -1}
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")


class JsonRefused(ValueError):
    """The text is not the JSON that was expected; `code` is one of SPEC §4, step 1."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def parse(data: bytes, *, deepest: int = MAX_DEPTH) -> Object:
    """One JSON object in UTF-8, nothing after it, no deeper than `deepest`, integers only."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonRefused(f"not UTF-8: {error.reason}", "malformed-json") from error
    depth = 0
    for bracket in _ALL_BUT_BRACKETS.sub("", text):
        depth += _DEEPER[bracket]
        if depth > deepest:
            raise JsonRefused(f"nested deeper than {deepest}", "malformed-json")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_no_float,
            parse_constant=_no_constant,
        )
    except json.JSONDecodeError as error:
        raise JsonRefused(f"not JSON: {error.msg} at character {error.pos}", "malformed-json") from error
    if not isinstance(value, dict):
        raise JsonRefused("not a JSON object", "wrong-type")
    return value


def fields(value: object, where: str, required: Collection[str], optional: Collection[str] = ()) -> Object:
    """The object itself, once it is known to have exactly these keys."""
    if not isinstance(value, dict):
        raise JsonRefused(f"{where} is not an object", "wrong-type")
    for key in value:
        if key not in required and key not in optional:
            known = ", ".join(sorted({*required, *optional}))
            raise JsonRefused(f"{where} has an unknown key {key[:64]!a}; it knows {known}", "unknown-key")
    for key in required:
        if key not in value:
            raise JsonRefused(f"{where} has no {key!r}", "missing-key")
    return value


def integer(value: object, where: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise JsonRefused(f"{where} is not an integer", "wrong-type")
    if not least <= value <= most:
        raise JsonRefused(f"{where} is {value}, expected {least} to {most}", "wrong-type")
    return value


def boolean(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise JsonRefused(f"{where} is neither true nor false", "wrong-type")
    return value


def text(value: object, where: str, most: int = 64) -> str:
    """A short string of printable ASCII."""
    if not isinstance(value, str) or len(value) > most or not _PRINTABLE.fullmatch(value):
        raise JsonRefused(f"{where} is not a string of at most {most} printable characters", "wrong-type")
    return value


def items(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise JsonRefused(f"{where} is not a list", "wrong-type")
    return value


def from_base64(value: object, where: str) -> bytes:
    """
    Base64 of the standard alphabet, padded, with unused bits zero: bytes have one spelling (RFC 4648 §3.5).
    """
    if not isinstance(value, str):
        raise JsonRefused(f"{where} is not base64", "wrong-type")
    try:
        found = b64decode(value, validate=True)
    except ValueError as error:
        raise JsonRefused(f"{where} is not base64", "wrong-type") from error
    if to_base64(found) != value:
        raise JsonRefused(f"{where} is base64, but not in its canonical form", "wrong-type")
    return found


def to_base64(value: bytes) -> str:
    return b64encode(value).decode("ascii")


def from_hex(value: object, where: str, sizes: Collection[int]) -> bytes:
    if not isinstance(value, str) or not _HEX.fullmatch(value) or len(value) // 2 not in sizes:
        expected = " or ".join(str(size) for size in sorted(sizes))
        raise JsonRefused(
            f"{where} is not {expected} bytes in lower-case hex: it {_instead_of_hex(value)}", "wrong-type"
        )
    return bytes.fromhex(value)


def _instead_of_hex(value: object) -> str:
    if not isinstance(value, str):
        return "is no string"
    if _HEX.fullmatch(value):
        return f"has {len(value) // 2} bytes"
    if _HEX.fullmatch(value.lower()):
        return "has capital letters"
    if value[:2] in ("0x", "0X"):
        return f"begins with {value[:2]}"
    return "has an odd number of digits, or something that is none"


def dump(value: Object) -> bytes:
    """The shortest spelling, keys in the order given."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def _unique(pairs: list[tuple[str, Any]]) -> Object:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonRefused(f"the key {key[:64]!a} is there twice", "malformed-json")
            seen.add(key)
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise JsonRefused(f"a number of {len(digits)} digits", "malformed-json")
    if digits == "-0":
        raise JsonRefused("a second spelling of zero", "malformed-json")
    return int(digits)


def _no_float(digits: str) -> NoReturn:
    raise JsonRefused(f"{digits[:32]} is not an integer", "wrong-type")


def _no_constant(name: str) -> NoReturn:
    raise JsonRefused(f"{name} is not JSON", "malformed-json")
