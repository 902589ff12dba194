"""
Binary HTTP messages (RFC 9292), in both framings, and the padding of profile 1 (SPEC.md §5.2, §5.5).

Writing and reading stand side by side. Readers take bytes as they come and give out events; they are strict
about what a message may say, since behind them nobody looks again. They know nothing of sealing: whether a
message is whole is told by `close`, and whether it is genuine was told by `ohttp.py` before.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from ..errors import MalformedMessage, TruncatedMessage
from . import varint

MAX_HEAD: Final = 65536
"""Most bytes that control data and fields, or trailers, may take together."""

MAX_FIELDS: Final = 1024
"""Most field lines in one section."""

Fields = tuple[tuple[bytes, bytes], ...]
FieldLines = Iterable[tuple[bytes, bytes]]
Buffer = bytes | bytearray | memoryview

# Framing indicators, RFC 9292 §3.3
_KNOWN_REQUEST, _KNOWN_RESPONSE, _OPEN_REQUEST, _OPEN_RESPONSE = 0, 1, 2, 3

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # the same in lower case: RFC 9113 §8.2.1
# No line break, no zero byte, no white space at either end: RFC 9113 §8.2.1
_VALUE = re.compile(rb"(?![ \t])[^\x00\r\n]*(?<![ \t])")
_SCHEME = re.compile(rb"[a-z][a-z0-9+.\-]*")
_AUTHORITY = re.compile(rb"[!-.0-~]*")  # printable, no space, no slash
_PATH = re.compile(rb"/[!-\"$-~]*|\*")  # origin form without fragment, or asterisk form: RFC 9113 §8.3.1


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a request says before its content. Names are lower case, values as they are in HTTP."""

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    fields: Fields = ()


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What an answer says before its content; `status` is 200–599."""

    status: int
    fields: Fields = ()


@dataclass(frozen=True, slots=True)
class Informational:
    """An answer that precedes the answer; `status` is 100–199 (RFC 9292 §3.5.1)."""

    status: int
    fields: Fields = ()


@dataclass(frozen=True, slots=True)
class End:
    """The message has been read; only padding may follow."""

    trailers: Fields = ()


RequestEvent = RequestHead | bytes | End
ResponseEvent = Informational | ResponseHead | bytes | End


# --- writing


def encode_request(head: RequestHead, body: Buffer = b"", trailers: FieldLines = ()) -> bytes:
    """Return a whole request of known length (RFC 9292 §3.1)."""
    return b"".join(
        (
            varint.encode(_KNOWN_REQUEST),
            _request_control(head),
            _known_fields(head.fields),
            varint.encode(len(body)),
            body,
            _known_fields(trailers),
        )
    )


def encode_response(
    head: ResponseHead,
    body: Buffer = b"",
    trailers: FieldLines = (),
    *,
    informational: Iterable[Informational] = (),
) -> bytes:
    """Return a whole answer of known length (RFC 9292 §3.1)."""
    return b"".join(
        (
            varint.encode(_KNOWN_RESPONSE),
            *(_informational_control(one) + _known_fields(one.fields) for one in informational),
            _response_control(head),
            _known_fields(head.fields),
            varint.encode(len(body)),
            body,
            _known_fields(trailers),
        )
    )


def request_start(head: RequestHead) -> bytes:
    """Return the start of a request of indeterminate length: `content` and `end` follow (RFC 9292 §3.2)."""
    return varint.encode(_OPEN_REQUEST) + _request_control(head) + _open_fields(head.fields)


def response_start(
    head: ResponseHead, informational: Iterable[Informational] = (), *, first: bool = True
) -> bytes:
    """
    Return the start of an answer of indeterminate length: `content` and `end` follow (RFC 9292 §3.2).

    `first=False` if a piece written by `informational` has already opened the message.
    """
    return b"".join(
        (
            varint.encode(_OPEN_RESPONSE) if first else b"",
            *(_informational_control(one) + _open_fields(one.fields) for one in informational),
            _response_control(head),
            _open_fields(head.fields),
        )
    )


def informational(status: int, fields: FieldLines = (), *, first: bool) -> bytes:
    """Return an informational answer ahead of `response_start`; the `first` of them opens the message."""
    one = Informational(status, tuple(fields))
    return (
        (varint.encode(_OPEN_RESPONSE) if first else b"")
        + _informational_control(one)
        + _open_fields(one.fields)
    )


def content(data: Buffer) -> bytes:
    """Return a piece of content of indeterminate length; nothing for no data (RFC 9292 §3.2)."""
    return b"".join((varint.encode(len(data)), data)) if data else b""


def end(trailers: FieldLines = ()) -> bytes:
    """Return the end of a message of indeterminate length: end of content, and trailers."""
    return b"\x00" + _open_fields(trailers)


def _request_control(head: RequestHead) -> bytes:
    """RFC 9292 §3.4."""
    _check_request(head)
    parts: list[bytes] = []
    for value in (head.method, head.scheme, head.authority, head.path):
        parts += (varint.encode(len(value)), value)
    return b"".join(parts)


def _response_control(head: ResponseHead) -> bytes:
    """RFC 9292 §3.5."""
    if not 200 <= head.status <= 599:
        raise MalformedMessage(f"the status of an answer is 200 to 599, not {head.status}")
    return varint.encode(head.status)


def _informational_control(one: Informational) -> bytes:
    """RFC 9292 §3.5.1."""
    if not 100 <= one.status <= 199:
        raise MalformedMessage(f"an informational status is 100 to 199, not {one.status}")
    return varint.encode(one.status)


def _known_fields(fields: FieldLines) -> bytes:
    lines = _field_lines(fields)
    return varint.encode(len(lines)) + lines


def _open_fields(fields: FieldLines) -> bytes:
    return _field_lines(fields) + b"\x00"


def _field_lines(fields: FieldLines) -> bytes:
    """RFC 9292 §3.6. Names go out in lower case, values without outer white space: RFC 9113 §8.2.1."""
    parts: list[bytes] = []
    for written_name, written_value in fields:
        name, value = written_name.lower(), written_value.strip(b" \t")
        _check_field(name, value)
        parts += (varint.encode(len(name)), name, varint.encode(len(value)), value)
    lines = b"".join(parts)
    count = len(parts) // 4
    if count > MAX_FIELDS or len(lines) > MAX_HEAD:
        raise MalformedMessage(f"{count} fields of {len(lines)} bytes are more than a message may have")
    return lines


# --- what a message may say, the same for both directions


def _check_field(name: bytes, value: bytes) -> None:
    """RFC 9292 §3.6 with RFC 9113 §8.2.1. Values may be secret: they are not shown."""
    if not _NAME.fullmatch(name):
        raise MalformedMessage("a field name has characters that are not a lower-case token")
    if not _VALUE.fullmatch(value):
        raise MalformedMessage("a field value has a line break, a zero byte, or white space at an end")


def _check_request(head: RequestHead) -> None:
    """RFC 9292 §3.4 with RFC 9113 §8.3.1. Paths may be secret: they are not shown."""
    if not _TOKEN.fullmatch(head.method):
        raise MalformedMessage("a method is not a token")
    if not _SCHEME.fullmatch(head.scheme):
        raise MalformedMessage("a scheme is not one")
    if not _AUTHORITY.fullmatch(head.authority):
        raise MalformedMessage("an authority has characters that no authority has")
    if not _PATH.fullmatch(head.path):
        raise MalformedMessage("a path has characters that no path has, or does not begin with a slash")
    if sum(map(len, (head.method, head.scheme, head.authority, head.path))) > MAX_HEAD:
        raise MalformedMessage(f"method, scheme, authority and path are longer than {MAX_HEAD} bytes")


# --- reading

Step = Generator[None, None, None]
_Head = TypeVar("_Head", RequestHead, Informational | ResponseHead)


class _Bytes:
    """
    The bytes that came in and were not read yet.

    Readers are generators: they yield where they need more, and go on when `feed` or `close` resumes them.
    """

    __slots__ = ("_ended", "_position", "_waiting")

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._position = 0
        self._ended = False

    def add(self, data: Buffer) -> None:
        if self._position:
            del self._waiting[: self._position]
            self._position = 0
        self._waiting += data

    def finish(self) -> None:
        self._ended = True

    def at_end(self) -> Generator[None, None, bool]:
        """Whether the input ends here; waits until that is known."""
        while len(self._waiting) == self._position:
            if self._ended:
                return True
            yield
        return False

    def number(self) -> Generator[None, None, int]:
        """Read one variable-length integer."""
        while (found := varint.read(self._waiting, self._position)) is None:
            yield from self._more()
        value, self._position = found
        return value

    def take(self, size: int) -> Generator[None, None, bytes]:
        """Read exactly `size` bytes; the caller has checked that this is not too much to wait for."""
        while len(self._waiting) - self._position < size:
            yield from self._more()
        start, self._position = self._position, self._position + size
        return bytes(self._waiting[start : self._position])

    def some(self, most: int) -> Generator[None, None, bytes]:
        """Read what is there, at least one byte and not more than `most`."""
        while len(self._waiting) == self._position:
            yield from self._more()
        start = self._position
        self._position = min(len(self._waiting), start + most)
        return bytes(self._waiting[start : self._position])

    def _more(self) -> Step:
        if self._ended:
            raise TruncatedMessage("a binary message ended before it was whole (RFC 9292 §3.8)")
        yield


class _Parser(ABC, Generic[_Head]):
    """What requests and answers have in common: fields, content, trailers, padding."""

    __slots__ = ("_bytes", "_events", "_failed", "_finished", "_steps")

    def __init__(self) -> None:
        self._bytes = _Bytes()
        self._events: list[_Head | bytes | End] = []
        self._finished = False
        self._failed = False
        self._steps = self._read()
        next(self._steps)

    @property
    def finished(self) -> bool:
        """Whether the message and its padding have been read to the end of the input."""
        return self._finished

    def feed(self, data: Buffer) -> list[_Head | bytes | End]:
        """Return the events that `data` completes."""
        self._bytes.add(data)
        return self._resume()

    def close(self) -> list[_Head | bytes | End]:
        """
        Say that the input has ended. Raises unless the message is whole.

        Returns the events that only the end could tell: a message may leave out its empty last parts (§3.8).
        """
        self._bytes.finish()
        return self._resume()

    def _resume(self) -> list[_Head | bytes | End]:
        if self._failed or self._finished:
            raise MalformedMessage("a binary message has already ended, or failed")
        self._failed = True  # until the step has succeeded
        try:
            next(self._steps)
        except StopIteration:
            self._finished = True
        self._failed = False
        events = self._events[:]
        self._events.clear()
        return events

    @abstractmethod
    def _read(self) -> Step:
        """Read the message from its first byte to the last of its padding."""

    def _read_fields(self, known: bool) -> Generator[None, None, Fields]:
        """RFC 9292 §3.6."""
        if known:
            size = yield from self._bytes.number()
            if size > MAX_HEAD:
                raise MalformedMessage(
                    f"a field section of {size} bytes is announced, at most {MAX_HEAD} are read"
                )
            return _parse_field_lines((yield from self._bytes.take(size)))
        fields: list[tuple[bytes, bytes]] = []
        left = MAX_HEAD
        while (size := (yield from self._bytes.number())) != 0:
            left -= size
            name = yield from self._bytes.take(_within(size, left))
            size = yield from self._bytes.number()
            left -= size
            value = yield from self._bytes.take(_within(size, left))
            _check_field(name, value)
            fields.append((name, value))
            _check_count(fields)
        return tuple(fields)

    def _read_rest(self, known: bool) -> Step:
        """Content, trailers, padding: RFC 9292 §3.7, §3.6, §3.8. Empty ones may be missing at the end."""
        source = self._bytes
        trailers: Fields = ()
        if not (yield from source.at_end()):
            while (size := (yield from source.number())) != 0:
                while size:
                    piece = yield from source.some(size)
                    size -= len(piece)
                    self._events.append(piece)
                if known:
                    break
            if not (yield from source.at_end()):
                trailers = yield from self._read_fields(known)
        self._events.append(End(trailers))
        while not (yield from source.at_end()):
            padding = yield from source.some(MAX_HEAD)
            if padding.count(0) != len(padding):
                raise MalformedMessage("padding has a byte that is not zero (RFC 9292 §3.8)")


class RequestParser(_Parser[RequestHead]):
    """Reads a request: one `RequestHead`, its content piece by piece as `bytes`, one `End`."""

    __slots__ = ()

    def _read(self) -> Step:
        source = self._bytes
        framing = yield from source.number()
        if framing not in (_KNOWN_REQUEST, _OPEN_REQUEST):
            raise MalformedMessage(f"framing {framing} is not that of a request (RFC 9292 §3.3)")
        known = framing == _KNOWN_REQUEST
        left = MAX_HEAD
        control: list[bytes] = []
        for _ in ("method", "scheme", "authority", "path"):
            size = yield from source.number()
            left -= size
            control.append((yield from source.take(_within(size, left))))
        method, scheme, authority, path = control
        fields: Fields = ()
        # Without any field, a message of known length may end here: RFC 9458 appendix A has one that does.
        if not known or not (yield from source.at_end()):
            fields = yield from self._read_fields(known)
        head = RequestHead(method, scheme, authority, path, fields)
        _check_request(head)
        self._events.append(head)
        yield from self._read_rest(known)


class ResponseParser(_Parser[Informational | ResponseHead]):
    """Reads an answer: any `Informational`, one `ResponseHead`, its content as `bytes`, one `End`."""

    __slots__ = ()

    def _read(self) -> Step:
        source = self._bytes
        framing = yield from source.number()
        if framing not in (_KNOWN_RESPONSE, _OPEN_RESPONSE):
            raise MalformedMessage(f"framing {framing} is not that of an answer (RFC 9292 §3.3)")
        known = framing == _KNOWN_RESPONSE
        while 100 <= (status := (yield from source.number())) <= 199:
            informed = yield from self._read_fields(known)
            self._events.append(Informational(status, informed))
        if not 200 <= status <= 599:
            raise MalformedMessage(f"the status of an answer is 200 to 599, not {status}")
        fields: Fields = ()
        if not known or not (yield from source.at_end()):
            fields = yield from self._read_fields(known)
        self._events.append(ResponseHead(status, fields))
        yield from self._read_rest(known)


def _within(size: int, left: int) -> int:
    """Return `size`, or refuse it if what is `left` of the limit does not hold it."""
    if left < 0:
        raise MalformedMessage(f"a head is longer than {MAX_HEAD} bytes")
    return size


def _check_count(fields: list[tuple[bytes, bytes]]) -> None:
    if len(fields) > MAX_FIELDS:
        raise MalformedMessage(f"a message has more than {MAX_FIELDS} fields")


def _parse_field_lines(data: bytes) -> Fields:
    """Read a field section of known length, all of it."""
    fields: list[tuple[bytes, bytes]] = []
    position = 0
    while position < len(data):
        name, position = _parse_prefixed(data, position)
        value, position = _parse_prefixed(data, position)
        _check_field(name, value)
        fields.append((name, value))
    _check_count(fields)
    return tuple(fields)


def _parse_prefixed(data: bytes, position: int) -> tuple[bytes, int]:
    length = varint.read(data, position)
    if length is None or length[0] > len(data) - length[1]:
        raise MalformedMessage("a field line reaches beyond its section")
    size, start = length
    return data[start : start + size], start + size


# --- padding, SPEC.md §5.2 and §5.5


def padding_for(total: int, *, least: int = 1024) -> int:
    """
    Return how many zero bytes bring a message of `total` bytes to its step.

    Steps are the powers of two and the seven eighths between each two of them, and none is below `least`: an
    observer learns at most three bits beside the magnitude, and padding costs at most an eighth.
    """
    if total <= least:
        return least - total
    step = (1 << ((total - 1).bit_length() - 1)) // 8 or 1
    return -total % step


_FRAME_HEAD = 4
MAX_FRAME: Final = 0xFFFF
"""Most bytes of data, and of padding, in one padding frame."""


def frame(data: Buffer, pad: int) -> bytes:
    """Return one padding frame: u16 n ‖ u16 p ‖ n bytes of data ‖ p zero bytes (SPEC.md §5.5)."""
    if len(data) > MAX_FRAME or not 0 <= pad <= MAX_FRAME:
        raise ValueError(f"a padding frame holds at most {MAX_FRAME} bytes of data and as many of padding")
    return b"".join((len(data).to_bytes(2, "big"), pad.to_bytes(2, "big"), data, bytes(pad)))


class Unframer:
    """Takes the data out of a sequence of padding frames, as their bytes come in."""

    __slots__ = ("_data", "_head", "_pad")

    def __init__(self) -> None:
        self._head = bytearray()
        self._data = 0  # bytes of data still to come in this frame
        self._pad = 0  # zero bytes still to come in this frame

    def feed(self, data: Buffer) -> bytes:
        """Return the data in these bytes; raises if padding is not zero."""
        out: list[bytes] = []
        with memoryview(data) as view:
            position = 0
            while position < len(view):
                if self._data:
                    piece = bytes(view[position : position + self._data])
                    self._data -= len(piece)
                    out.append(piece)
                elif self._pad:
                    piece = bytes(view[position : position + self._pad])
                    self._pad -= len(piece)
                    if piece.count(0) != len(piece):
                        raise MalformedMessage("a padding frame has padding that is not zero")
                else:
                    piece = bytes(view[position : position + _FRAME_HEAD - len(self._head)])
                    self._head += piece
                    if len(self._head) == _FRAME_HEAD:
                        self._data = int.from_bytes(self._head[:2], "big")
                        self._pad = int.from_bytes(self._head[2:], "big")
                        self._head.clear()
                position += len(piece)
        return b"".join(out)

    def close(self) -> None:
        """Say that the content has ended; raises if it ended within a frame."""
        if self._head or self._data or self._pad:
            raise TruncatedMessage("the content ended within a padding frame")
