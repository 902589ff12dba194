"""
An answer as it arrives: sealed bytes from the network in, an ordinary `Response.raw` out.

Nothing is handed on before it is authenticated, and the end of the body is reached only through the sealed
message's authenticated end: everything else raises, again and again if asked again.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.client import HTTPMessage
from typing import Any, Protocol

import urllib3
import urllib3.response
from requests import exceptions as outer
from urllib3.exceptions import HTTPError, ReadTimeoutError

from blindbox_attestation.channel import bhttp, ohttp
from blindbox_attestation.errors import SealingError, TruncatedMessage

from . import process
from .errors import ResponseTooLarge, StalledResponse, TruncatedResponse, WrongAnswer
from .timeouts import Deadline

_READ = 64 * 1024


class SealedAnswer:
    """Opens one answer. `head()` first, then `piece()` until it returns nothing."""

    def __init__(
        self,
        network: urllib3.BaseHTTPResponse,
        opener: ohttp.ResponseOpener,
        *,
        request_id: bytes,
        deadline: Deadline,
    ) -> None:
        self._network = network
        self._opener = opener
        self._request_id = request_id
        self._deadline = deadline
        self._parser = bhttp.ResponseParser()
        self._unframer: bhttp.Unframer | None = None
        self._head: bhttp.ResponseHead | None = None
        self._ready: deque[bytes] = deque()
        self._finished = False
        self._error: Exception | None = None
        self._generation = process.generation()

    def head(self) -> bhttp.ResponseHead:
        """The final status and fields; informational answers before it are skipped (RFC 9292 §3.5.1)."""
        while self._head is None:
            if self._finished:
                raise self._fail(TruncatedResponse("the sealed answer holds no response"))
            self._advance()
        return self._head

    def piece(self) -> bytes:
        """The next bytes of the body, as they came; empty only at the authenticated end."""
        while not self._ready:
            if self._finished:
                return b""
            self._advance()
        return self._ready.popleft()

    def close(self) -> None:
        self._network.close()

    def _fail(self, error: Exception) -> Exception:
        self._error = error
        self._network.close()
        return error

    def _advance(self) -> None:
        if self._generation != process.generation():
            raise RuntimeError("this answer belongs to the process that asked, not to its child")
        if self._error is not None:
            raise self._error
        if self._deadline.passed():
            raise self._fail(StalledResponse("the answer did not come within the limit"))
        try:
            data = self._network.read1(_READ, decode_content=False)
        except ReadTimeoutError as error:
            raise self._fail(StalledResponse("nothing more of the answer came within the limit")) from error
        except (HTTPError, OSError, ValueError) as error:
            # Cut on the way. What is whole has been handed on; the rest of it never will be.
            raise self._fail(TruncatedResponse("the connection broke in the middle of the answer")) from error
        try:
            if data:
                self._take(self._opener.feed(data))
            else:
                self._take(self._opener.close())
                self._end()
        except TruncatedMessage as error:
            raise self._fail(TruncatedResponse("the answer was cut before its authenticated end")) from error
        except SealingError as error:
            raise self._fail(error)  # noqa: B904 - the same error, remembered

    def _take(self, opened: list[bytes]) -> None:
        for plaintext in opened:
            self._handle(self._parser.feed(plaintext))

    def _handle(self, events: list[bhttp.ResponseEvent]) -> None:
        for event in events:
            if isinstance(event, bytes):
                content = event if self._unframer is None else self._unframer.feed(event)
                if content:
                    self._deadline.heard()
                    self._ready.append(content)
            elif isinstance(event, bhttp.ResponseHead):
                self._deadline.heard()
                self._take_head(event)

    def _take_head(self, head: bhttp.ResponseHead) -> None:
        if [value for name, value in head.fields if name == b"blindbox-request-id"] != [self._request_id]:
            raise WrongAnswer("the sealed answer is to another request than ours")
        if (b"blindbox-padding", b"1") in head.fields:
            self._unframer = bhttp.Unframer()
        self._head = head

    def _end(self) -> None:
        self._handle(self._parser.close())
        if self._unframer is not None:
            self._unframer.close()
        self._finished = True


class _Decoder(Protocol):
    def decompress(self, data: bytes) -> bytes: ...
    def flush(self) -> bytes: ...


def _decoders(codings: str) -> list[_Decoder]:
    """What undoes `Content-Encoding`, last first; an unknown coding is left to the caller, as in urllib3."""
    if not codings:
        return []
    known: dict[str, Callable[[], Any] | None] = {
        "gzip": urllib3.response.GzipDecoder,
        "x-gzip": urllib3.response.GzipDecoder,
        "deflate": urllib3.response.DeflateDecoder,
        "br": getattr(urllib3.response, "BrotliDecoder", None),
        "zstd": getattr(urllib3.response, "ZstdDecoder", None),
    }
    names = [
        name.strip().lower() for name in codings.split(",") if name.strip().lower() not in {"", "identity"}
    ]
    makers = [known.get(name) for name in names]
    if not all(makers):
        return []
    return [maker() for maker in reversed(makers) if maker is not None]


class OpenedBody(io.BufferedIOBase):
    """
    `Response.raw`: the opened answer in the shape that `requests` expects of urllib3.

    `stream()` yields what the enclave produced as it produced it. `limit` is the largest body, after
    decoding.
    """

    version = 11
    version_string = "HTTP/1.1"
    decode_content = False  # what reading does that does not say; callers set it

    def __init__(self, answer: SealedAnswer, *, limit: int | None = None) -> None:
        head = answer.head()
        self._answer = answer
        self._limit = limit
        self._size = 0
        self._buffer = bytearray()
        self._over = False
        self.status = head.status
        self.reason = _reason(head.status)
        self.headers = urllib3.HTTPHeaderDict()
        for name, value in head.fields:
            if name != b"blindbox-padding":
                self.headers.add(name.decode("latin-1"), value.decode("latin-1"))
        # Most answers set no cookie; `requests` looks for them only where there is an original response.
        self._original_response = _Original(self.headers) if "set-cookie" in self.headers else None
        self._decoders: list[_Decoder] | None = None

    def stream(self, amt: int | None = _READ, decode_content: bool | None = None) -> Iterator[bytes]:
        """Pieces of at most `amt` bytes, each as soon as it is there."""
        while piece := self.read1(-1 if amt is None else amt, decode_content=decode_content):
            yield piece

    def read1(self, size: int | None = -1, /, *, decode_content: bool | None = None) -> bytes:
        """What is there, at most `size` bytes; waits only if there is nothing."""
        while not self._buffer and not self._over:
            self._fill(decode_content)
        return self._taken(size)

    def read(self, amt: int | None = -1, decode_content: bool | None = None) -> bytes:
        """All of the body, or `amt` bytes of it unless it ends before."""
        while not self._over and (amt is None or amt < 0 or len(self._buffer) < amt):
            self._fill(decode_content)
        return self._taken(amt)

    def put_back(self, data: bytes) -> None:
        """Let what was read be read once more."""
        self._buffer[:0] = data

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True

    def release_conn(self) -> None:
        """The connection goes back to the pool by itself, at the end of the answer."""

    def close(self) -> None:
        if not self.closed:
            self._answer.close()
        super().close()

    def _taken(self, size: int | None) -> bytes:
        end = len(self._buffer) if size is None or size < 0 else size
        data = bytes(self._buffer[:end])
        del self._buffer[:end]
        return data

    def _fill(self, decode: bool | None) -> None:
        if self._decoders is None:
            decode = self.decode_content if decode is None else decode
            self._decoders = _decoders(self.headers.get("content-encoding", "")) if decode else []
        piece = self._answer.piece()
        self._over = not piece
        try:
            for decoder in self._decoders:
                piece = decoder.decompress(piece) if piece else b""
                if self._over:
                    piece += decoder.flush()
        except Exception as error:  # each decoder has its own error
            self.close()
            raise outer.ContentDecodingError("the answer's content coding cannot be undone") from error
        self._size += len(piece)
        if self._limit is not None and self._size > self._limit:
            self._answer.close()
            raise ResponseTooLarge(
                f"the answer is larger than {self._limit} bytes; use stream=True for such answers"
            )
        self._buffer += piece


class _Original:
    """What `requests.cookies` looks at."""

    def __init__(self, headers: urllib3.HTTPHeaderDict) -> None:
        self.msg = HTTPMessage()
        for name, value in headers.iteritems():
            self.msg[name] = value


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
