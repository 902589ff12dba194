"""
How a refusal, a surprise and a stream of events look on the wire.

Every error is `{"error": {"message", "type", "param", "code"}}` (SPEC §5.6). An unexpected exception
becomes a constant 500 here, inside the seal; its text, which could hold a row or a prompt, goes nowhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..refusals import Failed, Refusal

T = TypeVar("T")
log = logging.getLogger("enclave_app")


class Gone(Exception):
    """The caller hung up; there is nobody to answer."""


def refused(refusal: Refusal) -> JSONResponse:
    """The refusal as a response."""
    headers = {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.status == 409:
        headers["x-should-retry"] = "false"  # the openai package would otherwise send it again at once
    return JSONResponse(refusal.body(), refusal.status, headers)


def install(app: FastAPI) -> None:
    """Give every error of this app the one shape."""

    async def on_refusal(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refusal)
        return refused(error)

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message, code = _HTTP.get(error.status_code, ("The request cannot be served.", "invalid_request"))
        methods = (error.headers or {}).get("Allow")
        if methods is not None:
            message = f"{message} It takes {methods}."
        response = refused(Refusal(message, code=code, status=error.status_code))
        response.headers.update(error.headers or {})
        return response

    async def on_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        where = ".".join(str(step) for step in error.errors()[0]["loc"])[:200]
        return refused(Refusal(f"{where} is not as it should be.", code="invalid_value", param=where))

    app.add_exception_handler(Refusal, on_refusal)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_middleware(_Surprises)


_HTTP = {
    404: ("There is no such route. There are: /test, /inference, /finetune and /v1/files.", "not_found"),
    405: ("This route does not take this method.", "method_not_allowed"),
}


class _Surprises:
    """Around the routes: an exception that nobody expected ends here, and is told by its type alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Gone:
            return
        except Exception as error:  # noqa: BLE001 - told by type alone
            log.error("unexpected %s", _origin(error))
            if begun:
                # Cut short is what it is: the seal's missing end tells the caller so.
                raise RuntimeError("the answer broke off") from None
            await refused(surprise())(scope, receive, send)


def surprise() -> Refusal:
    """What a caller is told of an error that nobody expected."""
    return Failed(
        "Something failed inside the enclave; nothing of yours was lost. Trying again may help.",
        code="internal_error",
    )


def _origin(error: BaseException) -> str:
    """Type, file and line: enough to find the fault, and no word of what was processed."""
    trace, place = error.__traceback__, "?"
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {place}"


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it when the caller hangs up. The request's body must have been read."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        gone.cancel()
        if task.cancel():  # it was not done; a result that was taken is not taken again
            with suppress(BaseException):
                await task


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events (WHATWG HTML §9.2) that hold something until the last of them is sent."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[tuple[str, Any]], held: AbstractContextManager[Any]) -> None:
        super().__init__(_written(events), headers={"cache-control": "no-store"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Around the whole response: its iterator may never be started, and then would never be ended.
        with self._held:
            await super().__call__(scope, receive, send)


async def _written(events: AsyncIterator[tuple[str, Any]]) -> AsyncIterator[bytes]:
    """Each event as lines; the errors an answer would have had as status are the last event here."""
    try:
        async for name, data in events:
            yield _line(name, data)
    except Refusal as refusal:
        yield _line("error", refusal.body())
    except Exception as error:  # noqa: BLE001 - told by type in the log, by a constant to the caller
        log.error("unexpected %s", _origin(error))
        yield _line("error", surprise().body())


def _line(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
