"""
A multipart upload as it arrives: the file's bytes handed on at once, the small fields kept (RFC 7578).

The framework's own form parser would put large files into a readable temporary file; this one holds
no more than a piece. One field carries a file; others are short texts, known by name.
"""

from __future__ import annotations

import hashlib
import logging
import re
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..refusals import Refusal, TooLarge, listed, nearest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

BEGINNING: Final = 64 << 10
_MOST_IN_A_FIELD = 1024
_MOST_OVERHEAD = 64 << 10
# The parser would log the byte that it did not expect, and that is a byte of somebody's file (S-20).
logging.getLogger("python_multipart").setLevel(logging.CRITICAL + 1)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f/\\\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def label(filename: str) -> str:
    """A file's name as it is kept: a label for people, never a path, and inside the seal alone."""
    return _UNPRINTABLE.sub("_", filename)[:255] or "file"


def least_in(content_length: str | None) -> int:
    """How large a file is at least that comes in a body of this length; 0 where the length is not told."""
    told = content_length or ""
    length = int(told) if told.isascii() and told.isdigit() and len(told) <= 15 else 0
    return max(0, length - _MOST_OVERHEAD)


class Upload:
    """
    `feed` bytes, take the file's bytes; `end` says whether all of it was there.

    `file` names the field of the file, `texts` those of the others, and `most_bytes` is the file's size.
    """

    def __init__(self, content_type: str, most_bytes: int, *, file: str, texts: tuple[str, ...]) -> None:
        self._file = file
        self._names = (file, *texts)
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 200:
            raise Refusal(
                f'Send multipart/form-data with a field "{file}" '
                f'(requests: files={{"{file}": open(…, "rb")}}).',
                code="invalid_content_type",
            )
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_begin": self._header_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks)
        self._most = most_bytes
        self._received = 0
        self._size = 0
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._part: str | None = None
        self._text = bytearray()
        self._out: list[bytes] = []
        self._whole = False
        self.fields: dict[str, str] = {}
        self.filename = ""
        self.beginning = bytearray()
        self.sha256 = hashlib.sha256()  # of the file, as far as it was taken

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes of the body, give bytes of the file."""
        self._received += len(data)
        try:
            self._parser.write(data)
        except MultipartParseError:
            raise _malformed() from None
        if self._received - self._size > _MOST_OVERHEAD:
            raise _malformed()
        out, self._out = self._out, []
        for piece in out:
            self.sha256.update(piece)
        return out

    def end(self) -> None:
        """The body has ended; refuse one that is not whole or has no file."""
        if not self._whole:
            raise _malformed()
        if not self.filename:
            raise Refusal(
                f'There is no field "{self._file}" with a file name in the upload.',
                code="missing_field",
                param=self._file,
            )

    # --- what the parser calls, in this order -------------------------------------------------

    def _begin(self) -> None:
        self._headers, self._part, self._text = {}, None, bytearray()

    def _header_begin(self) -> None:
        self._name = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._names:
            near = nearest(name, self._names)
            raise Refusal(
                f'There is no field "{name[:80]}".{near} The fields are: {listed(self._names)}.',
                code="unknown_field",
                param=name[:80],
            )
        if name in self.fields or (name == self._file and self.filename):
            raise Refusal(f'The field "{name}" is there twice.', code="invalid_value", param=name)
        if name == self._file:
            self.filename = label(options.get(b"filename", b"").decode("utf-8", "replace"))
        self._part = name

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part == self._file:
            self._size += end - start
            if self._size > self._most:
                raise _too_large(self._most, self._file)
            piece = data[start:end]
            self.beginning += piece[: BEGINNING - len(self.beginning)]
            self._out.append(piece)
        else:
            self._text += data[start:end]
            if len(self._text) > _MOST_IN_A_FIELD:
                raise Refusal("A field is too long.", code="invalid_value", param=self._part)

    def _part_end(self) -> None:
        if self._part is not None and self._part != self._file:
            self.fields[self._part] = self._text.decode("utf-8", "replace")

    def _end(self) -> None:
        self._whole = True


def _malformed() -> Refusal:
    return Refusal(
        "The upload is not well-formed multipart/form-data, or was cut short.", code="invalid_multipart"
    )


def _too_large(most: int, field: str) -> TooLarge:
    message = f'What is in "{field}" is larger than {most} bytes, which is the limit here.'
    return TooLarge(message, code="file_too_large", param=field)
