"""
A stand-in for AMD's key distribution service, on loopback: the addresses and answers of AMD 57230, chapter 4.

It knows the chips of the vendors it is given, and says 404 to everything else. What it should say otherwise
(later, something else, nothing at all) a test tells it with `instead`.
"""

from __future__ import annotations

import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from urllib.parse import parse_qsl, urlsplit

from tests.kit.amd import FakeAmd
from tests.kit.relay import Asked, Box, Reply, http_reply

Instead = Callable[[Asked], Reply | None]


def pem(*certificates: bytes) -> bytes:
    """Certificates as the service sends them."""
    blocks: list[str] = []
    for der in certificates:
        text = b64encode(der).decode("ascii")
        lines = [text[at : at + 64] for at in range(0, len(text), 64)]
        blocks += ["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----"]
    return "\n".join(blocks).encode() + b"\n"


class PublishingService(Box):
    """
    A server that publishes: `publish` has its answers, `instead` goes before them, `paths` is what was
    asked.
    """

    def __init__(self, instead: Instead | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.instead = instead
        super().__init__(tls=tls)

    @property
    def paths(self) -> list[str]:
        return [asked.target for asked in self.asked]

    def handle(self, asked: Asked) -> Reply:
        reply = self.instead(asked) if self.instead is not None else None
        if reply is None:
            reply = self.publish(asked) if asked.method == "GET" else None
        return reply or http_reply(404, "text/plain", b"not found")

    def publish(self, asked: Asked) -> Reply | None:
        raise NotImplementedError


class KeyService(PublishingService):
    """What AMD publishes about the processors of these vendors."""

    def __init__(
        self, *vendors: FakeAmd, instead: Instead | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.vendors = vendors
        self.lists: dict[str, bytes] = {}  # by family, another revocation list than the usual one
        super().__init__(instead, tls=tls)

    def publish(self, asked: Asked) -> Reply | None:
        parts = urlsplit(asked.target)
        match parts.path.split("/"):
            case ["", "vcek" | "vlek" as leaf, "v1", family, what]:
                for vendor in self.vendors:
                    if vendor.family == family and (reply := self._about(vendor, leaf, what, parts.query)):
                        return reply
        return None

    def _about(self, vendor: FakeAmd, leaf: str, what: str, query: str) -> Reply | None:
        if what == "cert_chain":
            above = "ask" if leaf == "vcek" else "asvk"
            chain = pem(vendor.certificate(above), vendor.endorsements()["ark"])
            return http_reply(200, "application/x-pem-file", chain)
        if what == "crl":
            listed = self.lists.get(vendor.family, vendor.endorsements()["crl"])
            return http_reply(200, "application/pkix-crl", listed)
        if what != vendor.hwid.hex() or leaf != "vcek":
            return None
        names = {"blSPL": "bootloader", "teeSPL": "tee", "snpSPL": "snp", "ucodeSPL": "microcode"}
        if vendor.family == "Turin":
            names["fmcSPL"] = "fmc"
        levels = {name: f"{getattr(vendor.tcb, part):02d}" for name, part in names.items()}
        if dict(parse_qsl(query, strict_parsing=True)) != levels:
            return None
        return http_reply(200, "application/pkix-cert", vendor.endorsements()["vcek"])


# ── answers of servers that are not well ──────────────────────────────────────────────────────────────────


def busy(retry_after: str | None = None, status: int = 429) -> Reply:
    more = "" if retry_after is None else f"Retry-After: {retry_after}\r\n"
    return http_reply(status, "text/plain", b"later", more=more)


def dripping(pieces: Iterator[bytes] | list[bytes], pause: float = 0.1) -> Reply:
    """Never silent for long, and never done."""

    def produce() -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            time.sleep(pause)

    return Reply(produce())


def head(length: int | None, more: str = "") -> bytes:
    told = "" if length is None else f"Content-Length: {length}\r\n"
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n{told}{more}\r\n".encode()
