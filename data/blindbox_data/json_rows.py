"""
Rows out of JSON: an object on each line, or one array of objects; both are read as they come.

An array is not held either: one object of it is, until it is whole. A number that JSON does not know (NaN) is
read as Python writes it; an object that names a column twice is refused: two readers could take two values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Final

from .errors import unreadable
from .lines import MOST_IN_A_ROW, Text, lines, pieces, too_long

MOST_COLUMNS: Final = 10_000
_BLANK: Final = re.compile(r"[ \t\r\n]*")


def json_lines(file: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """An object a line; blank lines are passed over."""
    number = 0
    for line, text in lines(file):
        if not text.strip():
            continue
        number += 1
        if text.strip() == "{":
            raise unreadable(
                f"line {line} begins an object that goes on below; write each object on one line, or "
                "all of them as one array"
            )
        yield number, _object(_parsed(text, line), f"line {line}")


def json_array(file: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of one array."""
    text = _Buffer(file)
    if text.next() != "[":
        raise unreadable("its JSON is not an array of objects")
    text.skip()
    number = 0
    if text.next() == "]":
        text.skip()
    else:
        while True:
            number += 1
            found = text.next()
            if not found:
                raise text.broken()
            if found != "{":
                if found in '["-0123456789tfnNI':
                    raise unreadable(f"row {number} is not a JSON object with columns as names")
                raise text.broken()
            yield number, _object(text.value(), f"row {number}")
            found = text.next()
            if found == "]":
                text.skip()
                break
            if found != ",":
                raise text.broken()
            text.skip()
    if text.next():
        raise unreadable(f"after its array something follows (line {text.line})")


class _Buffer:
    """The text that was read and not used yet."""

    def __init__(self, file: BinaryIO) -> None:
        self._pieces = pieces(file)
        self._reader = Text()
        self._rest = b""  # the beginning of a letter
        self._text = ""
        self._at = 0
        self._ended = False
        self._read = 1  # the line at which what is read next begins
        self._used = 1  # the line at which `_text` begins, …
        self._column = 0  # … and how many characters of that line come before it

    @property
    def line(self) -> int:
        """Where we are."""
        return self._used + self._text.count("\n", 0, self._at)

    def next(self) -> str:
        """The next character that is not blank; nothing at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            assert blank is not None
            self._at = blank.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(1):
                return ""

    def skip(self) -> None:
        """Go past that character."""
        self._at += 1

    def value(self) -> Any:
        """The JSON value that begins here."""
        wanted = 1
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Cut off, or broken; which of the two is known when more is there. Each time as much again is
                # read, so that a long row is not gone through once for each piece of it.
                if len(self._text) - self._at > MOST_IN_A_ROW:
                    raise too_long(f"The row at line {self.line}") from None
                wanted = max(len(self._text) - self._at, wanted)
                broken = self._broken_at(error.pos)
                if self._certain(error) or not self._more(wanted):
                    raise broken from None
            except _Twice:
                raise unreadable(f"the row at line {self.line} names a column twice in one object") from None
            except (RecursionError, ValueError):
                raise unreadable(
                    f"the row at line {self.line} is nested too deep or holds a number that is too long"
                ) from None
            else:
                return value

    def broken(self) -> Exception:
        """Here stands something that JSON does not have here."""
        return self._broken_at(self._at)

    def _broken_at(self, place: int) -> Exception:
        line = self._used + self._text.count("\n", 0, place)
        before = self._text.rfind("\n", 0, place)
        column = place - before if before >= 0 else self._column + place + 1
        return unreadable(f"the file is not JSON (line {line}, column {column})")

    def _certain(self, error: json.JSONDecodeError) -> bool:
        """Whether no more text can mend it: it is broken well before the end, and not by being cut off."""
        return error.pos < len(self._text) - 16 and not error.msg.startswith("Unterminated string")

    def _more(self, wanted: int) -> bool:
        """Read at least so many bytes on, if there are."""
        if self._ended:
            return False
        got = []
        size = 0
        while size < wanted:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
                break
            got.append(piece)
            size += len(piece)
        data = self._rest + b"".join(got)
        # The last letter may go on in the next piece.
        keep = 0 if self._ended else _unfinished(data)
        self._rest = data[len(data) - keep :]
        text = self._reader.text(data[: len(data) - keep], self._read)
        self._read += text.count("\n")
        self._used += self._text.count("\n", 0, self._at)
        before = self._text.rfind("\n", 0, self._at)
        self._column = self._at - before - 1 if before >= 0 else self._column + self._at
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(text) or not self._ended


def _unfinished(data: bytes) -> int:
    """How many bytes at the end begin a letter that is not whole."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < length else 0
        if byte < 0x80:
            return 0
    return 0


class _Twice(Exception):
    """An object with two values of one name: which of them is meant?"""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise _Twice
    return row


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_once)


def _parsed(text: str, line: int) -> Any:
    try:
        return _DECODER.decode(text)
    except _Twice:
        raise unreadable(f"line {line} names a column twice in one object") from None
    except json.JSONDecodeError as error:
        raise unreadable(f"line {line} is not JSON (column {error.colno})") from None
    except (RecursionError, ValueError):
        raise unreadable(f"line {line} is nested too deep or holds a number that is too long") from None


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise unreadable(f"{where} is not a JSON object with columns as names")
    check_number(len(value))
    return value


def check_number(columns: int) -> None:
    """So many columns are a mistake, or meant to keep us busy."""
    if columns > MOST_COLUMNS:
        raise unreadable(f"it has {columns} columns, and {MOST_COLUMNS} are the limit")
