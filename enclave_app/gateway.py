"""
The shell around the whole application: opens what comes in, passes it on, seals what goes out.

Three outer routes exist (SPEC §1). Everything the network sees of a request that was not opened is one of a
few constant answers, which are in this file; everything after is sealed, an unexpected exception too. The
application inside is any ASGI application; this file knows none of its routes. What happens within one
exchange is `exchange.py`, which keys open and what was seen before is `identity.py`, the limits below ASGI
are `edge.py`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from blindbox_attestation.channel import bhttp
from blindbox_attestation.channel.ohttp import CHUNKED_REQUEST, REQUEST
from blindbox_attestation.evidence import MEDIA_TYPE, NONCE_SIZE

from .exchange import (
    DROPPED,
    FAILED,
    MALFORMED,
    UNFINISHED,
    ClientGone,
    Event,
    NotOpened,
    Receive,
    Refusal,
    SealedAnswer,
    SealedRequest,
    Send,
    TooLarge,
    TooSlow,
)
from .identity import AlreadyReceived, Identity, KeyClosed, QuotesBusy
from .quoting import QuoteUnavailable

Scope = Event
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

ALIVE: Final = b"/"
ATTESTATION: Final = b"/.well-known/blindbox/attestation"
GATEWAY: Final = b"/.well-known/ohttp-gateway"  # RFC 9540 §4

MEDIA_TYPES = {CHUNKED_REQUEST.encode(): True, REQUEST.encode(): False}  # whether it is chunked
LINGER_SECONDS = 1.0
LINGER_BYTES = 8 << 20
RENEWAL_SECONDS = 60.0

_BASE64URL = re.compile(rb"[A-Za-z0-9_-]*")
_log = logging.getLogger("blindbox.gateway")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer, and all of them together, may take."""

    body_bytes: int = 512 << 20  # of a chunked request, sealed; it is passed on as it comes
    whole_bytes: int = 1 << 20  # of a request that is opened in one piece
    whole_answer_bytes: int = 16 << 20  # of its answer
    receiving: int = 2048  # requests that have not been opened yet
    receiving_whole: int = 128  # of these, such as are kept until they are whole
    slots: int = 512  # requests in the application
    receipt_seconds: float = 60.0  # to receive a request …
    least_rate: float = 16384.0  # … and a second more for each so many bytes
    tick_seconds: float = 0.05  # streamed answers are gathered for so long
    heartbeat_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class _Plain:
    """An answer outside the seal. There are few, and none depends on what a sealed message holds."""

    status: int
    body: bytes
    media: bytes = b"text/plain"
    close: bool = True  # do not wait for the rest of a request that is not wanted
    retry_after: int | None = None


ALIVE_ANSWER = _Plain(200, b"alive", close=False)
NOTHING_HERE = _Plain(404, b"not found")
NOT_OPENED = _Plain(
    400,
    b'{"type":"https://iana.org/assignments/http-problem-types#ohttp-key","title":"key identifier unknown"}',
    b"application/problem+json",  # RFC 9458 §5.3
    close=False,
)
BAD_QUESTION = _Plain(400, b"nonce: 32 bytes in base64url without padding, or no query at all")
TOO_SLOW = _Plain(408, b"the request took too long")
TOO_LARGE = _Plain(413, b"the request is too large")
TOO_BUSY = _Plain(503, b"too busy", retry_after=1)
NO_QUOTE = _Plain(503, b"the machine gave no evidence", retry_after=5)

WRONG_AUTHORITY = Refusal(
    421, "wrong-authority", "the request is meant for another enclave, or another boot of this one"
)
STALE_EVIDENCE = Refusal(
    421, "stale-evidence", "the proof that this request relies on is no longer live; prove again"
)
ALREADY_RECEIVED = Refusal(409, "already-received", "a request with this request id has been received")
BUSY = Refusal(
    503, "busy", "this enclave has as many requests as it can serve; try again", ((b"retry-after", b"1"),)
)


class Gateway:
    """
    An ASGI application that serves `app` to those who proved this enclave, and to nobody else.

    `authorities` are names the enclave answers to besides its boot id, in lower case.
    """

    def __init__(
        self,
        app: ASGIApp,
        identity: Identity,
        *,
        limits: Limits = Limits(),
        authorities: Iterable[str] = (),
    ) -> None:
        self.identity = identity
        self._app = app
        self._limits = limits
        self._authorities = frozenset(name.lower().encode() for name in (identity.authority, *authorities))
        self._receiving = 0
        self._receiving_whole = 0
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            started = time.monotonic()
            status = await self._route(scope, receive, send)
            milliseconds = round(1000 * (time.monotonic() - started), 1)
            _log.info("answered", extra={"status": status, "milliseconds": milliseconds})
        elif kind == "lifespan":
            await self._live(scope, receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close"})

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the application's start and end on; in between, renew the keys also when nobody calls."""
        renewing = asyncio.create_task(self._renew())
        try:
            await self._app(scope, receive, send)
        finally:
            renewing.cancel()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL_SECONDS)
            self.identity.renew()

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> int:
        outward = _Outward(receive, send, arrived=not _has_body(scope))
        # As it was sent: an escaped spelling of a route is not that route.
        method, path = scope["method"], scope.get("raw_path") or scope["path"].encode()
        if method == "POST" and path == GATEWAY:
            return await self._exchange(scope, receive, outward)
        if method == "GET" and path == ATTESTATION:
            return await self._attest(scope["query_string"], outward)
        if method == "GET" and path == ALIVE:
            return await outward.say(ALIVE_ANSWER)
        return await outward.say(NOTHING_HERE)

    # GET /.well-known/blindbox/attestation: SPEC §2

    async def _attest(self, query: bytes, outward: _Outward) -> int:
        nonce = None
        if query:
            name, _, value = query.partition(b"=")
            nonce = _bytes_of(value, NONCE_SIZE)
            if name != b"nonce" or nonce is None:
                return await outward.say(BAD_QUESTION)
        try:
            document = await self.identity.fetch(nonce)
        except QuotesBusy as busy:
            return await outward.say(_Plain(503, TOO_BUSY.body, retry_after=busy.retry_after))
        except QuoteUnavailable as error:
            _log.error("no quote: %s", error)
            return await outward.say(NO_QUOTE)
        except Exception as error:  # noqa: BLE001 - a quoter's own; nobody outside is told more
            _log.error("no quote: %s", type(error).__name__)
            return await outward.say(NO_QUOTE)
        return await outward.say(_Plain(200, document, MEDIA_TYPE.encode(), close=False))

    # POST /.well-known/ohttp-gateway: SPEC §5

    async def _exchange(self, scope: Scope, receive: Receive, outward: _Outward) -> int:
        """
        Receive, open, run, seal.

        1. what can be told from the outer head: size, load              413, 503
        2. read and open, up to the inner head                           one constant 400; 413, 408
        3. judge the inner head                                          from here on all is sealed
        4. run the application
        """
        limits = self._limits
        chunked, length, encoded = _outer_head(scope)
        limit = limits.body_bytes if chunked else limits.whole_bytes
        if length > limit:  # 1
            return await outward.say(TOO_LARGE)
        if self._receiving >= limits.receiving or (
            not chunked and self._receiving_whole >= limits.receiving_whole
        ):
            return await outward.say(TOO_BUSY)
        request = SealedRequest(
            receive,
            # Unwanted media types and encodings are read with no key at all: the same answer, and as late.
            self.identity.opening_keys() if chunked is not None and not encoded else {},
            self.identity.admit,
            chunked=bool(chunked),
            limit=limit,
            seconds=limits.receipt_seconds,
            rate=limits.least_rate,
        )
        outward.request = request
        self._receiving += 1
        self._receiving_whole += not chunked
        try:
            head = await request.head()  # 2
        except NotOpened:
            return await outward.say(NOT_OPENED)
        except TooLarge:
            return await outward.say(TOO_LARGE)
        except TooSlow:
            return await outward.say(TOO_SLOW)
        except ClientGone:
            return 499
        finally:
            self._receiving -= 1
            self._receiving_whole -= not chunked
        inner = _inner_scope(head, scope) if head is not None else None  # 3
        answer = SealedAnswer(
            outward,
            request.sealer(),
            request,
            chunked=bool(chunked),
            framed=inner is not None and inner.framed,
            bodyless=inner is not None and inner.scope["method"] == "HEAD",
            fields=inner.echoed if inner is not None else (),
            tick=limits.tick_seconds,
            heartbeat=limits.heartbeat_seconds,
            limit=limits.whole_answer_bytes,
        )
        refusal = request.failure or (MALFORMED if inner is None else self._judge(inner, request.key_id))
        if refusal is not None or inner is None:
            await answer.refuse(refusal or MALFORMED)
            return answer.status
        self._running += 1
        try:
            return await self._run(inner.scope, request, answer)  # 4
        finally:
            self._running -= 1

    def _judge(self, inner: _Inner, key_id: int) -> Refusal | None:
        """SPEC §5.3. The request id is taken last: a request that is refused otherwise may come again."""
        if (
            inner.authority not in self._authorities
            and _split_port(inner.authority)[0] not in self._authorities
        ):
            return WRONG_AUTHORITY
        if inner.evidence is not None and not self.identity.is_live(key_id, inner.evidence):
            return STALE_EVIDENCE
        if self._running >= self._limits.slots:
            return BUSY
        if inner.request_id is not None:
            try:
                self.identity.begin(key_id, inner.request_id, inner.first_evidence)
            except AlreadyReceived:
                return ALREADY_RECEIVED
            except KeyClosed:  # dropped since the first chunk was opened
                return STALE_EVIDENCE
        return None

    async def _run(self, scope: Scope, request: SealedRequest, answer: SealedAnswer) -> int:
        refusal = UNFINISHED
        answer.watch()
        try:
            await self._app(scope, request.receive, answer.send)
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, KeyboardInterrupt) or (task is not None and task.cancelling()):
                raise  # not the application's doing: the server stops
            if not answer.done:
                _log.error("the application raised %s", type(error).__name__)
            refusal = FAILED
        finally:
            answer.stop()
        if request.gone and not answer.done:
            return 499  # nobody is there to hear an end
        if not answer.done and not await answer.refuse(request.failure or refusal):
            # The server closes the connection, and the client sees a truncated answer.
            _log.error("an answer was left without its end")
        return answer.status


class _Outward:
    """
    The way out, as the network sees it.

    A request that was not read to its end takes its connection with it. Its sender may still be writing and
    would lose the answer to a reset: for a moment what comes is read and thrown away (RFC 9112 §9.6).
    """

    __slots__ = ("_arrived", "_receive", "_send", "request")

    def __init__(self, receive: Receive, send: Send, *, arrived: bool) -> None:
        self._receive = receive
        self._send = send
        self._arrived = arrived
        self.request: SealedRequest | None = None

    @property
    def arrived(self) -> bool:
        return self._arrived or (self.request is not None and self.request.arrived)

    async def __call__(self, event: Event) -> None:
        """An ASGI `send`."""
        if self.arrived:
            await self._send(event)
        elif event["type"] == "http.response.start":
            await self._send({**event, "headers": [*event["headers"], (b"connection", b"close")]})
        elif event.get("more_body", False):
            await self._send(event)
        else:
            await self._send({**event, "more_body": True})
            await self._linger()
            await self._send({"type": "http.response.body", "body": b""})

    async def say(self, plain: _Plain) -> int:
        headers = [(b"content-type", plain.media), (b"content-length", str(len(plain.body)).encode())]
        headers.append((b"cache-control", b"no-store"))
        if plain.retry_after is not None:
            headers.append((b"retry-after", str(plain.retry_after).encode()))
        if plain.close and self.arrived:
            headers.append((b"connection", b"close"))
        await self({"type": "http.response.start", "status": plain.status, "headers": headers})
        await self({"type": "http.response.body", "body": plain.body})
        return plain.status

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                thrown_away = 0
                while thrown_away < LINGER_BYTES:
                    event = await self._receive()
                    if event["type"] != "http.request" or not event.get("more_body", False):
                        return
                    thrown_away += len(event["body"])
        except TimeoutError:
            return


@dataclass(frozen=True, slots=True)
class _Inner:
    """An inner request, read."""

    scope: Scope
    authority: bytes
    request_id: bytes | None
    evidence: bytes | None
    first_evidence: bytes | None  # of a repeated request
    framed: bool
    echoed: tuple[tuple[bytes, bytes], ...]  # fields that each sealed answer begins with


def _inner_scope(head: bhttp.RequestHead, outer: Scope) -> _Inner | None:
    """The ASGI scope of the inner request; None if its fields are malformed."""
    own: dict[bytes, bytes] = {}
    headers: list[tuple[bytes, bytes]] = []
    authority = head.authority.lower()
    for name, value in head.fields:
        if name.startswith(b"blindbox-"):
            if name in own:
                return None
            own[name] = value
        elif name not in DROPPED and name != b"host":
            headers.append((name, value))
    # As HTTP/2 servers do (ASGI, HTTP connection scope): the authority that was judged, not one beside it.
    headers.insert(0, (b"host", authority))
    raw_path, _, query = head.path.partition(b"?")
    path = raw_path.decode("ascii")
    request_id = evidence = first_evidence = None
    if b"blindbox-request-id" in own:
        request_id = _bytes_of(own[b"blindbox-request-id"], 16)
        if request_id is None:
            return None
    if b"blindbox-evidence" in own:
        evidence = _bytes_of(own[b"blindbox-evidence"], 48)
        if evidence is None:
            return None
    if b"blindbox-first-evidence" in own:
        first_evidence = _bytes_of(own[b"blindbox-first-evidence"], 48)
        if first_evidence is None:
            return None
    name, port = _split_port(authority)
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": head.method.decode("ascii"),
        "scheme": "http",
        "path": unquote(path) if "%" in path else path,
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": (name.decode("ascii"), port),
    }
    if "state" in outer:
        scope["state"] = outer["state"]
    return _Inner(
        scope,
        authority,
        request_id,
        evidence,
        first_evidence,
        framed=own.get(b"blindbox-padding") == b"1",
        echoed=((b"blindbox-request-id", own[b"blindbox-request-id"]),) if request_id is not None else (),
    )


def _split_port(authority: bytes) -> tuple[bytes, int]:
    name, colon, port = authority.rpartition(b":")
    return (name, int(port)) if colon and len(port) <= 5 and port.isdigit() else (authority, 80)


def _outer_head(scope: Scope) -> tuple[bool | None, int, bool]:
    """
    Whether the body is chunked OHTTP (None: neither kind), how long it says it is, whether it is encoded.
    """
    chunked, length, encoded = None, 0, False
    for name, value in scope["headers"]:
        if name == b"content-type":
            chunked = MEDIA_TYPES.get(value.lower())
        elif name == b"content-length":
            length = int(value)
        elif name == b"content-encoding":
            encoded = True
    return chunked, length, encoded


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def _bytes_of(text: bytes, size: int) -> bytes | None:
    """Base64url without padding, of exactly `size` bytes; one spelling only."""
    if len(text) != (size * 8 + 5) // 6 or not _BASE64URL.fullmatch(text):
        return None
    value = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    # The last character may carry bits that mean nothing; they must be zero (RFC 4648 §3.5).
    spare = -(size * 8) % 6
    if spare and _ALPHABET.index(text[-1]) & ((1 << spare) - 1):
        return None
    return value


_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
