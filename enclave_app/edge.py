"""
The HTTP/1.1 server in front of the gateway, and the limits that only it can hold.

What an ASGI app never gets to see is bounded here: the size of a request's head, the time it takes to arrive,
and the time a reader may stall. What comes after the head is bounded in `gateway.py`. (threats.md S-7, S-8)
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 32 * 1024
HEAD_SECONDS = 10.0  # from the first byte of a head, or from the connection, to its end
STALL_SECONDS = 60.0  # how long a full send buffer may stay full
KEEP_ALIVE_SECONDS = 75
BACKLOG = 1024


def _constant(status: bytes) -> bytes:
    return b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class EdgeProtocol(HttpToolsProtocol):
    """
    uvicorn's httptools protocol with a bounded head and deadlines; without them one peer may fill the memory.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._head_deadline: asyncio.TimerHandle | None = None
        self._stall_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return  # what came was no HTTP
        # Checked after parsing: a head and a large body may come in one piece.
        if self._in_head and self._head_bytes > HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")
        elif not self._in_head and self.timeout_keep_alive_task is None and self.cycle.response_complete:
            # An empty line between requests is allowed; it does not keep a connection for ever.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._in_head:
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_arrived()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"400 Bad Request")

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_deadline is None:
            self._stall_deadline = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stall_deadline is not None:
            self._stall_deadline.cancel()
            self._stall_deadline = None
        super().resume_writing()

    def _expect_head(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._head_deadline = self.loop.call_later(HEAD_SECONDS, self._head_too_slow)

    def _head_arrived(self) -> None:
        self._in_head = False
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _head_too_slow(self) -> None:
        if not self.transport.is_closing():
            self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        self._head_arrived()
        self.transport.write(_constant(status))
        self.transport.close()


def server_config(app: Any, *, host: str, port: int, **options: Any) -> uvicorn.Config:
    """How the enclave is served, everywhere: in the image, in tests and in benchmarks."""
    settings: dict[str, Any] = {
        "http": EdgeProtocol,
        "ws": "none",
        "lifespan": "on",
        "access_log": False,  # a path is part of what people say
        "server_header": False,
        "proxy_headers": False,  # outer headers decide nothing
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "backlog": BACKLOG,
    }
    return uvicorn.Config(app, host=host, port=port, **(settings | options))
