"""
An application whose answers go on for ever, and that notices when nobody listens to them any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send


class Generating:
    """`begun` and `ended` tell of the first answer; `live` counts those under way; `go_on` is the test's."""

    def __init__(self) -> None:
        self.live = 0
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.go_on = threading.Event()
        self.received = 0
        self.asgi = Starlette(
            routes=[
                Route("/gated", self.gated),
                Route("/endless", self.endless),
                Route("/silent", self.silent, methods=["POST"]),
                Route("/upload", self.upload, methods=["POST"]),
                Route("/flood", self.flood),
            ]
        )

    async def gated(self, request: Request) -> Response:
        """The second piece only once the test has seen the first."""

        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            while not self.go_on.is_set():
                await asyncio.sleep(0.01)
            yield b"second"

        return StreamingResponse(pieces())

    async def endless(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield b"data: still here\n\n"
                await asyncio.sleep(0.05)

        return _Counted(self, pieces())

    async def silent(self, request: Request) -> Response:
        """Computes, and would not answer for a long time; a server tells it when the caller leaves."""
        await request.body()
        with self.counted():
            for _ in range(3000):
                if await request.is_disconnected():
                    break
                await asyncio.sleep(0.02)
        return Response("at last")

    async def upload(self, request: Request) -> Response:
        async for piece in request.stream():
            self.received += len(piece)
            self.begun.set()
        return JSONResponse({"size": self.received})

    async def flood(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield bytes(65536)

        return _Counted(self, pieces())

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        self.live += 1
        self.begun.set()
        try:
            yield
        finally:
            self.live -= 1
            self.ended.set()


class _Counted(StreamingResponse):
    """Not the generator counts: one that was left is only closed when it is collected."""

    def __init__(self, told: Generating, pieces: AsyncIterator[bytes]) -> None:
        super().__init__(pieces, media_type="text/event-stream")
        self._told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._told.counted():
            await super().__call__(scope, receive, send)
