"""
Variable-length integers (RFC 9000 §16), as Binary HTTP and Chunked Oblivious HTTP count with them.

Only the shortest spelling of a number is read: two spellings of one message are one too many (SPEC.md §5).
A length read here is a claim; nothing is allocated for it.
"""

from __future__ import annotations

from ..errors import MalformedMessage

_LARGEST = (1 << 62) - 1
_ONE_BYTE = tuple(bytes((value,)) for value in range(1 << 6))  # most lengths in a message
_SMALLEST_OF_SIZE = {1: 0, 2: 1 << 6, 4: 1 << 14, 8: 1 << 30}


def encode(value: int) -> bytes:
    """Return `value` in its shortest form, 1, 2, 4 or 8 bytes."""
    if 0 <= value < 1 << 6:
        return _ONE_BYTE[value]
    if value < 0:
        raise ValueError(f"a length cannot be negative: {value}")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    if value <= _LARGEST:
        return (value | 3 << 62).to_bytes(8, "big")
    raise ValueError(f"a length above 2^62-1 cannot be written: {value}")


def read(data: bytes | bytearray | memoryview, position: int = 0) -> tuple[int, int] | None:
    """Return the integer at `position` and the position after it, or None while it is not all there."""
    if position >= len(data):
        return None
    first = data[position]
    if first < 1 << 6:
        return first, position + 1
    size = 1 << (first >> 6)
    end = position + size
    if end > len(data):
        return None
    value = int.from_bytes(data[position:end], "big") & ((1 << (8 * size - 2)) - 1)
    if value < _SMALLEST_OF_SIZE[size]:
        raise MalformedMessage(f"the number {value} is spelt in {size} bytes, which is not its shortest form")
    return value, end
