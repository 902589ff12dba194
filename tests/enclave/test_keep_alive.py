"""Event streams in which nothing happens: a comment now and then, which no reader takes for an event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from enclave_app.api.answers import EventStream, Gone
from enclave_app.refusals import Refusal

COMMENT = ": keep-alive"


class Caller:
    """Takes what is sent; knows when so many comments have come, and hangs up when told to."""

    def __init__(self, comments: int) -> None:
        self.status = 0
        self.text = ""
        self.ended = False
        self.heard = asyncio.Event()
        self.gone = asyncio.Event()
        self._comments = comments

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        self.text += message["body"].decode()
        self.ended = not message.get("more_body", False)
        if self.text.count(COMMENT) >= self._comments:
            self.heard.set()

    @property
    def blocks(self) -> list[str]:
        assert not self.text or self.text.endswith("\n\n")
        return self.text.split("\n\n")[:-1]


async def streamed(events: AsyncGenerator[Any], caller: Caller, keep_alive: float | None = 0.0) -> None:
    stream = EventStream(events, keep_alive=keep_alive)
    await asyncio.wait_for(stream({"type": "http"}, caller.receive, caller.send), 60)


def test_a_silent_stream_is_kept_alive_between_its_events_and_no_event_is_lost() -> None:
    async def whole() -> None:
        caller = Caller(comments=3)

        async def events() -> AsyncGenerator[Any]:
            yield "", {"n": 1}
            await caller.heard.wait()
            yield [("", {"n": 2}), ("", {"n": 3})]
            yield "", "[DONE]"

        await streamed(events(), caller)
        told = [block for block in caller.blocks if block != COMMENT]
        assert told == ['data: {"n":1}', 'data: {"n":2}', 'data: {"n":3}', "data: [DONE]"]
        assert caller.blocks[:4] == ['data: {"n":1}', COMMENT, COMMENT, COMMENT]
        assert (caller.status, caller.ended) == (200, True)

    asyncio.run(whole())


def test_what_is_refused_at_once_is_refused_by_a_status_and_later_by_the_last_event() -> None:
    """A stream that was kept alive has its status already."""

    async def whole() -> None:
        refusal = Refusal("There is no such column.", code="missing_column")
        early = Caller(comments=1)

        async def at_once() -> AsyncGenerator[Any]:
            raise refusal
            yield "", {}

        with pytest.raises(Refusal, match="no such column"):
            await streamed(at_once(), early)
        assert early.status == 0

        late = Caller(comments=2)

        async def in_a_while() -> AsyncGenerator[Any]:
            await late.heard.wait()
            raise refusal
            yield "", {}

        await streamed(in_a_while(), late)
        assert (late.status, late.ended) == (200, True)
        assert late.blocks[:2] == [COMMENT, COMMENT]
        assert late.blocks[-1].startswith(
            'event: error\ndata: {"error":{"message":"There is no such column."'
        )

    asyncio.run(whole())


def test_who_hangs_up_while_nothing_happens_ends_what_is_being_waited_for() -> None:
    async def whole() -> None:
        caller, closed = Caller(comments=2), asyncio.Event()

        async def events() -> AsyncGenerator[Any]:
            try:
                yield "", {"n": 1}
                await asyncio.Event().wait()  # for ever
            finally:
                closed.set()

        async def hang_up() -> None:
            await caller.heard.wait()
            caller.gone.set()

        hanging = asyncio.ensure_future(hang_up())
        with pytest.raises(Gone):
            await streamed(events(), caller)
        await hanging
        assert closed.is_set()
        assert not caller.ended
        for _ in range(5):  # what was cancelled has a turn to end
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(whole())


def test_a_stream_that_was_not_told_to_is_silent() -> None:
    async def whole() -> None:
        caller = Caller(comments=1)

        async def events() -> AsyncGenerator[Any]:
            yield "", {"n": 1}
            for _ in range(50):
                await asyncio.sleep(0)
            yield "", {"n": 2}

        await streamed(events(), caller, keep_alive=None)
        assert caller.blocks == ['data: {"n":1}', 'data: {"n":2}']

    asyncio.run(whole())
