"""
Boxes in the middle: what stands between a client and an enclave, and need not be honest.

`Box` speaks just enough HTTP/1.1 on a real socket to read a request and then send whatever bytes it is told
to. `Relay` passes requests on to an enclave and lets a test record, rewrite, cut, swap or replay what comes
back. `Tunnel` is a CONNECT proxy.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Asked:
    """One request as it was on the wire."""

    raw: bytes  # every byte of it
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes  # without chunked framing

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def path(self) -> str:
        parts = urlsplit(self.target)
        return parts.path + (f"?{parts.query}" if parts.query else "")


@dataclass(frozen=True)
class Reply:
    """Bytes to send, one after the other; then the connection is closed, unless it may stay."""

    pieces: Iterable[bytes]
    stay: bool = False


def http_reply(status: int, content_type: str, body: bytes, *, more: str = "", stay: bool = True) -> Reply:
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: {content_type}\r\n"
    head += f"Content-Length: {len(body)}\r\n{more}\r\n"
    return Reply([head.encode("latin-1") + body], stay)


class _Listener(ABC):
    """A socket on loopback, and a thread for each connection to it."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    @abstractmethod
    def _serve(self, connection: socket.socket) -> None: ...


class Box(_Listener):
    """Listens on loopback; `answer` decides what each request gets."""

    def __init__(
        self, answer: Callable[[Asked], Reply] | None = None, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.answer = answer
        self.tls = tls
        self.asked: list[Asked] = []
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__()

    @property
    def origin(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def heard(self) -> bytes:
        """Every byte that came in."""
        return b"".join(asked.raw for asked in self.asked)

    def handle(self, asked: Asked) -> Reply:
        assert self.answer is not None
        return self.answer(asked)

    def close(self) -> None:
        super().close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)
            self.connections += 1
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as reader:
                while (asked := _read_request(reader)) is not None:
                    self.asked.append(asked)
                    reply = self.handle(asked)
                    for piece in reply.pieces:
                        connection.sendall(piece)
                    if not reply.stay:
                        return
        except (OSError, ValueError):
            pass  # the client went away
        finally:
            with self._lock:
                self._open.discard(connection)


def _read_request(reader: object) -> Asked | None:
    readline, read = reader.readline, reader.read  # type: ignore[attr-defined]
    line = readline()
    if not line:
        return None
    raw = [line]
    method, target, _ = line.decode("latin-1").split(" ", 2)
    headers: list[tuple[str, str]] = []
    while (line := readline()) not in (b"\r\n", b""):
        raw.append(line)
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name, value.strip()))
    raw.append(line)
    given = {name.lower(): value for name, value in headers}
    body = b""
    if given.get("transfer-encoding") == "chunked":
        while True:
            line = readline()
            raw.append(line)
            piece = read(int(line, 16) + 2)
            raw.append(piece)
            if len(piece) <= 2:
                break
            body += piece[:-2]
    elif "content-length" in given:
        body = read(int(given["content-length"]))
        raw.append(body)
    return Asked(b"".join(raw), method, target, tuple(headers), body)


@dataclass
class Passed:
    """One request, and what the enclave answered to it."""

    asked: Asked
    status: int
    content_type: str
    body: bytes
    headers: list[tuple[str, str]] = field(default_factory=list)

    def reply(self, body: bytes | None = None, *, cut: int | None = None) -> Reply:
        """The answer, with another body, or cut cleanly after `cut` bytes of the body."""
        told = self.body if body is None else body
        if cut is None:
            return http_reply(self.status, self.content_type, told)
        # Ends by closing the connection, as HTTP/1.1 without a length does: nothing outside the seal looks
        # cut.
        head = f"HTTP/1.1 {self.status} OK\r\nContent-Type: {self.content_type}\r\nConnection: close\r\n\r\n"
        return Reply([head.encode() + told[:cut]])


class Relay(Box):
    """
    Passes on. `before` may answer in the enclave's place; `change` sees each answer and may replace it.

    `target` may be moved to another enclave at any time. A request in absolute form (to a proxy) is passed
    on too.
    """

    def __init__(
        self,
        target: str,
        *,
        before: Callable[[Asked], Reply | None] | None = None,
        change: Callable[[Passed], Reply | None] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.target = target
        self.before = before
        self.change = change
        self.passed: list[Passed] = []
        super().__init__(tls=tls)

    def handle(self, asked: Asked) -> Reply:
        if self.before is not None and (reply := self.before(asked)) is not None:
            return reply
        passed = self.forward(asked)
        self.passed.append(passed)
        if self.change is not None and (reply := self.change(passed)) is not None:
            return reply
        return passed.reply()

    def forward(self, asked: Asked) -> Passed:
        """Ask the enclave."""
        parts = urlsplit(self.target)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        connection.putrequest(asked.method, asked.path, skip_host=True, skip_accept_encoding=True)
        for name, value in asked.headers:
            if name.lower() not in {"transfer-encoding", "content-length"}:
                connection.putheader(name, value)
        if asked.method == "POST":
            connection.putheader("Content-Length", str(len(asked.body)))
        connection.endheaders(asked.body or None)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return Passed(asked, answer.status, answer.headers.get("content-type", ""), body, answer.getheaders())

    def sealed(self) -> list[Passed]:
        """The sealed exchanges so far."""
        return [passed for passed in self.passed if passed.asked.method == "POST"]

    def proofs(self) -> int:
        """How often evidence was asked for."""
        return sum(1 for asked in self.asked if "/attestation" in asked.target)


class Tunnel(_Listener):
    """A CONNECT proxy that keeps what it was told in the clear."""

    def __init__(self) -> None:
        self.told: list[bytes] = []
        super().__init__()
        self.origin = f"http://127.0.0.1:{self.port}"

    def _serve(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        self.told.append(head)
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        onward = socket.create_connection((host, int(port)))
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        for source, sink in ((connection, onward), (onward, connection)):
            threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
