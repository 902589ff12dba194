"""
The operator's port: `/health`, `/ready` and `/metrics`, in the clear, on 127.0.0.1 of the machine alone.

Whoever can reach it can read counts and durations and whether engines run, and can change nothing. It is up
before the engines are, so that it can be asked whether they are. The few lines of HTTP that this takes are
here, since whatever listens beside the sealed port should be short enough to be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

from .engines.desk import Desk
from .figures import CONTENT_TYPE

HOST: Final = "127.0.0.1"
_HEAD_BYTES: Final = 8192
_SECONDS: Final = 5.0  # to send a request, and to take its answer
_CONNECTIONS: Final = 16
_JSON: Final = "application/json"

_Answer = tuple[str, str, bytes]  # status, media type, body


class OperatorsPort:
    """Serves the desk's health and figures between `open` and `close`."""

    def __init__(self, desk: Desk, port: int) -> None:
        self._desk = desk
        self._port = port
        self._server: asyncio.Server | None = None
        self._open = 0
        self._routes: dict[str, Callable[[], Awaitable[_Answer]]] = {
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._metrics,
        }

    async def open(self) -> int:
        """Listen; tells the port. Raises `OSError`."""
        self._server = await asyncio.start_server(self._serve, HOST, self._port, limit=_HEAD_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            async with asyncio.timeout(_SECONDS):
                if self._open <= _CONNECTIONS:
                    status, media, body = await self._answer(reader)
                    writer.write(
                        f"HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n"
                        "Cache-Control: no-store\r\nConnection: close\r\n\r\n".encode()
                        + body
                    )
                    await writer.drain()
        except (OSError, TimeoutError):
            pass  # it went away, or was too slow
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader) -> _Answer:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return "400 Bad Request", "text/plain", b"not a request\n"
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        route = self._routes.get(rest.partition(" ")[0].partition("?")[0])
        if route is None:
            return "404 Not Found", "text/plain", b"there are: /health /ready /metrics\n"
        if method != "GET":
            return "405 Method Not Allowed", "text/plain", b"GET\n"
        return await route()

    async def _health(self) -> _Answer:
        """The process answers: that is all this says."""
        return "200 OK", _JSON, b'{"status":"alive"}\n'

    async def _ready(self) -> _Answer:
        desk = self._desk
        status = "ready" if desk.ready else "stopping" if desk.draining else "not ready"
        told: dict[str, Any] = {"status": status, "engines": desk.health()}
        return "200 OK" if desk.ready else "503 Service Unavailable", _JSON, json.dumps(told).encode() + b"\n"

    async def _metrics(self) -> _Answer:
        await self._desk.gauge()
        return "200 OK", CONTENT_TYPE, self._desk.figures.text()
