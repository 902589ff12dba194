"""
Where prompts wait for an engine: off the event loop, one at a time, and not too many.

The event loop stays free, so that `GET /` answers while a model thinks. Someone who has gone away is
not worked for: the iterator is closed between two pieces.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..refusals import Busy
from . import Engine, Finish, Prompt, Sampling


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: `completion` is the new text alone."""

    completion: str
    joint: str
    finish: Finish


class Desk:
    """One worker thread for all engines: they share the machine's cores and maybe the model."""

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    async def ask(self, engine: Engine, prompt: Prompt, sampling: Sampling) -> Answer:
        """Wait for the turn, then for the answer. Cancelling the call stops the work at the next piece."""
        if self._waiting >= self._most_waiting:
            raise Busy(
                f"{self._waiting} prompts are waiting already; try again in a few seconds.",
                code="overloaded",
                retry_after=5,
            )
        self._waiting += 1
        gone = threading.Event()
        try:
            work = asyncio.get_running_loop().run_in_executor(
                self._thread, _whole, engine, prompt, sampling, gone.is_set
            )
            return await work
        finally:
            gone.set()
            self._waiting -= 1

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _whole(engine: Engine, prompt: Prompt, sampling: Sampling, gone: Callable[[], bool]) -> Answer:
    text: list[str] = []
    joint, finish = "", None
    if gone():
        return Answer("", "", "length")
    pieces = engine.generate(prompt, sampling)
    try:
        for piece in pieces:
            text.append(piece.text)
            joint, finish = piece.joint or joint, piece.finish or finish
            if gone():
                break
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
    return Answer("".join(text), joint, finish or "length")
