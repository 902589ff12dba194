"""
What the pages of a Parquet file become when they are unpacked, read without unpacking any.

A few bytes may become gigabytes, and the file's own summary may be silent about it; but the library reserves
what stands in front of each page. So that is looked at first. Thrift's compact protocol, as far as needed;
the library's own way to the places of the pages ends the process where the summary is damaged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, BinaryIO, Final

MOST_PAGES: Final = 200_000
_HEADER: Final = 8 << 10
_LONGEST_HEADER: Final = 1 << 20
_LONGEST_SUMMARY: Final = 16 << 20
_DEEPEST: Final = 16
_MAGIC: Final = b"PAR1"


class Malformed(ValueError):
    """These bytes are not what should stand here."""


def unpacked(file: BinaryIO, columns: Collection[str]) -> Iterator[tuple[int, int]]:
    """Of each group of rows, in these columns: what all pages become, and what the largest does."""
    left = MOST_PAGES
    for group in _summary(file):
        total = largest = 0
        for chunk in _list(_struct(group).get(1)):
            about = _struct(_struct(chunk).get(3))
            path = [str(part, "utf-8", "replace") for part in _list(about.get(3)) if isinstance(part, bytes)]
            if not path or (path[0] not in columns and ".".join(path) not in columns):
                continue
            at, size, words = (_number(about.get(field, 0)) for field in (9, 7, 11))
            if 0 < words < at:
                at = words
            end = at + size
            while at < end:
                left -= 1
                if left < 0:
                    raise Malformed
                becomes, length = _page(file, at)
                total += becomes
                largest = max(largest, becomes)
                at += length
        yield total, largest


def _summary(file: BinaryIO) -> list[Any]:
    """The groups of rows, as the end of the file lists them."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if len(end) < 8 or end[4:] != _MAGIC or not 0 < length <= min(size - 8, _LONGEST_SUMMARY):
        raise Malformed
    file.seek(size - 8 - length)
    try:
        return _list(_Reader(file.read(length)).struct(0).get(4))
    except IndexError:
        raise Malformed from None


def _page(file: BinaryIO, at: int) -> tuple[int, int]:
    """What the page that begins here becomes, and how long it is."""
    size = _HEADER
    while True:
        file.seek(at)
        data = file.read(size)
        reader = _Reader(data)
        try:
            header = reader.struct(0)
        except IndexError:  # it goes on
            if len(data) < size or size >= _LONGEST_HEADER:
                raise Malformed from None
            size *= 8
        else:
            return _number(header.get(2)), reader.at + _number(header.get(3))


def _number(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise Malformed
    return value


def _list(value: Any) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise Malformed
    return value or []


def _struct(value: Any) -> dict[int, Any]:
    if not isinstance(value, dict):
        raise Malformed
    return value


class _Reader:
    """Goes through bytes; raises `IndexError` where they end too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def struct(self, depth: int) -> dict[int, Any]:
        """The values of the struct that begins here, by field."""
        found: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            # A truth value is in its field's kind.
            found[field] = head & 15 == 1 if head & 15 in (1, 2) else self._value(head & 15, depth + 1)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEEPEST:
            raise Malformed
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            if count > len(self._data):
                raise IndexError
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == 12:
            return self.struct(depth)
        raise Malformed  # a map, which there is none of

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _bytes(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self._data):
            raise IndexError
        return self._data[self.at - size : self.at]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise Malformed

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
