"""
One engine, who is served by it and who waits: it is started, watched, and started again when it dies.

A sequence is started only when the KV cache has room for all it may become, so that what runs is never
thrown out again. When the engine's process dies, what it was at fails with a typed error and what waits is
served by the next process; one that is busy for too long without a sign of life is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from itertools import count
from typing import Any, Final, Literal, Protocol

from ..figures import Figures
from ..refusals import Busy, Failed, Refusal
from . import Card, Update, Work
from .answer import Answer
from .pace import Pace
from .text import Writer
from .turns import Bounds, Turns
from .worker import UnusableEngine, Worker, WorkerGone

_log = logging.getLogger("enclave_app")
_keys = count(1)

STEADY_SECONDS: Final = 60.0  # an engine that lived so long is started again at once
LONGEST_PAUSE: Final = 60.0

Make = Callable[[], Awaitable[Worker]]
State = Literal["starting", "ready", "restarting", "closed"]


class Words(Protocol):
    """The part of a tokenizer that is used here."""

    @property
    def ends(self) -> frozenset[int]: ...

    def decoder(self, prompt: tuple[int, ...]) -> Callable[[int], str | None]: ...


async def _nothing() -> None:
    pass


class Station:
    """
    One engine's place in the app.

    `reopened` is awaited before a new process gets its first sequence, `left` is called when a sequence has
    gone. One that stands `apart` is a tuned model and nothing else: it needs no telling which, and when its
    process dies it is over (`over` is called) and not started again.
    """

    def __init__(
        self,
        name: str,
        make: Make,
        words: Words,
        *,
        bounds: Bounds,
        figures: Figures,
        hang_seconds: float,
        apart: bool = False,
    ) -> None:
        self.name = name
        self.words = words
        self.card = Card(None, 0, 0)
        self.state: State = "starting"
        self.restarts = 0
        self.pace = Pace()
        self.turns = Turns(bounds, self.pace)
        self.reopened: Callable[[], Awaitable[None]] = _nothing
        self.left: Callable[[], None] = lambda: None
        self.over: Callable[[], None] = lambda: None
        self._make = make
        self._figures = figures
        self._hang_seconds = hang_seconds
        self._apart = apart
        self._worker: Worker | None = None
        self._coming: Worker | None = None  # not ready yet
        self._born = 0.0
        self._pause = 0.0
        self._failed = False  # the latest try to start it again
        self._reopening = False
        self._watching: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # Its life

    async def open(self) -> None:
        """Start the engine and wait until it is warm; raises `UnusableEngine`."""
        worker = await self._make()
        self._coming = worker
        try:
            if self.state == "closed":
                raise UnusableEngine("it was stopped while it was being loaded")
            card = await worker.ready()
        except BaseException:
            worker.close()
            raise
        finally:
            self._coming = None
        self.card = card
        worker.heard, worker.refused = self._heard, self._refused
        worker.gone = lambda: self._gone(worker)
        self._worker = worker
        self._born = time.monotonic()
        await self.reopened()
        if not worker.alive:
            return  # died already: `gone` has been called, and sees to it
        self.state = "ready"
        self._failed = False
        if self._watching is None:
            self._watching = self._spawn(self._watch())
        self._admit()

    def close(self) -> None:
        """End the engine; what runs or waits fails."""
        if self.state == "closed":
            return
        self.state = "closed"
        for task in self._tasks:
            task.cancel()
        for worker in (self._worker, self._coming):
            if worker is not None:
                worker.close()
        self.fail(list(self.turns.all()), stopping)

    async def closed(self) -> None:
        """Close it and wait until its memory is given back."""
        worker = self._worker
        self.close()
        if worker is not None:
            await worker.ended()

    @property
    def pid(self) -> int | None:
        """Its process, if it has one."""
        return None if self._worker is None else self._worker.pid

    @property
    def worker(self) -> Worker | None:
        """The engine's other side, while there is one."""
        return self._worker

    async def gauges(self) -> dict[str, float]:
        """The engine's own figures; none while it is being started."""
        if self._worker is None:
            return {}
        try:
            return await self._worker.gauges()
        except WorkerGone:
            return {}

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _gone(self, worker: Worker) -> None:
        """The process has ended: what it was at is lost."""
        if worker is not self._worker or self.state == "closed":
            return
        self._worker = None
        self.restarts += 1
        self._figures.restarted(self.name)
        self._spawn(self._obituary(worker))
        self.state = "closed" if self._apart else "restarting"
        self.fail(list(self.turns.all() if self._apart else self.turns.running.values()), restarted)
        if self._apart:
            if self._watching is not None:
                self._watching.cancel()
            self.over()
        elif not self._reopening:
            self._spawn(self._open_again())

    async def _obituary(self, worker: Worker) -> None:
        # -9 without anybody's doing is the kernel's, for want of memory.
        status = await worker.ended()
        _log.error(
            "an engine ended unexpectedly",
            extra={"engine": self.name, "restarts": self.restarts, "status": status},
        )

    async def _open_again(self) -> None:
        """Start another: at once if the last one lived, later and later if they keep dying."""
        self._reopening = True
        while self.state == "restarting" and self._worker is None:
            if time.monotonic() - self._born >= STEADY_SECONDS:
                self._pause = 0.0
            await asyncio.sleep(self._pause)
            self._pause = min(LONGEST_PAUSE, max(1.0, 2 * self._pause))
            try:
                await self.open()
            except Exception as error:  # noqa: BLE001 - told by type; tried again
                self._failed = True
                # What kept an engine from starting is the operator's business: no prompt has been there.
                why = str(error) if isinstance(error, UnusableEngine) else type(error).__name__
                _log.error("an engine does not start again: %s", why, extra={"engine": self.name})
                # They waited for one start; whoever comes back later may find it done.
                self.fail(list(self.turns.all()), self._absent)
        self._reopening = False

    async def _watch(self) -> None:
        """End a worker that is busy and has given no sign of life for too long."""
        pause = min(1.0, self._hang_seconds / 4)
        quiet_since = time.monotonic()
        while True:
            await asyncio.sleep(pause)
            worker, now = self._worker, time.monotonic()
            if worker is None or not (self.turns.running or worker.loading):
                quiet_since = now
            elif now - max(quiet_since, worker.last_sign) > self._hang_seconds:
                _log.error("an engine gives no sign of life and is ended", extra={"engine": self.name})
                quiet_since = now
                worker.kill()

    # Who is served

    def ask(self, work: Work, stops: tuple[str, ...]) -> Answer:
        """Queue a sequence; raises `Refusal` at once where it cannot be served or would wait too long."""
        if self.state == "closed":
            raise stopping()
        if self.state == "starting" or self._failed:
            raise self._absent()
        answer = Answer(
            next(_keys),
            work,
            Writer(self.words.decoder(work.ids), stops),
            self.leave,
            block=self.card.block,
        )
        if answer.reserved > self.card.room or answer.width > self.card.most_sequences:
            raise Refusal(
                f"Prompt and answer together have {answer.reserved} tokens; this enclave has memory for "
                f"{self.card.room}. Shorten the prompt, or ask for fewer new tokens.",
                code="context_length_exceeded",
            )
        self.turns.enter(answer)
        self._admit()
        return answer

    def leave(self, answer: Answer) -> None:
        """Give back what this answer holds, wherever it stands; the engine is told if it was still at it."""
        ran = self.turns.leave(answer)
        if ran:
            self.pace.ended(more=bool(self.turns.running))
            if answer.first is not None and answer.last is not None and answer.tokens > 1:
                self._figures.token((answer.last - answer.first) / (answer.tokens - 1))
            if not answer.over and self._worker is not None:
                with contextlib.suppress(WorkerGone):
                    self._worker.cancel(answer.key)
        if not answer.finished:
            answer.fail(Failed("It was given up.", code="cancelled"))
        self._admit()
        self.left()

    def _admit(self) -> None:
        """Start whoever may be started now."""
        while self.state == "ready" and self._worker is not None and self._worker.alive:
            answer = self.turns.next(self.card.room, self.card.most_sequences)
            if answer is None:
                return
            answer.started = time.monotonic()
            self.pace.begin()
            self._figures.started(len(answer.work.ids))
            # The worker is alive, so it takes it; should it die now, `gone` fails what runs.
            self._worker.start(answer.key, replace(answer.work, tuning="") if self._apart else answer.work)

    def _heard(self, update: Update) -> None:
        answer = self.turns.running.get(update.key)
        if answer is None:
            return  # it left while this was on its way
        began = answer.first is not None
        self._figures.generated(len(update.tokens))
        try:
            answer.hear(update)
        except Exception as error:  # noqa: BLE001 - a tokenizer's own; one answer's fault, not the engine's
            _log.error("an answer cannot be written", extra={"error": type(error).__name__})
            answer.fail(
                Failed(
                    "The model wrote what cannot be shown as text. Try again, or with another seed.",
                    code="internal_error",
                )
            )
        if not began and answer.first is not None:
            self._figures.first_token(answer.first - answer.asked)
        if answer.finished:
            self.leave(answer)

    def _refused(self, key: int, refusal: Refusal) -> None:
        answer = self.turns.running.get(key)
        if answer is not None:
            answer.over = True  # the engine never had it
            answer.fail(refusal)
            self.leave(answer)

    def fail(self, answers: list[Answer], why: Callable[[], Refusal]) -> None:
        """End these without an answer; the engine has forgotten them, or never had them."""
        for answer in answers:
            answer.over = True
            answer.fail(why())
        for answer in answers:
            self.leave(answer)

    def _absent(self) -> Busy:
        return Busy(
            "The model is being started; try again in a moment.",
            code="starting",
            retry_after=max(5, round(self._pause)),
        )


def restarted() -> Failed:
    """What an answer ends with when its engine dies."""
    return Failed(
        "The model's process ended before the answer did; it is being started again. Try again in a moment.",
        code="engine_restarted",
        status=503,
        retry_after=5,
    )


def stopping() -> Busy:
    """What is said when the enclave is told to stop."""
    return Busy("This enclave is being stopped. Ask another, or later.", code="stopping", retry_after=10)
