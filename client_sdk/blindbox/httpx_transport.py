"""
Attested, sealed calls for programs written for `httpx2`: transports, for its sync and its async client.

    httpx2.Client(transport=SealedTransport(SealedAdapter(policy)), trust_env=False)

They stand on `SealedAdapter`; the async one waits for it on threads, one for each call under way. Errors of
the network become those of httpx2; a machine that does not prove itself raises `AttestationError`, as
everywhere, which no retry loop knows. Each response has its `Proof` in `extensions["blindbox"]`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, TypeAlias, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx2
import requests
from requests import exceptions as outer
from requests.structures import CaseInsensitiveDict

from .adapter import SealedAdapter
from .call import Call, GivenUp, may_be_repeated
from .errors import AttestationError, ResponseTooLarge, TruncatedResponse
from .requests import Session
from .timeouts import DEFAULT, Timeouts

STREAMED: Final = "blindbox-streamed"
"""The request's extension that says, with True, that its answer is read piece by piece, however long."""
PROOF: Final = "blindbox"
"""The response's extension that holds the `Proof` of the machine that answered."""

_IN_MEMORY = 8 << 20  # a body that is read whole can be sent again where that is safe
_PIECE = 64 * 1024
_T = TypeVar("_T")

Unrepeatable: TypeAlias = Callable[[httpx2.Request, Exception], Exception]
"""Turns an error into one that nobody takes for a reason to send the call again."""


class SealedTransport(httpx2.BaseTransport):
    """
    Carries an `httpx2.Client` to machines that have proved themselves, and to no others.

    `unrepeatable` is applied to errors of calls that may have run and must not run twice, for clients that
    send again by themselves. Answers that are not streamed are limited by the adapter's `max_response_bytes`.
    """

    def __init__(
        self, door: SealedAdapter, *, unrepeatable: Unrepeatable = lambda request, error: error
    ) -> None:
        self._calls = _Calls(door, unrepeatable)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        one = self._calls.prepared(request, _body(request))
        return one.answered(_Sync(one))

    def close(self) -> None:
        self._calls.close()


class AsyncSealedTransport(httpx2.AsyncBaseTransport):
    """The same for an `httpx2.AsyncClient`. A call whose task is cancelled is given up at once."""

    def __init__(
        self, door: SealedAdapter, *, unrepeatable: Unrepeatable = lambda request, error: error
    ) -> None:
        self._calls = _Calls(door, unrepeatable)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        one = self._calls.prepared(request, await _async_body(request))
        stream = _Async(one)
        return await stream.on_a_thread(one.answered, stream)

    async def aclose(self) -> None:
        self._calls.close()


class _Calls:
    """What both transports are made of."""

    def __init__(self, door: SealedAdapter, unrepeatable: Unrepeatable) -> None:
        self.door = door
        self.unrepeatable = unrepeatable
        self.session = Session(
            adapter=door
        )  # it knows the environment's proxies, and where redirects may lead

    def prepared(self, request: httpx2.Request, body: bytes | Iterator[bytes]) -> _One:
        """The request as `SealedAdapter` takes it."""
        sealed = requests.PreparedRequest()
        sealed.method = request.method
        sealed.url = str(request.url.copy_with(fragment=None))
        fields: CaseInsensitiveDict[str] = CaseInsensitiveDict()
        for name, value in request.headers.multi_items():
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
        fields["Accept-Encoding"] = "identity"  # a compressed message's length tells about its content
        sealed.headers = fields
        sealed.body = body  # type: ignore[assignment]
        return _One(self, request, sealed)

    def close(self) -> None:
        self.session.close()
        self.door.close()


class _One:
    """One call, on whatever thread it is."""

    def __init__(self, calls: _Calls, request: httpx2.Request, sealed: requests.PreparedRequest) -> None:
        self.call = Call()
        self._calls, self._request, self._sealed = calls, request, sealed
        self._response: requests.Response | None = None
        self._left = None if request.extensions.get(STREAMED) else calls.door.max_response_bytes

    def answered(self, stream: httpx2.SyncByteStream | httpx2.AsyncByteStream) -> httpx2.Response:
        """Send, and wait for the answer's head; `stream` reads the rest of it from here."""
        calls = self._calls
        way: Any = calls.session.merge_environment_settings(self._sealed.url or "", {}, True, None, None)
        try:
            self._response = response = calls.door.send(
                self._sealed, **way, timeout=_timeouts(self._request), call=self.call
            )
            self.call.go_on()
            fields = list(response.raw.headers.iteritems())
            target = calls.session.get_redirect_target(response)
            if target:
                fields = [field for field in fields if field[0].lower() != "location"]
                fields.append(("location", target))
        except BaseException as error:
            self.close()
            raise self._told(error) from error
        return httpx2.Response(
            response.status_code,
            headers=fields,
            stream=stream,
            extensions={PROOF: response.__dict__["blindbox"], "http_version": b"HTTP/1.1"},
        )

    def piece(self) -> bytes:
        """The next bytes of the body; empty at its authenticated end."""
        assert self._response is not None
        try:
            data: bytes = self._response.raw.read1(_PIECE, decode_content=False)
            if self._left is not None:
                self._left -= len(data)
                if self._left < 0:
                    raise ResponseTooLarge(
                        f"the answer is larger than {self._calls.door.max_response_bytes} bytes; "
                        "read such answers as a stream"
                    )
        except BaseException as error:
            self.close()
            raise self._told(error) from error
        return data

    def close(self) -> None:
        if self._response is not None:
            self._response.close()

    def _told(self, error: BaseException) -> BaseException:
        """The error for a program that knows httpx2's."""
        if not isinstance(error, Exception):
            return error
        told = _of_httpx(error, self._request, sent=self.call.sent)
        if told is error or may_be_repeated(error, self._sealed, self.call):
            return told
        return self._calls.unrepeatable(self._request, told)


class _Sync(httpx2.SyncByteStream):
    def __init__(self, one: _One) -> None:
        self._one = one

    def __iter__(self) -> Iterator[bytes]:
        while piece := self._one.piece():
            yield piece

    def close(self) -> None:
        self._one.close()


class _Async(httpx2.AsyncByteStream):
    def __init__(self, one: _One) -> None:
        self._one = one

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.on_a_thread(self._one.piece):
            yield piece

    async def aclose(self) -> None:
        self._one.close()

    async def on_a_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Wait for what blocks. A limiter of its own: calls must not wait for each other's answers."""
        try:
            return await anyio.to_thread.run_sync(
                work, *arguments, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
            )
        except anyio.get_cancelled_exc_class():
            self._one.call.give_up()
            raise


def _of_httpx(error: Exception, request: httpx2.Request, *, sent: bool) -> Exception:
    """The same in httpx2's words; `error` itself if it is none of the network's."""
    if isinstance(error, AttestationError | ResponseTooLarge | GivenUp):
        return error
    why = str(error)
    if isinstance(error, outer.ConnectTimeout):
        return httpx2.ConnectTimeout("the machine could not be reached in time", request=request)
    if isinstance(error, outer.Timeout):
        return httpx2.ReadTimeout("the machine did not answer in time", request=request)
    if isinstance(error, outer.ProxyError):
        return httpx2.ProxyError("the proxy on the way did not connect", request=request)
    if isinstance(error, TruncatedResponse | outer.ChunkedEncodingError):
        return httpx2.RemoteProtocolError(why, request=request)
    if isinstance(error, outer.ContentDecodingError):
        return httpx2.DecodingError(why, request=request)
    if isinstance(error, outer.ConnectionError):
        return httpx2.ReadError(why, request=request) if sent else httpx2.ConnectError(why, request=request)
    return error


def _timeouts(request: httpx2.Request) -> Timeouts:
    """httpx2's limits, and ours in all: nothing waits for ever. Its limits mean words, not signs of life."""
    told = request.extensions.get("timeout")
    if told is None:
        return DEFAULT
    return Timeouts(told.get("connect"), told.get("read"), DEFAULT.in_all, given=True)


def _body(request: httpx2.Request) -> bytes | Iterator[bytes]:
    assert isinstance(request.stream, httpx2.SyncByteStream)
    return request.read() if _small(request) else iter(request.stream)


async def _async_body(request: httpx2.Request) -> bytes | Iterator[bytes]:
    assert isinstance(request.stream, httpx2.AsyncByteStream)
    if _small(request):
        return await request.aread()
    pieces = request.stream.__aiter__()

    async def another() -> bytes:
        return await anext(pieces, b"")

    # Asked for by the thread that sends, and made by the loop that it belongs to.
    return iter(lambda: anyio.from_thread.run(another), b"")


def _small(request: httpx2.Request) -> bool:
    """Whether the body is known to fit into memory."""
    length = request.headers.get("content-length")
    if length is None:
        return "transfer-encoding" not in request.headers
    return length.isdecimal() and int(length) <= _IN_MEMORY
