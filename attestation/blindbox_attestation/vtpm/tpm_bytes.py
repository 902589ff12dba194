"""
The TPM's own way to write things down: big endian, a length of two bytes before what varies (TPM 2.0 part 2).

What is written that way is said in `quote.py` and `area.py`.
"""

from __future__ import annotations

from ..errors import MalformedEvidence


class TpmReader:
    """Takes one value after the other from the front; `end` says that nothing may follow."""

    __slots__ = ("_at", "_code", "_data", "_what")

    def __init__(self, data: bytes, what: str, code: str) -> None:
        self._data = data
        self._at = 0
        self._what = what
        self._code = code

    def take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        if len(found) != size:
            raise self.malformed("is cut short")
        self._at += size
        return found

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self, most: int) -> bytes:
        """A TPM2B of at most `most` bytes."""
        size = self.integer(2)
        if size > most:
            raise self.malformed(f"has {size} bytes where at most {most} belong")
        return self.take(size)

    def end(self) -> None:
        left = len(self._data) - self._at
        if left:
            raise MalformedEvidence(f"{left} bytes follow the {self._what}", code="trailing-bytes")

    def malformed(self, why: str) -> MalformedEvidence:
        return MalformedEvidence(f"the {self._what} {why}", code=self._code)
