"""
Who listens to a job, from an event loop of their own, while threads have things to say.

What is said comes from `line.py` and `bench.py`; how it looks on the wire is known in `../api`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Final

from ..training import Progress
from . import Event, Job

MOST_EARS: Final = 16  # that listen to one job
_UNHEARD: Final = 256  # things that somebody has not listened to yet

Heard = Event | Progress | Job
"""What one who listens to a job hears; a `Job` that is not live is the last."""


class Ear:
    """
    Somebody who listens to a job, on the event loop that made this.

    Of who does not take what they hear, `Progress` is dropped: a job's events are so many and no more, its
    steps are not.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        self.deaf = False  # gone, perhaps before the line knew of it

    def hear(self, item: Heard) -> None:
        """From any thread."""
        with suppress(RuntimeError):  # the loop has closed: nobody is left to hear it
            self._loop.call_soon_threadsafe(self._put, item)

    def _put(self, item: Heard) -> None:
        if not self.deaf and (not isinstance(item, Progress) or self._heard.qsize() < _UNHEARD):
            self._heard.put_nowait(item)

    async def items(self) -> AsyncGenerator[Heard, None]:
        """As they come, until the job is not live any more."""
        while True:
            item = await self._heard.get()
            yield item
            if isinstance(item, Job) and not item.live:
                return

    async def end(self) -> None:
        """Listen until then."""
        async for _ in self.items():
            pass
