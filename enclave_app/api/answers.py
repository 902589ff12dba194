"""
How a refusal, a surprise and a stream of events look on the wire.

Every error is `{"error": {"message", "type", "param", "code"}}` (SPEC §5.6). An unexpected exception
becomes a constant 500 here, inside the seal; its text, which could hold a row or a prompt, goes nowhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blindbox_data import DataError

from ..measured import REFUSAL
from ..refusals import Failed, Refusal, of_data

KEEP_ALIVE_SECONDS: Final = 15.0
"""A stream with nothing to say for so long sends a comment: many proxies cut a silent one after a minute."""
_COMMENT: Final = b": keep-alive\n\n"

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
    if refusal.status in (409, 507) or refusal.code.startswith("damaged_"):
        headers["x-should-retry"] = "false"  # the openai package would otherwise send it again at once
    return JSONResponse(refusal.body(), refusal.status, headers)


def install(app: FastAPI) -> None:
    """Give every error of this app the one shape."""

    async def on_refusal(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refusal)
        request.scope[REFUSAL] = error.code  # counted by `measured.py`
        return refused(error)

    async def on_data(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, DataError)
        return await on_refusal(request, of_data(error))

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
    app.add_exception_handler(DataError, on_data)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_middleware(_Surprises)


_HTTP = {
    404: (
        "There is no such route. There are: /v1/chat/completions, /v1/completions, /v1/models, /v1/files, "
        "/v1/uploads, /v1/fine_tuning/jobs, /v1/fine_tuning/preview, /v1/blindbox/status, "
        "/v1/blindbox/tenant, /test, /inference, /finetune and /generate.",
        "not_found",
    ),
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
            if message["type"] == "http.response.start":
                begun = True
                # For people who compare what they saw; it is written down nowhere here.
                request_id = f"req-{secrets.token_hex(12)}".encode()
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", request_id)]}
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
            await refused(surprise())(scope, receive, watched)


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


Event = tuple[str, Any]
"""An event's name ("" = none) and its data: what becomes JSON, or a text that is sent as it is."""
Events = AsyncGenerator[Event | list[Event]]
"""Those in a list leave together: what comes first of an answer goes out at once, and the rest on a tick."""


class EventStream(StreamingResponse):
    """
    Server-sent events (WHATWG HTML §9.2).

    The status is sent with the first event, so that what is refused before it is refused by a status. When
    the caller hangs up, `events` is closed, and `held` is left when nothing of it runs any more.

    With `keep_alive`, whenever there is no event for so many seconds a comment is sent, before the first one
    too: what is refused after that is the stream's last event.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: Events,
        held: AbstractContextManager[Any] | None = None,
        *,
        keep_alive: float | None = None,
    ) -> None:
        super().__init__(_nothing(), headers={"cache-control": "no-store"})
        self._events = events
        self._held = held or nullcontext()
        self._keep_alive = keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        # Around the whole response: its iterator may never be started, and then would never be ended.
        with self._held:
            async with aclosing(self._events) as events, aclosing(self._alive(events)) as alive:
                first = await unless_gone(request, _next(alive))
                self.body_iterator = _written(first, alive)
                await unless_gone(request, self.stream_response(send))

    def _alive(self, events: Events) -> AsyncGenerator[Event | list[Event] | None]:
        return events if self._keep_alive is None else _with_pauses(events, self._keep_alive)


async def _with_pauses(events: Events, seconds: float) -> AsyncGenerator[Event | list[Event] | None]:
    """The events, and None for each time that none came for so long."""
    while True:
        coming = asyncio.ensure_future(_next(events))
        try:
            while not (await asyncio.wait({coming}, timeout=seconds))[0]:
                yield None
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
        finally:
            if coming.cancel():  # or `events` could not be closed: it would be running
                with suppress(asyncio.CancelledError, Exception):
                    await coming
        yield event


async def _next(events: AsyncGenerator[T]) -> T:
    return await anext(events)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def _written(
    first: Event | list[Event] | None, events: AsyncIterator[Event | list[Event] | None]
) -> AsyncIterator[bytes]:
    """Each event as lines; the errors an answer would have had as status are the last event here."""
    try:
        yield _lines(first)
        async for event in events:
            yield _lines(event)
    except Refusal as refusal:
        yield _lines(("error", refusal.body()))
    except Exception as error:  # noqa: BLE001 - told by type in the log, by a constant to the caller
        log.error("unexpected %s", _origin(error))
        yield _lines(("error", surprise().body()))


def _lines(event: Event | list[Event] | None) -> bytes:
    if event is None:
        return _COMMENT
    if isinstance(event, list):
        return b"".join(_lines(each) for each in event)
    name, data = event
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n".encode() if name else f"data: {text}\n\n".encode()
