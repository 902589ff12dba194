"""
A request as it travels inside the seal: from a prepared `requests` request to the outer body.

What is in memory becomes one known-length message; files and generators are read, padded and sealed piece by
piece, each piece as large as the last, so that neither memory nor the wire tells how they came (SPEC §5.2,
§5.3).
"""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import Any

import requests

from blindbox_attestation.channel import bhttp, ohttp

from . import process
from .session_key import ProvenKey

# RFC 9110 §7.6.1: about one connection, and there is none inside. `host` is the attested boot id's place.
_NOT_INSIDE = frozenset(
    {
        b"connection",
        b"host",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_OURS = frozenset(
    {
        b"date",
        b"blindbox-request-id",
        b"blindbox-evidence",
        b"blindbox-first-evidence",
        b"blindbox-padding",
    }
)
_IN_MEMORY = 8 << 20  # more than this is sealed as it is sent, not beforehand

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})  # RFC 9110 §9.2.2, without TRACE


def b64url(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def new_id() -> bytes:
    """A request id (SPEC §5.3)."""
    return b64url(secrets.token_bytes(16))


def may_run_twice(request: requests.PreparedRequest) -> bool:
    """Whether the method, or the caller by an Idempotency-Key, says that running it again does no harm."""
    return (request.method or "").upper() in IDEMPOTENT or "Idempotency-Key" in request.headers


def head(
    request: requests.PreparedRequest,
    key: ProvenKey,
    *,
    request_id: bytes,
    token: str | None,
    now: datetime,
    first: ProvenKey | None = None,
) -> bhttp.RequestHead:
    """
    The inner request's first part. `token` is used if the caller gave no Authorization.

    `first` is the key that this very request id was sent under before, if it was (SPEC §5.3).
    """
    fields = [
        (b"date", format_datetime(now, usegmt=True).encode()),
        (b"blindbox-request-id", request_id),
        (b"blindbox-evidence", b64url(key.verified.evidence_id)),
        (b"blindbox-padding", b"1"),
    ]
    if first is not None:
        fields.append((b"blindbox-first-evidence", b64url(first.verified.evidence_id)))
    for name, value in request.headers.items():
        field = _inner_name(name)
        if field is not None and value is not None:
            fields.append((field, _octets(value).strip(b" \t")))
    if token is not None:
        fields.append((b"authorization", b"Bearer " + token.encode()))
    return bhttp.RequestHead(
        method=_octets(request.method or "GET"),
        scheme=b"https",
        authority=key.verified.boot_id.hex().encode(),
        path=_octets(request.path_url),
        fields=tuple(fields),
    )


@lru_cache(maxsize=256)
def _inner_name(name: str | bytes) -> bytes | None:
    """A field's name as it is inside; None if it stays outside. Most calls have the same few."""
    field = _octets(name).lower()
    return None if field in _NOT_INSIDE or field in _OURS else field


def sealed(sealer: ohttp.RequestSealer, inner: bhttp.RequestHead, body: Any) -> bytes | Iterator[bytes]:
    """The outer body: bytes where all of it is in memory, else an iterator that reads as it is sent."""
    whole = _whole(body)
    if whole is not None and len(whole) <= _IN_MEMORY:
        message = bhttp.encode_request(inner, bytes(whole))
        return sealer.seal(message + bytes(bhttp.padding_for(len(message))), final=True)
    return _sealed_pieces(sealer, inner, _pieces(body if whole is None else _slices(whole)))


def _sealed_pieces(
    sealer: ohttp.RequestSealer, inner: bhttp.RequestHead, pieces: Iterable[bytes]
) -> Iterator[bytes]:
    waiting, born = bytearray(), process.generation()
    for part in _padded(inner, pieces):
        if born != process.generation():  # the same key and nonce would seal what the parent goes on to send
            raise RuntimeError("this request belongs to the process that began it, not to its child")
        waiting += part
        while len(waiting) > ohttp.MAX_CHUNK:  # never all of it: something is left for the final chunk
            yield sealer.seal(bytes(waiting[: ohttp.MAX_CHUNK]))
            del waiting[: ohttp.MAX_CHUNK]
    yield sealer.seal(bytes(waiting), final=True)


def _padded(inner: bhttp.RequestHead, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The indeterminate-length message (RFC 9292 §3.2) and its padding, in parts of at most a chunk or so."""
    total = 0
    for part in _message(inner, pieces):
        total += len(part)
        yield part
    padding = bhttp.padding_for(total)
    zeros = bytes(ohttp.MAX_CHUNK)
    while padding:
        yield zeros[:padding]
        padding -= min(padding, len(zeros))


def _message(inner: bhttp.RequestHead, pieces: Iterable[bytes]) -> Iterator[bytes]:
    yield bhttp.request_start(inner)
    for piece in pieces:
        for start in range(0, len(piece), ohttp.MAX_CHUNK):
            yield bhttp.content(piece[start : start + ohttp.MAX_CHUNK])
    yield bhttp.end()


def _whole(body: Any) -> bytes | bytearray | memoryview | None:
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode("utf-8")
    if isinstance(body, bytes | bytearray | memoryview):
        return body
    return None


def _slices(whole: bytes | bytearray | memoryview) -> Iterator[bytes]:
    view = memoryview(whole).cast("B")
    for start in range(0, len(view), ohttp.MAX_CHUNK):
        yield bytes(view[start : start + ohttp.MAX_CHUNK])


def _pieces(body: Any) -> Iterator[bytes]:
    """What a file or an iterable gives, as bytes."""
    if hasattr(body, "read"):
        while piece := body.read(ohttp.MAX_CHUNK):
            yield _octets(piece, "utf-8")
    else:
        for piece in body:
            if piece:
                yield _octets(piece, "utf-8")


def _octets(value: Any, encoding: str = "latin-1") -> bytes:
    if isinstance(value, str):
        try:
            return value.encode(encoding)
        except UnicodeEncodeError:
            return value.encode("utf-8")
    return bytes(value)
