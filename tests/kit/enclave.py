"""
A running enclave on loopback: the real gateway, a real server, and an application to talk to.

    with running() as enclave:
        blindbox.requests.get(f"{enclave.origin}/anything", policy=UnsafeSimulatedPolicy())
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from enclave_app.edge import server_config
from enclave_app.gateway import ASGIApp, Gateway
from enclave_app.identity import Identity
from enclave_app.quoting import Quoter
from enclave_app.quoting.simulated import SimulatedQuoter
from tests.kit.machine import bare_machine

CONFIG_DIGEST = hashlib.sha384(b"the settings of a test").digest()
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def simulated_quoter() -> SimulatedQuoter:
    """The simulated quoter, also on a machine that has real hardware."""
    return SimulatedQuoter(bare_machine())


def make_identity(quoter: Quoter | None = None, **options: Any) -> Identity:
    return Identity(quoter or simulated_quoter(), **({"config_digest": CONFIG_DIGEST} | options))


async def anything(request: Request) -> Response:
    """What arrived, as JSON."""
    return JSONResponse(
        {
            "method": request.method,
            "path": request.url.path,
            "query": request.url.query,
            "headers": [
                [name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers.raw
            ],
            "body": base64.b64encode(await request.body()).decode(),
            "client": request.client,
        }
    )


async def stream(request: Request) -> Response:
    """`/stream/N?gap=S`: N server-sent events, S seconds apart."""
    gap = float(request.query_params.get("gap", "0.1"))

    async def events() -> AsyncIterator[bytes]:
        for number in range(request.path_params["n"]):
            if number:
                await asyncio.sleep(gap)
            yield f"data: {json.dumps({'n': number})}\n\n".encode()

    return StreamingResponse(events(), media_type="text/event-stream")


async def status(request: Request) -> Response:
    code = request.path_params["n"]
    return (
        Response(status_code=code)
        if code in (204, 304)
        else PlainTextResponse(f"status {code}", status_code=code)
    )


async def redirect_to(request: Request) -> Response:
    return RedirectResponse(request.query_params["url"], int(request.query_params.get("status", "302")))


async def delay(request: Request) -> Response:
    await asyncio.sleep(request.path_params["s"])
    return JSONResponse({"delayed": request.path_params["s"]})


async def boom(request: Request) -> Response:
    raise RuntimeError("boom: the prompt was " + request.headers.get("x-canary", "nothing"))


async def many_bytes(request: Request) -> Response:
    """`/bytes/N`: N bytes, the same each time; `?pieces=K` streams them in K pieces."""
    size, pieces = request.path_params["n"], int(request.query_params.get("pieces", "0"))
    data = pattern(size)
    if not pieces:
        return Response(data, media_type="application/octet-stream")

    async def parts() -> AsyncIterator[bytes]:
        step = max(1, -(-size // pieces))
        for at in range(0, size, step):
            yield data[at : at + step]

    return StreamingResponse(parts(), media_type="application/octet-stream")


async def cut(request: Request) -> Response:
    """`/cut/N`: N bytes of a stream, then the application fails."""

    async def parts() -> AsyncIterator[bytes]:
        yield pattern(request.path_params["n"])
        await asyncio.sleep(0.2)
        raise RuntimeError("cut")

    return StreamingResponse(parts(), media_type="application/octet-stream")


async def upload(request: Request) -> Response:
    """Counts and hashes the body as it comes, and keeps none of it."""
    digest, size = hashlib.sha256(), 0
    async for piece in request.stream():
        digest.update(piece)
        size += len(piece)
    return JSONResponse({"size": size, "sha256": digest.hexdigest()})


async def count(request: Request) -> Response:
    """How often this route has run: `{"runs": n}`."""
    await request.body()
    request.app.state.runs += 1
    return JSONResponse({"runs": request.app.state.runs})


async def cookies(request: Request) -> Response:
    """`/cookies` shows them; `/cookies?a=b` sets them."""
    response = JSONResponse({"cookies": request.cookies})
    for name, value in request.query_params.items():
        response.set_cookie(name, value)
    return response


def pattern(size: int) -> bytes:
    """`size` bytes in which no piece of a chunk's length repeats."""
    blocks = (hashlib.sha256(number.to_bytes(8, "big")).digest() for number in range(-(-size // 32)))
    return b"".join(blocks)[:size]


def make_echo_app() -> Starlette:
    """A small application in the manner of httpbin; each has a counter of its own."""
    app = Starlette(
        routes=[
            Route("/", lambda _: JSONResponse({"alive": True})),
            Route("/anything", anything, methods=METHODS),
            Route("/anything/{rest:path}", anything, methods=METHODS),
            Route("/stream/{n:int}", stream, methods=["GET", "POST"]),
            Route("/status/{n:int}", status, methods=METHODS),
            Route("/redirect-to", redirect_to, methods=METHODS),
            Route("/delay/{s:float}", delay, methods=["GET", "POST"]),
            Route("/boom", boom, methods=["GET", "POST"]),
            Route("/bytes/{n:int}", many_bytes),
            Route("/cut/{n:int}", cut),
            Route("/upload", upload, methods=["POST", "PUT"]),
            Route("/count", count, methods=["GET", "POST"]),
            Route("/cookies", cookies),
        ]
    )
    app.state.runs = 0
    return app


echo_app = make_echo_app()


@dataclass(frozen=True, slots=True)
class RunningEnclave:
    """An enclave that can be talked to."""

    origin: str
    port: int
    gateway: Gateway
    app: ASGIApp

    @property
    def identity(self) -> Identity:
        return self.gateway.identity


@contextmanager
def running(
    app: ASGIApp | None = None,
    *,
    quoter: Quoter | None = None,
    port: int = 0,
    identity: Identity | None = None,
    **gateway: Any,
) -> Iterator[RunningEnclave]:
    """Serve `app` (by default an echo application of its own) behind a gateway until the block ends."""
    inner = app if app is not None else make_echo_app()
    shell = Gateway(inner, identity or make_identity(quoter), **gateway)
    with serving(shell, port=port) as bound:
        yield RunningEnclave(f"http://127.0.0.1:{bound}", bound, shell, inner)


@contextmanager
def serving(app: Any, *, port: int = 0, **options: Any) -> Iterator[int]:
    """Serve any ASGI application as the enclave is served, in a thread; gives its port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    bound: int = listener.getsockname()[1]
    settings = {"lifespan": "auto", "log_config": None, "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(server_config(app, host="127.0.0.1", port=bound, **(settings | options)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="enclave", daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the enclave did not start")
        time.sleep(0.005)
    try:
        yield bound
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
