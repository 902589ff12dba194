"""
DER, as much of it as X.509 certificates need: one way to read each value, everything else is refused.

This module knows tags and lengths (X.690 §8, §10); what a certificate is made of is in `x509.py`.
A hand-written reader, because AMD's chip certificates carry serial number 0, which X.509 libraries warn about
today and have announced to refuse.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OBJECT_IDENTIFIER: Final = 0x06
UTF8_STRING: Final = 0x0C
PRINTABLE_STRING: Final = 0x13
IA5_STRING: Final = 0x16
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
SET: Final = 0x31

_LONGEST_OID: Final = 32  # bytes; keeps the arithmetic small


class NotDer(ValueError):
    """The bytes are not the DER that was expected."""


class Reader:
    """Takes one element after the other from the front; `end` says that nothing may follow."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def next_is(self, tag: int) -> bool:
        return self._at < len(self._data) and self._data[self._at] == tag

    def whole(self, tag: int) -> bytes:
        """The next element with its tag and length."""
        start, content, end = self._bounds(tag)
        del content
        self._at = end
        return self._data[start:end]

    def take(self, tag: int) -> bytes:
        """The content of the next element."""
        data, at = self._data, self._at
        content, end = at + 2, len(data)
        # Most elements are short: their length is one byte, and needs no arithmetic.
        if content <= end and data[at] == tag and data[at + 1] < 0x80:
            end = content + data[at + 1]
            if end <= len(data):
                self._at = end
                return data[content:end]
        _, content, end = self._bounds(tag)
        self._at = end
        return data[content:end]

    def inside(self, tag: int) -> Reader:
        """A reader of the next element's content."""
        return Reader(self.take(tag))

    def end(self) -> None:
        if self._at < len(self._data):
            raise NotDer(f"{len(self._data) - self._at} bytes after the end")

    def integer(self) -> int:
        """X.690 §8.3: two's complement in the fewest bytes."""
        content = self.take(INTEGER)
        if not content or (len(content) > 1 and (content[0], content[1] >> 7) in {(0x00, 0), (0xFF, 1)}):
            raise NotDer("an INTEGER that is empty or not in its shortest form")
        return int.from_bytes(content, "big", signed=True)

    def boolean(self) -> bool:
        """X.690 §11.1: 00 or FF."""
        content = self.take(BOOLEAN)
        if content not in (b"\x00", b"\xff"):
            raise NotDer("a BOOLEAN that is neither 00 nor FF")
        return content == b"\xff"

    def bits(self) -> bytes:
        """A BIT STRING of whole bytes."""
        content = self.take(BIT_STRING)
        if content[:1] != b"\x00":
            raise NotDer("a BIT STRING that is not of whole bytes")
        return content[1:]

    def flags(self) -> int:
        """A named-bit BIT STRING of at most two bytes; bit 0 is the highest of the first byte."""
        content = self.take(BIT_STRING)
        if not 2 <= len(content) <= 3 or content[0] > 7 or content[-1] & ((1 << content[0]) - 1):
            raise NotDer("flags that are not in DER")
        return int.from_bytes(content[1:].ljust(2, b"\x00"), "big")

    def oid(self) -> str:
        """X.690 §8.19, as dotted numbers."""
        return _dotted(self.take(OBJECT_IDENTIFIER))

    def text(self) -> str:
        """A UTF8String, PrintableString or IA5String."""
        for tag, encoding in ((UTF8_STRING, "utf-8"), (PRINTABLE_STRING, "ascii"), (IA5_STRING, "ascii")):
            if self.next_is(tag):
                try:
                    return self.take(tag).decode(encoding)
                except UnicodeDecodeError as error:
                    raise NotDer(f"a string that is not {encoding}") from error
        raise NotDer("no string where one was expected")

    def time(self) -> datetime:
        """RFC 5280 §4.1.2.5: UTCTime until 2049, GeneralizedTime after it, both to the second and in Z."""
        short = self.next_is(UTC_TIME)
        content = self.take(UTC_TIME if short else GENERALIZED_TIME)
        return _moment(content, short)

    def _bounds(self, tag: int) -> tuple[int, int, int]:
        data, at = self._data, self._at
        if at + 2 > len(data):
            raise NotDer("cut short")
        if data[at] != tag:
            raise NotDer(f"tag {data[at]:02x} where {tag:02x} was expected")
        length = data[at + 1]
        content = at + 2
        if length >= 0x80:
            count = length & 0x7F
            content += count
            if not 1 <= count <= 3 or content > len(data):
                raise NotDer("a length that is indefinite, too long or cut short")
            length = int.from_bytes(data[at + 2 : content], "big")
            if length < 0x80 or length >> 8 * (count - 1) == 0:
                raise NotDer("a length that is not in its shortest form")
        if content + length > len(data):
            raise NotDer("cut short")
        return at, content, content + length


@lru_cache(maxsize=256)  # a list withdraws many certificates at the same moment
def _moment(content: bytes, short: bool) -> datetime:
    digits, zone = content[:-1], content[-1:]
    if zone != b"Z" or len(digits) != (12 if short else 14) or not digits.isdigit():
        raise NotDer("a time that is not to the second and in Z")
    year = int(digits[:-10])
    if short:
        year += 1900 if year >= 50 else 2000
    month, day, hour, minute, second = (
        int(digits[at : at + 2]) for at in range(len(digits) - 10, len(digits), 2)
    )
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise NotDer(f"no such time: {error}") from error


@lru_cache(maxsize=256)  # the same few stand in every certificate
def _dotted(content: bytes) -> str:
    if not content or len(content) > _LONGEST_OID or content[-1] & 0x80:
        raise NotDer("an OBJECT IDENTIFIER that is empty, too long or cut short")
    arcs: list[int] = []
    value, first = 0, True
    for byte in content:
        if first and byte == 0x80:
            raise NotDer("an OBJECT IDENTIFIER that is not in its shortest form")
        value, first = value << 7 | byte & 0x7F, not byte & 0x80
        if first:
            arcs.append(value)
            value = 0
    root = min(arcs[0] // 40, 2)
    return ".".join(map(str, [root, arcs[0] - 40 * root, *arcs[1:]]))
