"""
The body of a local HTTP/1.1 request, as it comes: by its length, or in chunks (RFC 9112 §6, §7.1).

What is small is read whole, for a body in memory can be sent again; the rest passes through.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from email.message import Message
from typing import Final

IN_MEMORY: Final = 8 << 20  # the largest body that is read whole
MOST: Final = 1 << 30
_PIECE: Final = 64 * 1024
_LINE: Final = 4096
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")


class ClientGone(Exception):
    """The local program hung up."""


class BadBody(ValueError):
    """A body whose length cannot be known for sure, or that is too long."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class LocalBody:
    """
    One request's body. `go_on` is called before the first byte is read (for `100 Continue`).

    `finished` tells whether all of it has been read, so that the connection can be used again.
    """

    def __init__(self, headers: Message, reader: io.BufferedIOBase, go_on: Callable[[], None]) -> None:
        self._reader = reader
        self._go_on = go_on
        codings = headers.get_all("transfer-encoding", [])
        lengths = headers.get_all("content-length", [])
        self.length: int | None = 0
        if codings:
            if lengths:
                raise BadBody(400, "a request has a Content-Length or a Transfer-Encoding, not both")
            if [each.strip().lower() for each in codings] != ["chunked"]:
                raise BadBody(501, "the one transfer coding that is understood is chunked")
            self.length = None
        elif lengths:
            if len(lengths) != 1 or not re.fullmatch(r"[0-9]{1,18}", lengths[0].strip()):
                raise BadBody(400, "Content-Length is not one number")
            self.length = int(lengths[0])
            if self.length > MOST:
                raise BadBody(413, f"the body has {self.length} bytes; at most {MOST} are passed on")
        self.finished = self.length == 0

    def read(self) -> bytes | Iterator[bytes]:
        """All of it if it is small, else pieces, once."""
        if self.finished:
            return b""
        self._go_on()
        pieces = self._chunks() if self.length is None else self._counted(self.length)
        if self.length is not None and self.length > IN_MEMORY:
            return pieces
        whole = bytearray()
        for piece in pieces:
            whole += piece
            if len(whole) > IN_MEMORY:
                return _followed(bytes(whole), pieces)
        return bytes(whole)

    def _counted(self, length: int) -> Iterator[bytes]:
        while length:
            piece = self._some(length)
            length -= len(piece)
            self.finished = not length
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        total = 0
        while size := self._chunk_size():
            total += size
            if total > MOST:
                raise BadBody(
                    413, f"the body is longer than {MOST} bytes, which is the most that is passed on"
                )
            while size:
                piece = self._some(size)
                size -= len(piece)
                yield piece
            if self._line() not in (b"\r\n", b"\n"):
                raise BadBody(400, "a chunk of the body is longer than it says")
        for _ in range(100):
            if self._line() in (b"\r\n", b"\n"):  # trailers are read, and go nowhere
                self.finished = True
                return
        raise BadBody(400, "the body has more than 100 trailers")

    def _chunk_size(self) -> int:
        told = _CHUNK_SIZE.fullmatch(self._line())
        if told is None:
            raise BadBody(400, "a chunk of the body does not begin with its size")
        return int(told[1], 16)

    def _line(self) -> bytes:
        line = self._read(lambda: self._reader.readline(_LINE))
        if not line.endswith(b"\n"):
            raise BadBody(400, f"a line of the chunked body is longer than {_LINE} bytes")
        return line

    def _some(self, most: int) -> bytes:
        return self._read(lambda: self._reader.read1(min(most, _PIECE)))

    @staticmethod
    def _read(read: Callable[[], bytes]) -> bytes:
        try:
            data = read()
        except OSError as error:
            raise ClientGone from error
        if not data:
            raise ClientGone
        return data


def _followed(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
