"""
A file's bytes as lines of text, one at a time, whatever the file's size.

Held in memory is one line, which has a limit. What is not UTF-8 is refused with its line and byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from .errors import DataError

MOST_IN_A_ROW: Final = 32 << 20
"""Bytes of one row: as it stands in the file, whether or not its columns are asked for."""
PIECE: Final = 256 << 10
_MARK: Final = b"\xef\xbb\xbf"


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """All of it, piece by piece, without a byte order mark."""
    first = True
    while piece := file.read(PIECE):
        if first:
            while len(piece) < len(_MARK) and (more := file.read(PIECE)):
                piece += more
            piece, first = piece.removeprefix(_MARK), False
        if piece:
            yield piece


def lines(file: BinaryIO, *, any_end: bool = False) -> Iterator[tuple[int, str]]:
    """
    Lines with their numbers, from 1, each with its end.

    A line ends with \\n; with `any_end` also with \\r alone, as old spreadsheets write it.
    """
    reader = Text()
    for number, line in enumerate(_split(pieces(file), any_end=any_end), start=1):
        yield number, reader.text(line, number)


class Text:
    """Decodes UTF-8 piece by piece, and remembers what an error has to tell."""

    def __init__(self) -> None:
        self._byte = 0
        self._foreign = False  # whether letters beyond ASCII were read, and read well

    def text(self, data: bytes, line: int) -> str:
        """`data`, which begins on `line`, as text; raises `DataError`."""
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            at = line + data.count(b"\n", 0, error.start)
            foreign = self._foreign or not data[: error.start].isascii()
            mixed = ", though what comes before it is: two encodings are mixed" if foreign else ""
            raise DataError(
                f"The file is not UTF-8 (line {at}, byte {self._byte + error.start}){mixed}. Save it as "
                "UTF-8 and upload it again.",
                code="invalid_encoding",
            ) from None
        self._byte += len(data)
        self._foreign = self._foreign or len(text) != len(data)
        return text


def too_long(where: str) -> DataError:
    """A row that nobody means to train on."""
    return DataError(
        f"{where} is longer than {MOST_IN_A_ROW >> 20} MiB; split its texts, or leave that row out.",
        code="too_many_tokens",
    )


def _split(pieces: Iterator[bytes], *, any_end: bool) -> Iterator[bytes]:
    held: list[bytes] = []
    size = number = 0
    for piece in pieces:
        cut = piece.splitlines(keepends=True) if any_end else _at_line_feeds(piece)
        if held and held[-1].endswith(b"\r") and any_end and not piece.startswith(b"\n"):
            number += 1
            yield b"".join(held)
            held, size = [], 0
        for line in cut[:-1]:
            number += 1
            if size + len(line) > MOST_IN_A_ROW:
                raise too_long(f"Line {number}")
            yield b"".join([*held, line]) if held else line
            held, size = [], 0
        last = cut[-1]
        held.append(last)
        size += len(last)
        if size > MOST_IN_A_ROW:
            raise too_long(f"Line {number + 1}")
        if last.endswith(b"\n"):
            number += 1
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _at_line_feeds(piece: bytes) -> list[bytes]:
    parts = piece.split(b"\n")
    ended = [part + b"\n" for part in parts[:-1]]
    return [*ended, parts[-1]] if parts[-1] else ended
