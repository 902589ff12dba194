"""
A caller that costs little: it proves an enclave once and seals each request by hand, many on one loop.

The SDK is tested elsewhere; here 256 streams are to be held by a process that is not the bottleneck itself.
`Plain` asks the same of the same application without the gateway, to compare with.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import struct
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from blindbox_attestation import UnsafeSimulatedPolicy
from blindbox_attestation.channel import bhttp, ohttp
from blindbox_attestation.verify import verify

GATEWAY: Final = b"/.well-known/ohttp-gateway"
ATTESTATION: Final = b"/.well-known/blindbox/attestation"
PATIENCE: Final = 180.0  # seconds without a byte


class Broken(Exception):
    """The connection or the answer did not come to its end."""


@dataclass(slots=True)
class Reply:
    """An answer, opened; `outer` is the status outside the seal."""

    status: int
    body: bytes
    fields: dict[bytes, bytes]
    seconds: float
    outer: int = 200

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Line:
    """One connection to a server, HTTP/1.1, one exchange after the other."""

    def __init__(self, port: int, *, receive_buffer: int = 0) -> None:
        self._port = port
        self._receive_buffer = receive_buffer
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.chunks: list[int] = []  # sizes of what came, as a network would see them

    async def open(self) -> None:
        if self._writer is not None:
            return
        outlet = socket.socket()
        if self._receive_buffer:
            outlet.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        outlet.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(outlet, ("127.0.0.1", self._port))
        except BaseException:
            outlet.close()
            raise
        self._reader, self._writer = await asyncio.open_connection(sock=outlet)

    @property
    def ends(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """For sending what is no request."""
        assert self._reader is not None
        assert self._writer is not None
        return self._reader, self._writer

    @property
    def is_open(self) -> bool:
        """Whether the other side has said no end."""
        return self._reader is not None and not self._reader.at_eof()

    @property
    def local_port(self) -> int:
        assert self._writer is not None
        port: int = self._writer.get_extra_info("sockname")[1]
        return port

    async def send(self, method: bytes, target: bytes, fields: bytes, body: bytes) -> None:
        await self.open()
        assert self._writer is not None
        head = b"%s %s HTTP/1.1\r\nHost: enclave\r\n%s" % (method, target, fields)
        length = b"Content-Length: %d\r\n" % len(body) if body else b""
        self._writer.write(head + length + b"\r\n" + body)
        await self._writer.drain()

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        assert self._reader is not None
        try:
            async with asyncio.timeout(PATIENCE):
                raw = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, TimeoutError, OSError) as error:
            self.close()
            raise Broken(f"no answer: {type(error).__name__}") from error
        first, *lines = raw[:-4].split(b"\r\n")
        fields = {}
        for line in lines:
            name, _, value = line.partition(b":")
            fields[name.strip().lower()] = value.strip()
        return int(first.split(b" ")[1]), fields

    async def body(self, fields: dict[bytes, bytes]) -> AsyncIterator[bytes]:
        """The pieces as they come; raises `Broken` unless the last is the last."""
        assert self._reader is not None
        try:
            if b"content-length" in fields:
                async with asyncio.timeout(PATIENCE):
                    piece = await self._reader.readexactly(int(fields[b"content-length"]))
                self.chunks.append(len(piece))
                yield piece
            else:
                while True:
                    async with asyncio.timeout(PATIENCE):
                        size = int(await self._reader.readline(), 16)
                        piece = (await self._reader.readexactly(size + 2))[:-2]
                    if not size:
                        break
                    self.chunks.append(size)
                    yield piece
        except (asyncio.IncompleteReadError, ValueError, TimeoutError, OSError) as error:
            self.close()
            raise Broken(f"cut short: {type(error).__name__}") from error
        if fields.get(b"connection") == b"close":
            self.close()

    def close(self, *, reset: bool = False) -> None:
        if self._writer is not None:
            if reset:
                linger = struct.pack("ii", 1, 0)
                self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._writer.close()
        self._reader = self._writer = None


class Caller(Protocol):
    """Asks, and streams."""

    line: Line

    async def ask(self, method: str, path: str, body: Any = None) -> Reply: ...

    def stream(self, path: str, body: Any) -> AsyncIterator[Any]: ...


@dataclass(frozen=True, slots=True)
class Proven:
    """A key that an enclave proved."""

    port: int
    config: ohttp.KeyConfig
    authority: bytes
    evidence: bytes

    @classmethod
    async def of(cls, port: int) -> Proven:
        """Ask for a fresh document, and verify it as the SDK does."""
        nonce = secrets.token_bytes(32)
        line = Line(port)
        await line.send(b"GET", ATTESTATION + b"?nonce=" + _b64url(nonce), b"Connection: close\r\n", b"")
        status, fields = await line.head()
        document = b"".join([piece async for piece in line.body(fields)])
        if status != 200:
            raise Broken(f"no evidence: {status}")
        proved = verify(document, UnsafeSimulatedPolicy(), nonce=nonce, now=datetime.now(UTC))
        config = ohttp.preferred(ohttp.parse_key_configs(proved.key_config))
        return cls(port, config, proved.boot_id.hex().encode(), _b64url(proved.evidence_id))


@dataclass(slots=True)
class Sealed:
    """A caller of an enclave, on one connection, as one tenant."""

    proven: Proven
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    framed: bool = True
    more_fields: tuple[tuple[bytes, bytes], ...] = ()
    receive_buffer: int = 0
    line: Line = field(init=False)

    def __post_init__(self) -> None:
        self.line = Line(self.proven.port, receive_buffer=self.receive_buffer)

    async def ask(self, method: str, path: str, body: Any = None) -> Reply:
        return await self._answered(self.send(method, path, body))

    async def ask_with(self, message: bytes) -> Reply:
        """Ask with an inner message of one's own making."""
        return await self._answered(self._send(message))

    async def _answered(self, sent: Coroutine[Any, Any, ohttp.ResponseOpener]) -> Reply:
        started = time.monotonic()
        opener = await sent
        status, fields = await self.line.head()
        pieces = [piece async for piece in self.line.body(fields)]
        seconds = time.monotonic() - started
        if status != 200 or fields.get(b"content-type") != ohttp.CHUNKED_RESPONSE.encode():
            return Reply(status, b"".join(pieces), fields, seconds, outer=status)
        answer = _Answer(opener)
        content = b"".join([*(answer.feed(piece) for piece in pieces), answer.close()])
        assert answer.head is not None
        return Reply(answer.head.status, content, dict(answer.head.fields), seconds)

    async def stream(self, path: str, body: Any) -> AsyncIterator[Any]:
        """The events of a stream (their `data`, as JSON), until `[DONE]` and an authenticated end."""
        opener = await self.send("POST", path, body)
        status, fields = await self.line.head()
        answer = _Answer(opener)
        events = _Events()
        async for piece in self.line.body(fields):
            if status != 200:
                raise Broken(f"refused outside the seal: {status}")
            for event in events.feed(answer.feed(piece)):
                yield event
        for event in events.feed(answer.close()):
            yield event
        if answer.head is None or answer.head.status != 200:
            raise Broken(f"refused: {answer.head and answer.head.status}")
        if not events.done:
            raise Broken("the stream has no [DONE]")

    async def send(self, method: str, path: str, body: Any) -> ohttp.ResponseOpener:
        """Seal and send; what comes back opens the answer."""
        fields = (
            (b"blindbox-request-id", _b64url(secrets.token_bytes(16))),
            (b"blindbox-evidence", self.proven.evidence),
            *(((b"blindbox-padding", b"1"),) if self.framed else ()),
            (b"content-type", b"application/json"),
            (b"authorization", b"Bearer " + self.token.encode()),
            *self.more_fields,
        )
        head = bhttp.RequestHead(method.encode(), b"https", self.proven.authority, path.encode(), fields)
        return await self._send(bhttp.encode_request(head, _told(body)))

    async def _send(self, message: bytes) -> ohttp.ResponseOpener:
        message += bytes(bhttp.padding_for(len(message)))
        sealer = ohttp.RequestSealer(self.proven.config)
        outer = b"Content-Type: %s\r\n" % ohttp.CHUNKED_REQUEST.encode()
        await self.line.send(b"POST", GATEWAY, outer, sealer.seal(message, final=True))
        return sealer.response_opener()


@dataclass(slots=True)
class Plain:
    """A caller of the bare application."""

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    line: Line = field(init=False)

    def __post_init__(self) -> None:
        self.line = Line(self.port)

    async def ask(self, method: str, path: str, body: Any = None) -> Reply:
        started = time.monotonic()
        await self._send(method, path, body)
        status, fields = await self.line.head()
        content = b"".join([piece async for piece in self.line.body(fields)])
        return Reply(status, content, fields, time.monotonic() - started, outer=status)

    async def stream(self, path: str, body: Any) -> AsyncIterator[Any]:
        await self._send("POST", path, body)
        status, fields = await self.line.head()
        events = _Events()
        async for piece in self.line.body(fields):
            if status != 200:
                raise Broken(f"refused: {status}")
            for event in events.feed(piece):
                yield event
        if not events.done:
            raise Broken("the stream has no [DONE]")

    async def _send(self, method: str, path: str, body: Any) -> None:
        fields = b"Content-Type: application/json\r\nAuthorization: Bearer %s\r\n" % self.token.encode()
        await self.line.send(method.encode(), path.encode(), fields, _told(body))


class _Answer:
    """Opens a sealed answer as it comes; `close` raises unless it is whole."""

    def __init__(self, opener: ohttp.ResponseOpener) -> None:
        self._opener = opener
        self._parser = bhttp.ResponseParser()
        self._unframer: bhttp.Unframer | None = None
        self.head: bhttp.ResponseHead | None = None

    def feed(self, data: bytes) -> bytes:
        return b"".join([self._take(self._parser.feed(piece)) for piece in self._opener.feed(data)])

    def close(self) -> bytes:
        rest = [self._take(self._parser.feed(piece)) for piece in self._opener.close()]
        rest.append(self._take(self._parser.close()))
        if self._unframer is not None:
            self._unframer.close()
        return b"".join(rest)

    def _take(self, events: list[Any]) -> bytes:
        out = []
        for event in events:
            if isinstance(event, bhttp.ResponseHead):
                self.head = event
                if (b"blindbox-padding", b"1") in event.fields:
                    self._unframer = bhttp.Unframer()
            elif isinstance(event, bytes):
                out.append(event if self._unframer is None else self._unframer.feed(event))
        return b"".join(out)


class _Events:
    """Server-sent events of one `data` line each."""

    def __init__(self) -> None:
        self._rest = b""
        self.done = False

    def feed(self, data: bytes) -> list[Any]:
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        told = []
        for block in blocks:
            text = block.partition(b"data:")[2].strip()
            if text == b"[DONE]":
                self.done = True
            elif text:
                told.append(json.loads(text))
        return told


def _told(body: Any) -> bytes:
    return body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()


def _b64url(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")
