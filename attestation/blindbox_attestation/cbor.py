"""
CBOR, as much of it as COSE and the Nitro security module need: one way to read each value, the rest is
refused.

This module knows items and lengths (RFC 8949); what a document is made of is in `nitro/document.py`.
Lengths and integers in their shortest form, definite lengths, text and integers as keys, no key twice (RFC
8949 §4.2.1, but for the order of keys, which the module does not keep); no floats, no tag but a first one,
no simple value but null. The one exception has to be asked for: a document's outermost map may have an end
mark in place of its length, because that is how Nitro has written it since 2025. Those bytes are signed, so
nobody else can choose the spelling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

UNSIGNED: Final = 0
NEGATIVE: Final = 1
BYTES: Final = 2
TEXT: Final = 3
ARRAY: Final = 4
MAP: Final = 5
TAG: Final = 6

NULL: Final = 0xF6
OPEN_MAP: Final = 0xBF  # a map of indefinite length, RFC 8949 §3.2.2 …
BREAK: Final = 0xFF  # … and its end
MAX_DEPTH: Final = 4

Value: TypeAlias = "int | bytes | str | Sequence[Value] | Mapping[int | str, Value] | None"


class NotCbor(ValueError):
    """The bytes are not the CBOR that was expected."""


def parse(data: bytes, *, tag: int | None = None, open_map: bool = False) -> Value:
    """
    One item, and nothing after it; lists as tuples, maps as dictionaries.

    `tag` may stand before it, and no other. With `open_map` the item, but none inside it, may be a map of
    indefinite length.
    """
    reader = _Reader(data)
    if tag is not None and reader.next_kind == TAG:
        found = reader.head()[1]
        if found != tag:
            raise NotCbor(f"tag {found} where {tag} may stand")
    if open_map and reader.skip(OPEN_MAP):
        value: Value = reader.pairs(None, MAX_DEPTH - 1)
    else:
        value = reader.item(MAX_DEPTH)
    reader.end()
    return value


def encode(value: Value) -> bytes:
    """The bytes of a value, with the keys of maps in the order given; `parse` reads it back."""
    if value is None:
        return bytes((NULL,))
    if isinstance(value, int):
        return _head(UNSIGNED, value) if value >= 0 else _head(NEGATIVE, -1 - value)
    if isinstance(value, bytes):
        return _head(BYTES, len(value)) + value
    if isinstance(value, str):
        text = value.encode("utf-8")
        return _head(TEXT, len(text)) + text
    if isinstance(value, Mapping):
        pairs = b"".join(encode(key) + encode(one) for key, one in value.items())
        return _head(MAP, len(value)) + pairs
    return _head(ARRAY, len(value)) + b"".join(map(encode, value))


def _head(kind: int, number: int) -> bytes:
    """The first byte of an item, and its number in the fewest bytes."""
    if number < 24:
        return bytes((kind << 5 | number,))
    for size_bits, more in enumerate((1, 2, 4, 8)):
        if number < 1 << 8 * more:
            return bytes((kind << 5 | 24 + size_bits,)) + number.to_bytes(more, "big")
    raise ValueError(f"{number} does not fit into 64 bits")


class _Reader:
    """Takes one item after the other from the front."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def next_kind(self) -> int | None:
        return self._data[self._at] >> 5 if self._at < len(self._data) else None

    def end(self) -> None:
        if self._at < len(self._data):
            raise NotCbor(f"{len(self._data) - self._at} bytes after the end")

    def take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        if len(found) != size:
            raise NotCbor("cut short")
        self._at += size
        return found

    def skip(self, byte: int) -> bool:
        """Whether this byte is next; it is then behind us."""
        found = self._data[self._at : self._at + 1] == bytes((byte,))
        self._at += found
        return found

    def head(self) -> tuple[int, int]:
        """The kind of the next item and its number: the value itself, or a length."""
        (first,) = self.take(1)
        kind, short = first >> 5, first & 0x1F
        if short < 24:
            return kind, short
        if short > 27:
            raise NotCbor(f"an indefinite or reserved length: {first:02x}")
        more = 1 << short - 24
        number = int.from_bytes(self.take(more), "big")
        if number < (24 if more == 1 else 1 << 4 * more):
            raise NotCbor("a number that is not in its shortest form")
        return kind, number

    def item(self, depth: int) -> Value:
        if self.skip(NULL):
            return None
        kind, number = self.head()
        match kind:
            case 0:  # UNSIGNED
                return number
            case 1:  # NEGATIVE
                return -1 - number
            case 2:  # BYTES
                return self.take(number)
            case 3:  # TEXT
                try:
                    return self.take(number).decode("utf-8")
                except UnicodeDecodeError as error:
                    raise NotCbor(f"text that is not UTF-8: {error.reason}") from error
            case 4 | 5 if depth == 0:
                raise NotCbor(f"nested deeper than {MAX_DEPTH}")
            case 4:  # ARRAY
                self._expect(number)
                return tuple(self.item(depth - 1) for _ in range(number))
            case 5:  # MAP
                return self.pairs(number, depth - 1)
            case _:
                raise NotCbor("a tag, a float or a simple value where none may stand")

    def pairs(self, number: int | None, depth: int) -> dict[int | str, Value]:
        """So many keys with their values, or those until the end mark."""
        if number is not None:
            self._expect(2 * number)
        found: dict[int | str, Value] = {}
        while not self.skip(BREAK) if number is None else len(found) < number:
            key = self.item(0)
            if not isinstance(key, int | str):
                raise NotCbor("a key that is neither an integer nor text")
            if key in found:
                raise NotCbor(f"the key {str(key)[:64]!a} is there twice")
            found[key] = self.item(depth)
        return found

    def _expect(self, number: int) -> None:
        """Every item has at least one byte: what cannot be there is not even begun."""
        if number > len(self._data) - self._at:
            raise NotCbor("cut short")
