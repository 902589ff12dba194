"""
A bare OHTTP peer: seals and opens by hand, so that a test can hold the sealed bytes, alter them and send them
again.

`call` drives a gateway in memory, without a server; `Sealed.post` goes through a socket.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from blindbox_attestation.channel import bhttp, ohttp
from enclave_app.exchange import Event
from enclave_app.gateway import GATEWAY, Gateway
from enclave_app.identity import Identity

Fields = tuple[tuple[bytes, bytes], ...]


def b64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@dataclass(frozen=True, slots=True)
class Opened:
    """What was inside a sealed answer."""

    status: int
    fields: Fields
    body: bytes
    informational: tuple[bhttp.Informational, ...] = ()

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.fields if key == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error of the gateway's own: SPEC §5.6."""
        return str(self.json["error"]["code"])


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed request and what opens its answer."""

    body: bytes
    opener: ohttp.ResponseOpener
    request_id: bytes
    chunked: bool = True

    @property
    def media(self) -> str:
        return ohttp.CHUNKED_REQUEST if self.chunked else ohttp.REQUEST

    def open(self, sealed: bytes) -> Opened:
        return read_answer([*self.opener.feed(sealed), *self.opener.close()])


def inner_head(
    identity: Identity, method: bytes, path: bytes, fields: Fields, **head: Any
) -> bhttp.RequestHead:
    values: dict[str, Any] = {
        "method": method,
        "scheme": b"https",
        "authority": identity.authority.encode(),
        "path": path,
        "fields": fields,
    }
    return bhttp.RequestHead(**(values | head))


def seal(
    identity: Identity,
    method: bytes = b"GET",
    path: bytes = b"/anything",
    body: bytes = b"",
    fields: Fields = (),
    *,
    chunked: bool = True,
    framed: bool = True,
    request_id: bytes | None = None,
    config: ohttp.KeyConfig | None = None,
    inner: bytes | None = None,
    **head: Any,
) -> Sealed:
    """A request as a client would seal it, or with `inner` bytes of one's own."""
    request_id = b64url(secrets.token_bytes(16)) if request_id is None else request_id
    own: Fields = ((b"blindbox-request-id", request_id),) if request_id else ()
    own += ((b"blindbox-padding", b"1"),) if framed else ()
    if inner is None:
        inner = bhttp.encode_request(inner_head(identity, method, path, own + fields, **head), body)
        inner += bytes(bhttp.padding_for(len(inner)))
    config = config or ohttp.preferred(ohttp.parse_key_configs(identity.key_config))
    sealer = ohttp.RequestSealer(config, chunked=chunked)
    return Sealed(sealer.seal(inner, final=True), sealer.response_opener(), request_id, chunked)


def read_answer(opened: Iterable[bytes]) -> Opened:
    """Put an answer together; raises unless it is whole."""
    parser = bhttp.ResponseParser()
    events: list[bhttp.ResponseEvent] = []
    for piece in opened:
        events += parser.feed(piece)
    events += parser.close()
    head = next(event for event in events if isinstance(event, bhttp.ResponseHead))
    body = b"".join(event for event in events if isinstance(event, bytes))
    if (b"blindbox-padding", b"1") in head.fields:
        unframer = bhttp.Unframer()
        body = unframer.feed(body)
        unframer.close()
    informational = tuple(event for event in events if isinstance(event, bhttp.Informational))
    return Opened(head.status, head.fields, body, informational)


@dataclass(slots=True)
class Outer:
    """What the network sees of an answer."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


Pieces = Iterable[bytes] | AsyncIterable[bytes]


async def call(
    gateway: Gateway,
    body: bytes | Pieces = b"",
    *,
    method: str = "POST",
    path: bytes = GATEWAY,
    query: bytes = b"",
    media: str | None = ohttp.CHUNKED_REQUEST,
    headers: Iterable[tuple[bytes, bytes]] = (),
    host: bytes = b"enclave.example",
    leave: asyncio.Event | None = None,
    on_piece: Callable[[bytes], None] | None = None,
) -> Outer:
    """One outer request, in memory. The client stays until its answer is complete, or `leave` is set."""
    outer, gone = Outer(), leave or asyncio.Event()
    own = [(b"host", host)] + ([(b"content-type", media.encode())] if media else [])
    own += [] if isinstance(body, bytes) and not body else [(b"transfer-encoding", b"chunked")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path.decode("latin-1"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [*own, *headers],
        "client": ("192.0.2.7", 4242),
        "server": ("192.0.2.1", 80),
    }
    events = _events(body)

    async def receive() -> Event:
        async for event in events:
            return event
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(event: Event) -> None:
        await asyncio.sleep(0)
        if event["type"] == "http.response.start":
            assert not outer.status
            outer.status, outer.headers = event["status"], list(event["headers"])
        else:
            piece = event.get("body", b"")
            if piece:
                outer.pieces.append(piece)
                if on_piece is not None:
                    on_piece(piece)
            if not event.get("more_body", False):
                outer.complete = True
                gone.set()

    await gateway(scope, receive, send)
    return outer


async def _events(body: bytes | Pieces) -> AsyncIterable[Event]:
    """The body as a server would hand it over; an exception in it is a connection that breaks."""
    if isinstance(body, bytes):
        await asyncio.sleep(0)
        yield {"type": "http.request", "body": body, "more_body": False}
        return
    try:
        if isinstance(body, AsyncIterable):
            async for piece in body:
                yield {"type": "http.request", "body": piece, "more_body": True}
        else:
            for piece in body:
                await asyncio.sleep(0)
                yield {"type": "http.request", "body": piece, "more_body": True}
    except ConnectionError:
        return
    yield {"type": "http.request", "body": b"", "more_body": False}


async def exchange(gateway: Gateway, sealed: Sealed, **options: Any) -> Opened:
    """Send, receive, open."""
    outer = await call(gateway, sealed.body, media=sealed.media, **options)
    assert outer.status == 200, (outer.status, outer.body)
    assert outer.complete
    return sealed.open(outer.body)
