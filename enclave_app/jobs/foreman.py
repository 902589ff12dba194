"""
What callers may ask of jobs: create, find, cancel, pause, resume, follow, delete.

An order is taken here, or refused; what a caller is told has been written down before (`book.py`). Then the
job stands in line (`line.py`), a thread takes it when it is its turn (`shift.py`), and the work is done at
the bench (`bench.py`). What a tenant left unfinished goes on when it is next seen (`arrivals.py`).

    reading → admitted → training → published → compared → receipt → succeeded
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from ..checkpoint import Checkpoint
from ..refusals import Busy, Conflict, Failed, NotFound, RateLimited
from ..settings import Settings
from ..store import Store, new_id
from ..tenants import Tenant
from ..training import Stop, Trainer
from . import Event, Job, Order, Status, move
from .arrivals import Arrivals, Expire
from .bench import Bench, Keep, Models, Rows
from .book import Book, Listed, digest
from .curve import curve_of
from .ears import Ear
from .line import Line
from .receipts import Signer
from .shift import Shift

_SOON: Final = 15.0  # seconds that a caller who stops a job waits for it to have stopped


@dataclass(frozen=True, slots=True)
class Key:
    """An idempotency key and what was asked with it, both as digests."""

    name: str
    asked: str

    @classmethod
    def of(cls, key: str, asked: str) -> Key:
        return cls(digest(key), digest(asked))


class Foreman:
    """All jobs of all tenants. Its methods may be called from any event loop."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        trainer: Trainer,
        rows: Rows,
        models: Models,
        *,
        base: str = "",
        signer: Signer | None = None,
        expire: Expire | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.rows = rows
        self.book = Book(store)
        self.line = Line(settings, self.book)
        self.bench = Bench(
            *(settings, self.line, self.book, trainer, rows, models), base=base, signer=signer, keep=keep
        )
        self.shift = Shift(self.line, self.bench, rows)
        self._arrivals = Arrivals(settings, self.line, self.book, self.shift, self._gone, expire)
        self._settings = settings
        self._store = store
        self._models = models
        self._making = threading.Lock()  # one order at a time is taken
        self._leaving: set[str] = set()  # tenants whose everything is being removed; touched by event loops

    # --- for routes

    async def create(
        self,
        tenant: Tenant,
        order: Order,
        *,
        key: Key | None = None,
        alone: bool = False,
        ear: Ear | None = None,
    ) -> Job:
        """
        Take an order; the job is written down when this returns.

        With the `key` of an earlier call the job of that call comes back. `alone` refuses where the tenant
        has live work already.
        """
        self.bench.loop = asyncio.get_running_loop()
        return await asyncio.to_thread(self._create, tenant, order, key, alone, ear)

    async def made(self, tenant: Tenant, key: Key) -> Job | None:
        """The job that an earlier call with this key made."""
        return await asyncio.to_thread(self._made, tenant, key)

    async def find(self, tenant: Tenant, job_id: str) -> Job:
        """Raises `NotFound`, for another tenant's job as well."""
        return await asyncio.to_thread(self._find, tenant, job_id)

    async def list(self, tenant: Tenant) -> Listed:
        """All of the tenant's, the newest first."""
        return await asyncio.to_thread(self._listed, tenant)

    async def cancel(self, tenant: Tenant, job_id: str) -> Job:
        """Stop it for good. Waits a while until it has stopped."""
        return await self._stopped_soon(tenant, job_id, "cancel")

    async def pause(self, tenant: Tenant, job_id: str) -> Job:
        """Stop it so that it can go on from where it is."""
        return await self._stopped_soon(tenant, job_id, "pause")

    async def resume(self, tenant: Tenant, job_id: str) -> Job:
        """Let a paused job go on when it is its turn."""
        self.bench.loop = asyncio.get_running_loop()
        return await asyncio.to_thread(self._resume, tenant, job_id)

    async def delete(self, tenant: Tenant, job_id: str) -> dict[str, int]:
        """Remove a job that is not live, with its events, checkpoints and receipt; its model stays."""
        self.bench.loop = asyncio.get_running_loop()
        return await asyncio.to_thread(self._delete, tenant, job_id)

    async def forget(self, tenant: Tenant) -> dict[str, int]:
        """Stop what runs for the tenant and remove everything it has; tells what there was."""
        if tenant.id in self._leaving:
            raise Busy("Everything of yours is being deleted already.", code="tenant_leaving", retry_after=10)
        self._leaving.add(tenant.id)
        try:
            live = await asyncio.to_thread(self._leave, tenant)
            await asyncio.gather(*(self._ended_soon(tenant, job_id) for job_id in live))
            if await asyncio.to_thread(self.line.own, tenant, ending=True):
                raise Busy(
                    "A job of yours has not stopped yet. Nothing was removed; try again in a minute.",
                    code="job_in_progress",
                    retry_after=60,
                )
            models = await self._models.delete_all(tenant)
            removed = await asyncio.to_thread(self._forget, tenant)
        finally:
            self._leaving.discard(tenant.id)
        return {"cancelled-jobs": len(live), "models": len(models)} | removed

    async def events(self, tenant: Tenant, job_id: str) -> Sequence[Event]:
        """All so far, the oldest first."""
        return await asyncio.to_thread(self._events, tenant, job_id)

    async def checkpoints(self, tenant: Tenant, job_id: str) -> Sequence[Checkpoint]:
        """The newest first."""

        def read() -> Sequence[Checkpoint]:
            self._find(tenant, job_id)
            return self.book.checkpoints(tenant, job_id)

        return await asyncio.to_thread(read)

    async def metrics(self, tenant: Tenant, job_id: str) -> Sequence[dict[str, Any]]:
        """The figures of each step that was told, once, in order."""
        return await asyncio.to_thread(lambda: curve_of(self._events(tenant, job_id)))

    async def receipt(self, tenant: Tenant, job_id: str) -> bytes:
        """What was signed for it."""

        def read() -> bytes:
            self._find(tenant, job_id)
            return self.book.receipt(tenant, job_id)

        return await asyncio.to_thread(read)

    async def follow(self, tenant: Tenant, job_id: str) -> AsyncGenerator[Event, None]:
        """All events so far, then each as it comes, until the job is not live any more."""
        ear = Ear()
        last = -1
        try:
            past, live = await asyncio.to_thread(self._listen, tenant, job_id, ear)
            for event in past:
                last = event.number
                yield event
            if live:
                async for item in ear.items():
                    if isinstance(item, Event) and item.number > last:
                        yield item
        finally:
            self.line.deafen(job_id, ear)

    @contextmanager
    def held(self, job: Job) -> Iterator[None]:
        """Whoever leaves the block before the job is over wants it no more."""
        try:
            yield
        finally:
            if job.id in self.line.live:  # on a thread: it waits for the disk, and an event loop must not
                threading.Thread(target=self._drop, args=(job.id,), name="jobs-drop", daemon=True).start()

    def _drop(self, job_id: str) -> None:
        with self.line.lock:
            live = self.line.live.get(job_id)
            if live is not None and live.at_bench:
                live.wish = "cancel"
            elif live is not None:
                self.line.halt(live, "cancel")

    def seen(self, tenant: Tenant) -> None:
        """This tenant is here: what of its work is unfinished goes on. Cheap; the work happens elsewhere."""
        if self._arrivals.done_with(tenant):
            return
        with suppress(RuntimeError):
            self.bench.loop = asyncio.get_running_loop()
        self._arrivals.look(tenant)

    @property
    def idle(self) -> bool:
        """Is nobody at the bench?"""
        return self.line.idle

    def open(self) -> None:
        """Work, again after a `close`."""
        self.line.closing = False

    def close(self, seconds: float = 10.0) -> None:
        """
        Let go of the bench: what runs writes a checkpoint and goes back to the queue.

        It goes on when its tenant is seen after the next start. What has not stopped in time ends with the
        process, and goes on from its last checkpoint all the same.
        """
        self.line.closing = True
        self.shift.join(seconds)
        self.line.put_aside()
        self._arrivals.forget()

    # --- one's own jobs

    def _find(self, tenant: Tenant, job_id: str) -> Job:
        self._arrivals.settle(tenant)
        return self.line.job(tenant, job_id)

    def _listed(self, tenant: Tenant) -> Listed:
        self._arrivals.settle(tenant)
        listed = self.book.jobs(tenant)
        return replace(listed, jobs=tuple(self.line.known(tenant, job.id) or job for job in listed.jobs))

    def _events(self, tenant: Tenant, job_id: str) -> Sequence[Event]:
        self._find(tenant, job_id)
        return self.line.told(tenant, job_id)

    def _listen(self, tenant: Tenant, job_id: str, ear: Ear) -> tuple[Sequence[Event], bool]:
        job = self._find(tenant, job_id)
        live = self.line.listen(job, ear)
        return self._events(tenant, job_id), live

    def _made(self, tenant: Tenant, key: Key) -> Job | None:
        kept = self.book.keyed(tenant, key.name)
        if kept is None:
            return None
        job_id, asked = kept
        if asked != key.asked:
            raise Conflict(
                "This Idempotency-Key was sent before with another body. Send a new key with it.",
                code="idempotency_key_reused",
                param="Idempotency-Key",
            )
        with suppress(NotFound):  # a crash came between the key and its job
            return self._find(tenant, job_id)
        return None

    def _create(self, tenant: Tenant, order: Order, key: Key | None, alone: bool, ear: Ear | None) -> Job:
        self._arrivals.settle(tenant)
        with self._making:
            made = None if key is None else self._made(tenant, key)
            if made is not None:
                return made
            job_id = new_id("ftjob")
            self._room(tenant, alone)
            self._models.room(tenant, self.line.own(tenant))
            listed = self.book.jobs(tenant)
            over = [job for job in listed.jobs if job.over]
            if len(listed.jobs) - len(over) >= self._settings.max_jobs_kept:
                raise RateLimited(
                    f"{len(listed.jobs) - len(over)} jobs of yours are paused, waiting or running, and "
                    f"{self._settings.max_jobs_kept} are the limit. Cancel one, or let one go on.",
                    code="too_many_jobs",
                    retry_after=60,
                )
            for job in over[max(0, self._settings.max_jobs_kept - 1) :]:
                self._gone(tenant, job.id)
            job = Job(
                id=job_id,
                number=1 + max((job.number for job in listed.jobs), default=0),
                order=order,
                created_at=int(time.time()),
            )
            if key is not None:
                self.book.write_key(tenant, key.name, job.id, key.asked)
            with self.line.lock:
                self.book.write(tenant, job)
                self._arrivals.remember(tenant)
                live = self.line.enlist(tenant, job)
                if ear is not None:
                    live.ears.append(ear)
                self.line.say(live, "The job was created. Its rows are being read.")
                self.shift.go()
            return job

    def _room(self, tenant: Tenant, alone: bool) -> None:
        """Refuse where there is no place for one more."""
        with self.line.lock:
            if tenant.id in self._leaving:
                raise Busy("Everything of yours is being deleted.", code="tenant_leaving", retry_after=10)
            self.line.check_room(tenant, alone=alone)

    async def _stopped_soon(self, tenant: Tenant, job_id: str, wish: Stop) -> Job:
        """Stop it, and wait a while for it: on the event loop, for threads are few."""
        ear = Ear()
        job = await asyncio.to_thread(self._stop, tenant, job_id, wish, ear)
        if not job.live:
            return job
        try:
            await asyncio.wait_for(ear.end(), _SOON)
        except TimeoutError:
            return await self.find(tenant, job_id)
        finally:
            self.line.deafen(job_id, ear)
        job = await self.find(tenant, job_id)
        if job.over and job.status != _wished(wish):
            raise _is_over(job)  # it came to its end first
        return job

    async def _ended_soon(self, tenant: Tenant, job_id: str) -> None:
        with suppress(Conflict, NotFound):  # it has come to its own end, or is gone
            await self._stopped_soon(tenant, job_id, "cancel")

    def _stop(self, tenant: Tenant, job_id: str, wish: Stop, ear: Ear) -> Job:
        """The job as it is then; where it is at the bench, `ear` hears of its end."""
        self._find(tenant, job_id)
        to = _wished(wish)
        with self.line.lock:
            live = self.line.live.get(job_id)
            if live is None:
                job = self.line.job(tenant, job_id)
                if job.status != to or job.over:
                    job = move(job, to, phase="done", finished_at=job.now())  # raises where there is no way
                    self.book.write(tenant, job)
                    self.line.note(tenant, job, "The job was cancelled.")
                return job
            if not live.at_bench:
                self.line.halt(live, wish)
                return live.job
            if live.wish != "cancel":
                live.wish = wish
            live.ears.append(ear)
            return live.job

    def _resume(self, tenant: Tenant, job_id: str) -> Job:
        self._arrivals.settle(tenant)
        with self._making, self.line.lock:  # in one go: somebody else may cancel or delete it now
            job = self.line.job(tenant, job_id)
            if job.live:
                raise Conflict(f"The job is {job.status}, not paused.", code="wrong_status", status=400)
            job = move(job, "queued", phase="queued")
            self._room(tenant, alone=False)
            self._models.room(tenant, self.line.own(tenant))
            self.book.write(tenant, job)
            live = self.line.enlist(tenant, job)
            self.line.say(live, "The job is to go on, and waits for its turn.")
            self.shift.go()
            return job

    def _delete(self, tenant: Tenant, job_id: str) -> dict[str, int]:
        self._arrivals.settle(tenant)
        with self.line.lock:
            try:
                job = self.line.job(tenant, job_id)
            except Failed:
                job = None  # its record is damaged, and its owner wants it gone
            if job is not None and job.live:
                raise Conflict(f"The job is {job.status}. Cancel it first.", code="job_in_progress")
            self.line.unwritten.pop(job_id, None)
            return self._gone(tenant, job_id)

    def _gone(self, tenant: Tenant, job_id: str) -> dict[str, int]:
        """Remove what is a job's own from the disk, and then its checkpoints from memory; what there was."""
        removed = self.book.forget(tenant, job_id)
        if self.bench.loop is not None:
            with suppress(RuntimeError):  # it is closed, and with it what was in memory
                self.bench.loop.call_soon_threadsafe(self._models.let_go, tenant, job_id)
        return removed

    def _leave(self, tenant: Tenant) -> Sequence[str]:
        """The jobs that have to be stopped. What was about to begin has begun by then; nothing else will."""
        self._arrivals.settle(tenant)
        with self._making, self.line.lock:
            return [live.job.id for live in self.line.live.values() if live.tenant.id == tenant.id]

    def _forget(self, tenant: Tenant) -> dict[str, int]:
        with self.line.lock:
            for job_id, (owner, _) in list(self.line.unwritten.items()):
                if owner == tenant.id:
                    del self.line.unwritten[job_id]
        return self._store.delete_all(tenant)


def _wished(wish: Stop) -> Status:
    return "cancelled" if wish == "cancel" else "paused"


def _is_over(job: Job) -> Conflict:
    return Conflict(f"The job is {job.status} already.", code="wrong_status", status=400)
