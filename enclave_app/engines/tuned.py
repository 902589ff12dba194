"""
Tuned models in memory: made ready when asked for, so many at a time and in so much memory. The one that
rested longest makes room.

Where the engine takes adapters in beside its model ("within"), they are loaded into its process; where it
does not ("apart"), each tuned model has a process and a line of its own. One that somebody waits for or is
answered by is never taken away. One that is let go (another took its place, or it was deleted) leaves when
the last of its answers has been given; until then it does not count among those that are held.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from ..figures import free_bytes, resident_bytes
from ..refusals import Busy, Failed, RateLimited, Refusal
from . import Tuning
from .adapter import Adapter
from .answer import Answer
from .station import Station, restarted, stopping
from .worker import UnusableEngine, Worker, WorkerGone

_log = logging.getLogger("enclave_app")
_SPARE: Final = 64 << 20  # bytes that are to be left free beside a new process
_MOST_TRIES: Final = 3
GRACE_SECONDS: Final = 10.0
"""So long a model that was replaced stays: who was given it a moment ago may still be reading his prompt."""

MakeTuned = Callable[[Adapter], Awaitable[Worker]]
MakeStation = Callable[[Callable[[], Awaitable[Worker]]], Station]


@dataclass(slots=True, eq=False)
class _Held:
    """A tuned model in memory, or on its way there."""

    tuning: Tuning
    task: asyncio.Task[None]
    station: Station | None = None  # of its own, if it has one
    size: int = 0  # bytes, where it has none
    leaves: float | None = None  # when it may go (`time.monotonic`), if it was let go

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        pid = None if self.station is None else self.station.pid
        return self.size if pid is None else resident_bytes(pid)


class Shelf:
    """
    The tuned models of one base model: at most `most` in at most `budget` bytes (0 = in what is free).

    `make` starts a tuned model's own process, `station` gives that a line; both only for an engine that
    tunes "apart". `free` tells how much memory there is.
    """

    def __init__(
        self,
        base: Station,
        make: MakeTuned | None,
        station: MakeStation,
        *,
        most: int,
        most_waiting: int,
        most_of_one: int,
        budget: int = 0,
        free: Callable[[], int | None] = free_bytes,
    ) -> None:
        self._base = base
        self._make = make
        self._new_station = station
        self._most = most
        self._budget = budget
        self._most_waiting = most_waiting
        self._most_of_one = most_of_one
        self._free = free
        self._held: OrderedDict[str, _Held] = OrderedDict()  # by version; who rested longest comes first
        self._loading = asyncio.Lock()  # one at a time: each looks at how much memory is free
        self._waiting: Counter[str] = Counter()  # by owner
        base.reopened = self._again
        base.left = self._sweep

    @property
    def stations(self) -> list[Station]:
        """Those that tuned models have of their own."""
        return [held.station for held in self._held.values() if held.station is not None]

    async def ready(self, tuning: Tuning) -> None:
        """
        Have it in memory; raises `Refusal`.

        When this returns, and until the next `await`, it is there.
        """
        if self._base.card.tunes == "no" or self._most == 0:
            raise Refusal(
                "This enclave serves no tuned models; ask its base model.",
                code="no_tuned_models",
                param="model",
            )
        if self._waiting[tuning.owner] >= self._most_of_one:
            raise RateLimited(
                "As many requests of yours as may wait for your tuned model already. "
                "Try again when it answers.",
                code="too_many_waiting",
                retry_after=10,
            )
        if self._waiting.total() >= self._most_waiting:
            raise Busy("Too many wait for tuned models already.", code="overloaded", retry_after=10)
        self._waiting[tuning.owner] += 1
        try:
            for _ in range(_MOST_TRIES):
                held = self._held.get(tuning.version)
                if held is None:
                    held = _Held(tuning, asyncio.create_task(self._load(tuning)))
                    held.task.add_done_callback(_noticed)
                    self._held[tuning.version] = held
                # Shielded: that one caller goes away does not take the model from others who wait for it.
                await asyncio.shield(held.task)
                if self._held.get(tuning.version) is held:
                    self._held.move_to_end(tuning.version)
                    return
                # Taken away again before this caller's turn came.
        finally:
            self._waiting[tuning.owner] -= 1
            self._waiting += Counter()  # who waits no more is not remembered
        raise _all_busy()

    def holds(self, version: str) -> bool:
        """Is it in memory?"""
        held = self._held.get(version)
        return held is not None and _settled(held)

    def let_go(self, version: str, *, after: float = 0.0) -> None:
        """
        Take it away when nobody is answered by it any more, but not within so many seconds.

        From now on it does not count among those that are held. `math.inf` = until this is called again.
        """
        held = self._held.get(version)
        if held is not None:
            held.leaves = time.monotonic() + after
            if 0 < after < math.inf:
                asyncio.get_running_loop().call_later(after, self._sweep)
            self._sweep()

    def let_go_all(self, owner: str, beginning: str = "") -> None:
        """The same for every one of this owner's, or those whose version begins so."""
        for held in list(self._held.values()):
            if held.tuning.owner == owner and held.tuning.version.startswith(beginning):
                self.let_go(held.tuning.version)

    def keep(self, version: str) -> None:
        """Do not let it go after all."""
        held = self._held.get(version)
        if held is not None:
            held.leaves = None

    def station(self, version: str) -> Station:
        """Where this tuned model is asked. Raises `Refusal` if it is not in memory."""
        held = self._held.get(version)
        if held is None or not held.task.done():
            raise restarted()
        return held.station or self._base

    def close(self) -> None:
        """End them all."""
        for held in list(self._held.values()):
            held.task.cancel()
            if held.station is not None:
                held.station.close()
        self._held.clear()

    async def _load(self, tuning: Tuning) -> None:
        try:
            adapter = await asyncio.to_thread(tuning.load)
            async with self._loading:
                self._sweep()
                await self._place(self._held[tuning.version])
                if self._base.card.tunes == "within":
                    await self._load_within(tuning, adapter)
                else:
                    await self._load_apart(tuning, adapter)
        except BaseException as error:
            self._held.pop(tuning.version, None)
            if isinstance(error, asyncio.CancelledError):
                raise stopping() from None  # nobody else cancels it
            raise

    async def _load_within(self, tuning: Tuning, adapter: Adapter) -> None:
        worker = self._base.worker
        if worker is None:
            raise restarted()
        await self._room(len(adapter.weights), process=False)
        try:
            await worker.load(tuning.version, adapter)
        except WorkerGone:
            raise restarted() from None
        self._held[tuning.version].size = len(adapter.weights)

    async def _load_apart(self, tuning: Tuning, adapter: Adapter) -> None:
        make = self._make
        if make is None:
            raise Failed("This enclave cannot start tuned models.", code="no_tuned_models", status=503)
        # As much as the base model: whatever was tuned, the weights are as many.
        await self._room(resident_bytes(self._base.pid) if self._base.pid is not None else 0, process=True)

        async def start() -> Worker:
            return await make(adapter)

        station = self._new_station(start)
        try:
            await station.open()
        except UnusableEngine as error:
            _log.error("a tuned model does not start", extra={"error": type(error).__name__})
            raise Failed(
                "Your tuned model cannot be started. Trying again may help; if it does not, fine-tune again.",
                code="tuned_model_unusable",
                status=503,
                retry_after=10,
            ) from None
        except BaseException:
            station.close()
            raise
        held = self._held[tuning.version]
        held.station = station
        station.over = lambda: self._lost(held)
        station.left = self._sweep
        if station.state == "closed":  # it died between
            raise restarted()

    async def _place(self, coming: _Held) -> None:
        """Make a place on the shelf for one that is on its way."""
        if coming.leaves is not None:
            return
        while sum(1 for held in self._held.values() if _settled(held) and held.leaves is None) >= self._most:
            idle = self._idle()
            if idle is None:
                raise _all_busy()
            await self._end(idle)

    async def _room(self, need: int, *, process: bool) -> None:
        """Have so many bytes of the budget left, and, for a process of its own, of the machine's memory."""
        while not self._fits(need, process=process):
            idle = self._idle()
            if idle is None:
                raise Busy(
                    "There is not enough memory for your tuned model beside what is running. Try again "
                    "later, or ask the base model.",
                    code="no_memory",
                    retry_after=30,
                )
            await self._end(idle)

    def _fits(self, need: int, *, process: bool) -> bool:
        if self._budget and sum(held.bytes for held in self._held.values()) + need > self._budget:
            return False
        free = self._free() if process else None
        return free is None or free >= need + _SPARE

    def _idle(self) -> _Held | None:
        """Who makes room: one that was let go, else the one that rested longest."""
        idle = [held for held in self._held.values() if _settled(held) and not self._uses(held)]
        return min(idle, key=lambda held: held.leaves is None, default=None)

    def _uses(self, held: _Held) -> list[Answer]:
        """What runs on it or waits for it."""
        if held.station is not None:
            return list(held.station.turns.all())
        return [answer for answer in self._base.turns.all() if answer.work.tuning == held.tuning.version]

    async def _end(self, held: _Held) -> None:
        self._forget(held)
        if held.station is not None:
            await held.station.closed()

    def _forget(self, held: _Held) -> None:
        self._held.pop(held.tuning.version, None)
        if held.station is None and self._base.worker is not None and self._base.worker.alive:
            self._base.worker.unload(held.tuning.version)

    def _sweep(self) -> None:
        """Take away what was let go, as soon as nobody is answered by it any more."""
        now = time.monotonic()
        for held in list(self._held.values()):
            if held.leaves is not None and held.leaves <= now and _settled(held) and not self._uses(held):
                self._forget(held)
                if held.station is not None:
                    held.station.close()

    def _lost(self, held: _Held) -> None:
        """Its own process has died; whoever asks next starts another."""
        if self._held.get(held.tuning.version) is held:
            del self._held[held.tuning.version]

    async def _again(self) -> None:
        """The base's process was started again: bring back what somebody waits for, forget the rest."""
        worker = self._base.worker
        if self._base.card.tunes != "within" or worker is None:
            return
        for held in list(self._held.values()):
            if not _settled(held):
                continue
            uses = self._uses(held)
            try:
                if uses:
                    await worker.load(held.tuning.version, await asyncio.to_thread(held.tuning.load))
                    continue
            except WorkerGone:
                return  # it died again; the next one will be asked
            except Exception as error:  # noqa: BLE001 - those who waited for it are told
                _log.error("a tuned model cannot be loaded again", extra={"error": type(error).__name__})
                self._base.fail(uses, restarted)
            self._held.pop(held.tuning.version, None)


def _noticed(task: asyncio.Task[None]) -> None:
    # Perhaps nobody waits for it any more; asyncio would print what nobody has looked at.
    if not task.cancelled():
        task.exception()


def _settled(held: _Held) -> bool:
    return held.task.done() and not held.task.cancelled() and held.task.exception() is None


def _all_busy() -> Busy:
    return Busy(
        "As many tuned models as fit are being asked by others. Try again in a moment.",
        code="tuned_models_busy",
        retry_after=5,
    )
