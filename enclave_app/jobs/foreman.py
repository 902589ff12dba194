"""
Whose turn it is, and the work: from an order to a model that is served, or to a reason why not.

There is one bench: one training at a time, for there is memory for one. Who waits longest without having had
it is next, tenant by tenant. Reading the rows happens before, on a thread of its own, so that what is wrong
with them is told at once. What a caller is told has been written down before (`book.py`), and what runs
writes checkpoints as they come; whatever is killed, the job goes on from the last one when its tenant is next
seen.

    reading → admitted → training → published → compared → receipt → succeeded

A tenant's key is in memory only while the tenant has live work. A job that ends because the disk is full may
find no room for its last record either: it is then kept here and written when its tenant comes again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Protocol

from ..catalogue import model_id
from ..checkpoint import Checkpoint
from ..engines.adapter import Adapter
from ..prompts import Template
from ..refusals import Busy, Conflict, Failed, NotFound, RateLimited, Refusal
from ..settings import Settings
from ..store import Store, new_id
from ..tenants import Tenant
from ..training import Progress, Snapshot, Stop, Task, Trained, Trainer, TrainingFailed, Unlearnable
from . import Event, Failure, Job, JobPhase, Level, Order, Status, move, pinned, results_of
from .book import Book, Diary, Listed, digest
from .reading import Reading, Stopped
from .receipts import NoReceipt

log = logging.getLogger("enclave_app")

MOST_FIGURES: Final = 5000
"""Of one job. A longer training tells the figures of every second step, or of every third …"""
_DEATHS: Final = 3  # of the training's process without a new checkpoint between, until the job is given up
_FLUSHED: Final = 1.0  # seconds between two writings of events
_SOON: Final = 15.0  # seconds that a caller who stops a job waits for it to have stopped
_COMPARED: Final = 300.0  # seconds that a new model may take to answer the held-back prompts
_REMEMBERED: Final = 1 << 16
MOST_EARS: Final = 16  # that listen to one job
_UNHEARD: Final = 256  # things that somebody has not listened to yet
_DAY: Final = 86400
_ABSURD: Final = 20 * 365 * _DAY
_PHASES: Final[tuple[JobPhase, ...]] = ("loading", "training", "checking")


class Rows(Protocol):
    """What knows the rows and the model they are for; see `material.py`. All of it raises `Refusal`."""

    def read(self, tenant: Tenant, order: Order, stopped: Callable[[], bool] | None = None) -> Reading: ...

    def admit(self, order: Order, reading: Reading, *, alone: bool = True) -> dict[str, Any] | None:
        """The memory that it will take, as it is told; raises where it does not fit beside nothing else."""

    def digest(self, template: Template) -> str: ...

    def start(self, tenant: Tenant, order: Order) -> Adapter | None:
        """The adapter that the order wants to go on from."""


class Models(Protocol):
    """Where trained models are published and asked; see `../catalogue.py`."""

    def room(self, tenant: Tenant, coming: int = 0) -> None: ...

    def publish(
        self, tenant: Tenant, job: str, suffix: str, adapter: Adapter, more: Mapping[str, Any]
    ) -> str: ...

    async def check(
        self,
        tenant: Tenant,
        name: str,
        probes: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
    ) -> dict[str, Any]: ...

    async def prepare(self, tenant: Tenant, name: str) -> float: ...

    async def delete_all(self, tenant: Tenant) -> Sequence[str]: ...


class Signer(Protocol):
    """Signs what was trained on what; see `receipts.py`."""

    def sign(
        self,
        job: Job,
        adapter: Adapter,
        *,
        data_sha256: str,
        validation_sha256: str | None = None,
        start: Adapter | None = None,
    ) -> bytes: ...


Expire = Callable[[Tenant], None]
"""Removes files and uploads of a tenant that are over."""

Keep = Callable[[Tenant, str, str, bytes], None]
"""Makes bytes a file of the tenant's: its id, what it is called, the bytes."""

Heard = Event | Progress | Job
"""What one who listens to a job hears; a `Job` that is not live is the last."""


@dataclass(frozen=True, slots=True)
class Key:
    """An idempotency key and what was asked with it, both as digests."""

    name: str
    asked: str

    @classmethod
    def of(cls, key: str, asked: str) -> Key:
        return cls(digest(key), digest(asked))


class Ear:
    """
    Somebody who listens to a job, on the event loop that made this.

    Of who does not take what they hear, `Progress` is dropped: a job's events are so many and no more, its
    steps are not.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        self.deaf = False  # gone, perhaps before the foreman knew of it

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


@dataclass(slots=True, eq=False)
class _Live:
    """A job that the enclave has work with."""

    tenant: Tenant
    job: Job
    diary: Diary
    ears: list[Ear] = field(default_factory=list)
    wish: Stop = ""
    late: bool = False  # it ran out of its time
    reading: bool = False  # a thread reads its rows
    at_bench: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    began: float = 0.0  # at the bench, by the monotonic clock
    flushed: float = 0.0
    pending: dict[str, Any] | None = None  # figures of the last step, until nothing can be added to them
    told_step: int = 0
    told_loss: int = 0  # the step of the last evaluation that was told
    told_kept: int = 0  # the last checkpoint that was
    kept_step: int = 0  # of the last checkpoint
    damaged: frozenset[int] = frozenset()  # steps of checkpoints that cannot be read

    @property
    def ran(self) -> float:
        return self.job.ran_seconds + (time.monotonic() - self.began if self.began else 0.0)


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
        self.trainer = trainer
        self.book = Book(store)
        self.rows = rows
        self._settings = settings
        self._store = store
        self._models = models
        self._base = base  # fingerprint of the model that is trained on
        self._signer = signer
        self._expire = expire
        self._keep = keep
        self._lock = threading.RLock()  # over everything below, and over jobs that are not at the bench
        self._making = threading.Lock()  # one order at a time is taken
        self._live: dict[str, _Live] = {}
        self._seen: OrderedDict[str, threading.Event] = OrderedDict()
        self._leaving: set[str] = set()  # tenants whose everything is being removed; touched by event loops
        self._unwritten: dict[str, tuple[str, Job]] = {}  # by job, with the tenant's id
        self._turns: dict[str, int] = {}  # by tenant: when it had the bench last
        self._turn = 0
        self._held: tuple[str, Reading] | None = None  # of one job: rows take much memory
        self._reader: threading.Thread | None = None
        self._bench: threading.Thread | None = None
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._boot = (time.time(), time.monotonic())

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
        self._loop = asyncio.get_running_loop()
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
        self._loop = asyncio.get_running_loop()
        return await asyncio.to_thread(self._resume, tenant, job_id)

    async def delete(self, tenant: Tenant, job_id: str) -> dict[str, int]:
        """Remove a job that is not live, with its events, checkpoints and receipt; its model stays."""
        return await asyncio.to_thread(self._delete, tenant, job_id)

    async def forget(self, tenant: Tenant) -> dict[str, int]:
        """Stop what runs for the tenant and remove everything it has; tells what there was."""
        if tenant.id in self._leaving:
            raise Busy("Everything of yours is being deleted already.", code="tenant_leaving", retry_after=10)
        self._leaving.add(tenant.id)
        try:
            live = await asyncio.to_thread(self._leave, tenant)
            await asyncio.gather(*(self._ended_soon(tenant, job_id) for job_id in live))
            if await asyncio.to_thread(self._own, tenant, ending=True):
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
        return await asyncio.to_thread(self._metrics, tenant, job_id)

    def _metrics(self, tenant: Tenant, job_id: str) -> Sequence[dict[str, Any]]:
        self._find(tenant, job_id)
        return self._curve(tenant, job_id)

    def _curve(self, tenant: Tenant, job_id: str) -> Sequence[dict[str, Any]]:
        rows: dict[int, dict[str, Any]] = {}
        for event in self._told(tenant, job_id):
            if event.data is not None and event.step is not None:
                known = {name: value for name, value in event.data.items() if value is not None}
                rows[event.step] = {"time": event.created_at, **rows.get(event.step, {}), **known}
        names = ("loss", "validation_loss", "learning_rate", "tokens_per_second", "epoch", "time")
        told = {"loss": "train_loss", "validation_loss": "valid_loss"}
        return [
            {"step": step, **{name: row.get(told.get(name, name)) for name in names}}
            for step, row in sorted(rows.items())
        ]

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
            self._deafen(job_id, ear)

    @contextmanager
    def held(self, job: Job) -> Iterator[None]:
        """Whoever leaves the block before the job is over wants it no more."""
        try:
            yield
        finally:
            if job.id in self._live:  # on a thread: it waits for the disk, and an event loop must not
                threading.Thread(target=self._drop, args=(job.id,), name="jobs-drop", daemon=True).start()

    def _drop(self, job_id: str) -> None:
        with self._lock:
            live = self._live.get(job_id)
            if live is not None and live.at_bench:
                live.wish = "cancel"
            elif live is not None:
                self._halt(live, "cancel")

    def seen(self, tenant: Tenant) -> None:
        """This tenant is here: what of its work is unfinished goes on. Cheap; the work happens elsewhere."""
        if tenant.id in self._seen and all(owner != tenant.id for owner, _ in list(self._unwritten.values())):
            return
        with suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
        # Any token is a tenant. One that has nothing costs no thread, and is not remembered.
        if self.book.any(tenant):
            threading.Thread(target=self._look, args=(tenant,), name="jobs-seen", daemon=True).start()

    def _look(self, tenant: Tenant) -> None:
        try:
            self._settle(tenant)
        except Exception as error:  # noqa: BLE001 - told by type alone; the next request tries again
            _failure(error)

    @property
    def idle(self) -> bool:
        """Is nobody at the bench?"""
        with self._lock:
            return not any(live.at_bench for live in self._live.values())

    def open(self) -> None:
        """Work, again after a `close`."""
        self._closing = False

    def close(self, seconds: float = 10.0) -> None:
        """
        Let go of the bench: what runs writes a checkpoint and goes back to the queue.

        It goes on when its tenant is seen after the next start. What has not stopped in time ends with the
        process, and goes on from its last checkpoint all the same.
        """
        self._closing = True
        until = time.monotonic() + seconds
        for thread in (self._bench, self._reader):
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))
        with self._lock:
            for live in [each for each in self._live.values() if not (each.at_bench or each.reading)]:
                with suppress(Refusal, OSError):
                    live.diary.flush()
                self._dismiss(live)
            self._seen.clear()

    # --- one's own jobs

    def _find(self, tenant: Tenant, job_id: str) -> Job:
        self._settle(tenant)
        return self._known(tenant, job_id) or self.book.job(tenant, job_id)

    def _known(self, tenant: Tenant, job_id: str) -> Job | None:
        """What is newer here than on the disk."""
        live = self._live.get(job_id)
        if live is not None and live.tenant.id == tenant.id:
            return live.job
        owner, job = self._unwritten.get(job_id, (None, None))
        return job if owner == tenant.id else None

    def _listed(self, tenant: Tenant) -> Listed:
        self._settle(tenant)
        listed = self.book.jobs(tenant)
        return replace(listed, jobs=tuple(self._known(tenant, job.id) or job for job in listed.jobs))

    def _events(self, tenant: Tenant, job_id: str) -> Sequence[Event]:
        self._find(tenant, job_id)
        return self._told(tenant, job_id)

    def _told(self, tenant: Tenant, job_id: str) -> Sequence[Event]:
        with self._lock:
            live = self._live.get(job_id)
            fresh = [] if live is None else live.diary.unwritten
        kept = {event.number: event for event in self.book.events(tenant, job_id)}
        kept |= {event.number: event for event in fresh}
        return [event for _, event in sorted(kept.items())]

    def _listen(self, tenant: Tenant, job_id: str, ear: Ear) -> tuple[Sequence[Event], bool]:
        job = self._find(tenant, job_id)
        with self._lock:
            live = self._live.get(job.id)
            if live is not None:
                live.ears = [each for each in live.ears if not each.deaf]
                if len(live.ears) >= MOST_EARS:
                    raise RateLimited(
                        f"{MOST_EARS} streams of this job are open, which is the limit; close one.",
                        code="too_many_streams",
                        retry_after=10,
                    )
                live.ears.append(ear)
        return self._events(tenant, job_id), live is not None

    def _deafen(self, job_id: str, ear: Ear) -> None:
        # Without the lock, which may be held while the disk is waited for: this runs on event loops.
        ear.deaf = True
        live = self._live.get(job_id)
        if live is not None:
            with suppress(ValueError):
                live.ears.remove(ear)

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
        self._settle(tenant)
        with self._making:
            made = None if key is None else self._made(tenant, key)
            if made is not None:
                return made
            job_id = new_id("ftjob")
            self._room(tenant, alone)
            self._models.room(tenant, self._own(tenant))
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
                self.book.forget(tenant, job.id)
            job = Job(
                id=job_id,
                number=1 + max((job.number for job in listed.jobs), default=0),
                model_id=model_id(job_id),
                order=order,
                created_at=int(time.time()),
            )
            if key is not None:
                self.book.write_key(tenant, key.name, job.id, key.asked)
            with self._lock:
                self.book.write(tenant, job)
                self._remember(tenant)
                live = self._enlist(tenant, job)
                if ear is not None:
                    live.ears.append(ear)
                self._say(live, "The job was created. Its rows are being read.")
                self._go()
            return job

    def _room(self, tenant: Tenant, alone: bool) -> None:
        """Refuse where there is no place for one more."""
        with self._lock:
            if tenant.id in self._leaving:
                raise Busy("Everything of yours is being deleted.", code="tenant_leaving", retry_after=10)
            own = self._own(tenant)
            if alone and own:
                raise Conflict(
                    "A fine-tuning of yours is running or waiting already. Wait until it has answered "
                    "(or close its connection, which cancels it), then send this one again.",
                    code="training_in_progress",
                )
            if own >= self._settings.max_jobs_each:
                raise RateLimited(
                    f"{own} jobs of yours run or wait, and {self._settings.max_jobs_each} are the limit. "
                    "Wait until one is over, or cancel one.",
                    code="too_many_jobs",
                    retry_after=60,
                )
            if len(self._live) > self._settings.max_jobs_waiting:
                raise Busy(
                    f"{len(self._live) - 1} trainings are waiting already; try again in a few minutes.",
                    code="training_queue_full",
                    retry_after=60,
                )

    def _own(self, tenant: Tenant, *, ending: bool = False) -> int:
        """How many of the tenant's jobs run or wait; one that is about to end does not count, or does."""
        with self._lock:
            return sum(
                live.tenant.id == tenant.id and (ending or live.wish != "cancel")
                for live in self._live.values()
            )

    async def _stopped_soon(self, tenant: Tenant, job_id: str, wish: Stop) -> Job:
        """Stop it, and wait a while for it: on the event loop, for threads are few."""
        ear = Ear()
        job = await asyncio.to_thread(self._stop, tenant, job_id, wish, ear)
        if not job.live:
            return job
        try:
            await asyncio.wait_for(_end_of(ear), _SOON)
        except TimeoutError:
            return await self.find(tenant, job_id)
        finally:
            self._deafen(job_id, ear)
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
        with self._lock:
            live = self._live.get(job_id)
            if live is None:
                job = self._known(tenant, job_id) or self.book.job(tenant, job_id)
                if job.status != to or job.over:
                    job = move(job, to, phase="done", finished_at=job.now())  # raises where there is no way
                    self.book.write(tenant, job)
                    self._note(tenant, job, "The job was cancelled.")
                return job
            if not live.at_bench:
                self._halt(live, wish)
                return live.job
            if live.wish != "cancel":
                live.wish = wish
            live.ears.append(ear)
            return live.job

    def _halt(self, live: _Live, wish: Stop) -> None:
        if wish == "pause":
            job = move(live.job, "paused", phase="paused", ran_seconds=live.ran)
            self._finish(live, job, "The job is paused. Resume it to let it go on.")
        else:
            job = move(live.job, "cancelled", phase="done", finished_at=live.job.now(), ran_seconds=live.ran)
            self._finish(live, job, "The job was cancelled.")

    def _resume(self, tenant: Tenant, job_id: str) -> Job:
        self._settle(tenant)
        with self._making, self._lock:  # in one go: somebody else may cancel or delete it now
            job = self._known(tenant, job_id) or self.book.job(tenant, job_id)
            if job.live:
                raise Conflict(f"The job is {job.status}, not paused.", code="wrong_status", status=400)
            job = move(job, "queued", phase="queued")
            self._room(tenant, alone=False)
            self._models.room(tenant, self._own(tenant))
            self.book.write(tenant, job)
            live = self._enlist(tenant, job)
            self._say(live, "The job is to go on, and waits for its turn.")
            self._go()
            return job

    def _delete(self, tenant: Tenant, job_id: str) -> dict[str, int]:
        self._settle(tenant)
        with self._lock:
            try:
                job = self._known(tenant, job_id) or self.book.job(tenant, job_id)
            except Failed:
                job = None  # its record is damaged, and its owner wants it gone
            if job is not None and job.live:
                raise Conflict(f"The job is {job.status}. Cancel it first.", code="job_in_progress")
            self._unwritten.pop(job_id, None)
            return self.book.forget(tenant, job_id)

    def _leave(self, tenant: Tenant) -> Sequence[str]:
        """The jobs that have to be stopped. What was about to begin has begun by then; nothing else will."""
        self._settle(tenant)
        with self._making, self._lock:
            return [live.job.id for live in self._live.values() if live.tenant.id == tenant.id]

    def _forget(self, tenant: Tenant) -> dict[str, int]:
        with self._lock:
            for job_id, (owner, _) in list(self._unwritten.items()):
                if owner == tenant.id:
                    del self._unwritten[job_id]
        return self._store.delete_all(tenant)

    # --- who is here, and what is unfinished

    def _settle(self, tenant: Tenant) -> None:
        """What a tenant left unfinished is picked up, once in this boot, before anything is told of it."""
        with self._lock:
            event = self._seen.get(tenant.id)
            mine = event is None
            if event is None:
                event = self._seen[tenant.id] = threading.Event()
        if not mine:
            event.wait(60)
            self._write_late(tenant)
            return
        try:
            self._pick_up(tenant)
        except BaseException:
            with self._lock:
                self._seen.pop(tenant.id, None)  # the next request tries again
            raise
        finally:
            event.set()
        with self._lock:
            if self._seen.get(tenant.id) is event:
                self._remember(tenant)

    def _remember(self, tenant: Tenant) -> None:
        """Nothing of this tenant's is to be picked up. Who is forgotten again is looked at again, no more."""
        self._seen[tenant.id] = _SETTLED
        self._seen.move_to_end(tenant.id)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def _pick_up(self, tenant: Tenant) -> None:
        with self._lock:  # also while it is read: what is told here must still be so when it is acted upon
            listed = self.book.jobs(tenant)
            for job in reversed(listed.jobs):
                if not job.live or job.id in self._live or job.id in self._unwritten or self._closing:
                    continue
                if job.status == "running":
                    job = move(job, "queued", phase="queued")
                    with suppress(Refusal, OSError):  # a full disk keeps nobody from going on
                        self.book.write(tenant, job)
                    live = self._enlist(tenant, job)
                    self._say(
                        live, "The enclave was started anew; the job waits to go on where it was.", "warn"
                    )
                else:
                    self._enlist(tenant, job)
            self._go()
        self._sweep(tenant, listed)
        if self._expire is not None:
            try:
                self._expire(tenant)
            except Exception as error:  # noqa: BLE001 - old files are no reason to tell nothing of jobs
                _failure(error)

    def _write_late(self, tenant: Tenant) -> None:
        """Last records that the full disk had no room for."""
        with self._lock:
            for job_id, (owner, job) in list(self._unwritten.items()):
                if owner == tenant.id:
                    with suppress(Refusal, OSError):
                        self.book.write(tenant, job)
                        del self._unwritten[job_id]
                        if job.error is not None:
                            self._note(tenant, job, job.error.message, "error")

    def _sweep(self, tenant: Tenant, listed: Listed) -> None:
        """
        Remove what is older than the operator keeps things.

        Not where the clock is not to be believed: it jumped since the start, or says that everything here is
        decades old (threats.md S-30).
        """
        days = self._settings.retention_days
        now = time.time()
        wall, steady = self._boot
        if not days or abs((now - wall) - (time.monotonic() - steady)) > _DAY:
            return
        ages = [job.finished_at or job.created_at for job in listed.jobs]
        if not ages or now - max(ages) > _ABSURD:
            return
        for job in listed.jobs:
            if not job.live and (job.finished_at or job.created_at) < now - days * _DAY:
                with self._lock:
                    if job.id not in self._live:  # resumed just now
                        self.book.forget(tenant, job.id)

    # --- in all threads, under the lock

    def _enlist(self, tenant: Tenant, job: Job) -> _Live:
        live = _Live(tenant, job, self.book.diary(tenant, job.id))
        self._live[job.id] = live
        self._turns.setdefault(tenant.id, 0)
        return live

    def _dismiss(self, live: _Live) -> None:
        """The enclave has no more work with it; with the tenant's last live job its key is forgotten."""
        with self._lock:
            self._live.pop(live.job.id, None)
            if not any(each.tenant.id == live.tenant.id for each in self._live.values()):
                self._turns.pop(live.tenant.id, None)
            if self._held is not None and self._held[0] == live.job.id:
                self._held = None
            live.ended.set()
            for ear in tuple(live.ears):
                ear.hear(live.job if not live.job.live else replace(live.job, status="paused"))
            live.ears.clear()

    def _go(self) -> None:
        """Let the threads run for which there is work."""
        with self._lock:
            if self._closing:
                return
            if not _runs(self._reader) and self._next("validating_files") is not None:
                self._reader = threading.Thread(target=self._reads, name="jobs-reader", daemon=True)
                self._reader.start()
            if not _runs(self._bench) and self._next("queued") is not None:
                self._bench = threading.Thread(target=self._works, name="jobs-bench", daemon=True)
                self._bench.start()

    def _next(self, status: str) -> _Live | None:
        """Of the tenant that has waited longest for the bench, the oldest job."""
        waiting = [
            live
            for live in self._live.values()
            if live.job.status == status and not live.at_bench and not live.reading
        ]
        return min(
            waiting, key=lambda live: (self._turns.get(live.tenant.id, 0), live.job.number), default=None
        )

    def _say(
        self, live: _Live, message: str, level: Level = "info", data: dict[str, Any] | None = None
    ) -> None:
        with self._lock:
            event = live.diary.note(message, level, data)
            for ear in tuple(live.ears):
                ear.hear(event)

    def _note(self, tenant: Tenant, job: Job, message: str, level: Level = "info") -> None:
        """An event of a job that is not live."""
        with suppress(Refusal, OSError):
            diary = self.book.diary(tenant, job.id)
            diary.note(message, level)
            diary.flush()

    def _put(self, live: _Live, job: Job) -> None:
        """What is told from now on, written down."""
        self.book.write(live.tenant, job)
        live.job = job

    def _finish(self, live: _Live, job: Job, message: str, level: Level = "info") -> None:
        """The end of the enclave's work with it. A full disk does not keep a job from being over."""
        with self._lock:
            self._figures(live)
            self._say(live, message, level)
            with suppress(Refusal, OSError):
                live.diary.flush()
            try:
                self._put(live, job)
            except (Refusal, OSError):
                live.job = job
                self._unwritten[job.id] = (live.tenant.id, job)
            with suppress(OSError):
                self.book.thin(live.tenant, job.id, self._settings.max_checkpoints, live.damaged)
            self._dismiss(live)

    def _fail(self, live: _Live, failure: Failure) -> None:
        with self._lock:
            job = replace(live.job, error=failure, ran_seconds=live.ran)
            self._finish(
                live,
                move(job, "failed", phase="done", finished_at=job.now()),
                failure.message,
                "error",
            )

    # --- the reader

    def _reads(self) -> None:
        while True:
            with self._lock:
                live = None if self._closing else self._next("validating_files")
                if live is None:
                    self._reader = None
                    return
                live.reading = True
            try:
                reading = self.rows.read(live.tenant, live.job.order, self._unwanted(live))
                estimate = self.rows.admit(live.job.order, reading, alone=self.idle)
            except Stopped:
                live.reading = False
                continue
            except BaseException as error:  # noqa: BLE001 - told by type alone
                with self._lock:
                    live.reading = False
                    if not live.ended.is_set():
                        self._fail(live, _failure(error))
                continue
            with self._lock:
                live.reading = False
                if live.ended.is_set():  # cancelled or paused meanwhile
                    continue
                try:
                    told = {"data": reading.report, "estimate": estimate}
                    order = pinned(live.job.order, reading.report)
                    self._put(live, move(live.job, "queued", order=order, **told))
                except (Refusal, OSError) as error:
                    self._fail(live, _failure(error))
                    continue
                self._say(live, f"{len(reading.examples)} rows are ready. The job waits for its turn.")
                self._hear(live, Progress("queued"))
                if self._held is None:
                    self._held = (live.job.id, reading)
                self._go()
            del reading

    def _unwanted(self, live: _Live) -> Callable[[], bool]:
        return lambda: live.ended.is_set() or self._closing

    # --- the bench

    def _works(self) -> None:
        while True:
            with self._lock:
                live = None if self._closing else self._next("queued")
                if live is None:
                    self._bench = None
                    return
                live.at_bench = True
                self._turn += 1
                self._turns[live.tenant.id] = self._turn
            try:
                self._work(live)
            except BaseException as error:  # noqa: BLE001 - told by type alone
                if not live.ended.is_set():
                    self._fail(live, _failure(error))
            live.at_bench = False

    def _work(self, live: _Live) -> None:
        """From the queue to the end, or to a stop on the way."""
        again = live.job.started_at is not None
        live.began = time.monotonic()
        running = move(live.job, "running", phase="reading", started_at=live.job.started_at or live.job.now())
        self._put(live, running)
        self._hear(live, Progress("reading"))
        try:
            reading = self._reading(live)
        except Stopped:
            self._stopped(live)
            return
        order = live.job.order
        task = Task(
            examples=reading.examples,
            recipe=order.recipe,
            template=reading.template.value,
            template_digest=self.rows.digest(reading.template),
            validation=reading.validation,
            probes=reading.probes,
            start=self.rows.start(live.tenant, order),
        )
        trained = self._learn(live, task, again)
        if trained is None:
            self._stopped(live)
        else:
            self._publish(live, task, trained)

    def _reading(self, live: _Live) -> Reading:
        with self._lock:
            held, self._held = self._held, None
        if held is not None and held[0] == live.job.id:
            reading = held[1]
        else:
            reading = self.rows.read(live.tenant, live.job.order, lambda: bool(self._stop_of(live)))
        estimate = self.rows.admit(live.job.order, reading)
        order = pinned(live.job.order, reading.report)
        self._put(live, replace(live.job, order=order, data=reading.report, estimate=estimate))
        return reading

    def _learn(self, live: _Live, task: Task, again: bool) -> Trained | None:
        """Train, and go on from the last checkpoint as often as the training's process dies."""
        deaths = 0
        while True:
            snapshot, damaged = self.book.newest(live.tenant, live.job.id, live.damaged)
            step = 0 if snapshot is None else snapshot.step
            live.damaged |= frozenset(damaged)
            if again:
                self._go_on(live, snapshot, damaged)
                task = replace(task, resume=None if snapshot is None else snapshot.state)
            live.told_step, live.pending, live.kept_step = step, None, step
            live.told_loss = live.told_kept = step
            del snapshot
            try:
                return self._steps(live, task)
            except TrainingFailed as error:
                if error.code == "snapshot_unusable" and task.resume is not None:
                    live.damaged |= {step}  # the one before may be better
                    self._say(live, f"The checkpoint at step {step} cannot be gone on from.", "warn")
                    continue
                deaths = 1 if live.kept_step > step else deaths + 1
                if error.code != "training_process_died" or deaths >= _DEATHS or self._stop_of(live):
                    raise
                self._say(live, "The training's process died; another goes on.", "warn")
                again = True

    def _go_on(self, live: _Live, snapshot: Snapshot | None, damaged: Sequence[int]) -> None:
        for step in damaged:
            self._say(live, f"The checkpoint at step {step} is damaged; it is left as it is.", "warn")
        step = 0 if snapshot is None else snapshot.step
        live.diary.drop_figures_after(step)
        if snapshot is None:
            self._say(live, "There is no checkpoint yet: the training begins again.")
            return
        self._put(live, replace(live.job, resumed=live.job.resumed + 1, resumed_from=step))
        self._say(live, f"The training goes on from the checkpoint at step {step}.")

    def _steps(self, live: _Live, task: Task) -> Trained | None:
        """What the trainer says, as it comes; None where it stopped because it was told to."""
        trained: Trained | None = None
        for item in self.trainer.train(task, lambda: self._stop_of(live)):
            if isinstance(item, Trained):
                trained = item
            elif isinstance(item, Snapshot):
                item = replace(item, loss=_finite(item.loss), validation_loss=_finite(item.validation_loss))
                self._figures(live)
                live.diary.flush()  # before the checkpoint: whoever goes on from it has the curve up to it
                self.book.add_checkpoint(live.tenant, live.job, task, item, self._base)
                self.book.thin(live.tenant, live.job.id, self._settings.max_checkpoints, live.damaged)
                live.kept_step = item.step
                self._put(live, replace(live.job, ran_seconds=live.ran))
                live.began = time.monotonic()
                if not _too_soon(live.told_kept, item.step, item.total_steps):
                    live.told_kept = item.step
                    self._say(live, f"A checkpoint was written at step {item.step}.")
            else:
                self._progress(live, item)
            if time.monotonic() - live.flushed > _FLUSHED:
                live.diary.flush()
                live.flushed = time.monotonic()
        self._figures(live)
        return trained

    def _stop_of(self, live: _Live) -> Stop:
        if live.wish:
            return live.wish
        if self._closing:
            return "pause"
        most = self._settings.max_training_seconds
        if most and live.ran > most:
            live.late = True
            return "cancel"
        return ""

    def _progress(self, live: _Live, at: Progress) -> None:
        phase: JobPhase = at.phase if at.phase in _PHASES else "training"
        at = replace(at, loss=_finite(at.loss), validation_loss=_finite(at.validation_loss))
        told = {name: value for name, value in asdict(at).items() if name != "phase"}
        if told["validation_loss"] is None:
            told["validation_loss"] = live.job.progress.get("validation_loss")
        if at.total_steps:
            told["percent"] = round(100 * at.step / at.total_steps, 1)
        live.job = replace(live.job, phase=phase, progress=told if at.total_steps else live.job.progress)
        self._hear(live, at)
        if at.phase != "training" or not at.step:
            return
        figures = {
            "step": at.step,
            "total_steps": at.total_steps,
            "train_loss": at.loss,
            "valid_loss": at.validation_loss,
            "learning_rate": at.learning_rate,
            "tokens_per_second": at.tokens_per_second,
            "epoch": at.epoch,
        }
        pending = live.pending
        if pending is not None and pending["step"] == at.step:
            pending |= {name: value for name, value in figures.items() if value is not None}
            return
        self._figures(live)
        if at.validation_loss is not None:
            if not _too_soon(live.told_loss, at.step, at.total_steps):
                live.told_loss, live.pending = at.step, figures
        elif at.step > live.told_step and not _too_soon(live.told_step, at.step, at.total_steps):
            live.pending = figures

    def _figures(self, live: _Live) -> None:
        """The last step's figures are whole: tell them."""
        figures, live.pending = live.pending, None
        if figures is None:
            return
        live.told_step = max(live.told_step, figures["step"])
        loss = "" if figures["train_loss"] is None else f": training loss {figures['train_loss']:.4f}"
        more = "" if figures["valid_loss"] is None else f", validation loss {figures['valid_loss']:.4f}"
        told = f"Step {figures['step']}/{figures['total_steps']}{loss}{more}"
        self._say(live, told, data=figures)

    def _hear(self, live: _Live, at: Progress) -> None:
        with self._lock:
            for ear in tuple(live.ears):
                ear.hear(at)

    def _stopped(self, live: _Live) -> None:
        """The trainer ended without a result because it was told to."""
        with self._lock:
            if live.wish:
                self._halt(live, live.wish)
            elif live.late:
                minutes = self._settings.max_training_seconds / 60
                self._fail(
                    live,
                    Failure(
                        f"The training took longer than the {minutes:g} minutes that are allowed here. Use "
                        "fewer rows, epochs or steps; its last checkpoint can be gone on from.",
                        "time_limit",
                    ),
                )
            elif self._closing:
                job = move(live.job, "queued", phase="queued", ran_seconds=live.ran)
                self._finish(live, job, "The enclave is stopping; the job goes on when it is back.", "warn")
            else:
                raise TrainingFailed("The training ended without a result.")

    def _publish(self, live: _Live, task: Task, trained: Trained) -> None:
        """The adapter becomes a model, is compared with what was trained, and is signed for."""
        with self._lock:
            if live.wish == "cancel":
                self._halt(live, "cancel")
                return
        report = _short(trained.report)
        job = replace(
            live.job,
            phase="publishing",
            report=report,
            adapter=trained.adapter.manifest.weights_sha256,
            ran_seconds=live.ran,
        )
        live.began = time.monotonic()
        live.job = job
        at = Progress("publishing", job.progress.get("step", 0), job.progress.get("total_steps", 0))
        self._hear(live, replace(at, loss=job.progress.get("loss"), eta_seconds=0.0))
        name = self._models.publish(live.tenant, job.id, job.order.suffix, trained.adapter, report)
        live.job = job = replace(job, fine_tuned_model=name, phase="checking")
        self._say(live, f"The model {name} is published.")
        live.job = job = replace(job, serving=self._compared(live, name, task, trained))
        job = replace(job, finished_at=job.now(), ran_seconds=live.ran)
        job = replace(job, receipt=self._signed(live, job, task, trained), results=self._kept(live))
        self._finish(live, move(job, "succeeded", phase="done"), "The job succeeded.")

    def _compared(self, live: _Live, name: str, task: Task, trained: Trained) -> dict[str, Any] | None:
        """The model is made ready, and asked what the trainer has asked it, where it has."""
        loop = self._loop
        if loop is None or not loop.is_running():
            return None

        async def compare() -> dict[str, Any] | None:
            if trained.continuations:
                return await self._models.check(live.tenant, name, task.probes, trained.continuations)
            await self._models.prepare(live.tenant, name)
            return None

        comparing = asyncio.run_coroutine_threadsafe(compare(), loop)
        try:
            told = comparing.result(_COMPARED)
        except Exception as error:  # noqa: BLE001 - the model is there, and its owner is told
            comparing.cancel()
            log.error("comparison: %s", type(error).__name__)
            words = "What is served could not be compared with what was trained; ask it to see."
            self._say(live, words, "warn")
            return None
        if told is not None:
            self._say(
                live,
                f"Of {told['tokens']} tokens that were compared, {told['equal']} are served as they were "
                "trained.",
            )
        return told

    def _signed(self, live: _Live, job: Job, task: Task, trained: Trained) -> bool:
        order = job.order
        if self._signer is None or not order.training.sha256:
            return False
        try:
            receipt = self._signer.sign(
                job,
                trained.adapter,
                data_sha256=order.training.sha256,
                validation_sha256=None if order.validation is None else order.validation.sha256,
                start=task.start,
            )
            self.book.write_receipt(live.tenant, job.id, receipt)
        except NoReceipt as error:
            self._say(live, str(error), "warn")
            return False
        except Exception as error:  # noqa: BLE001 - the model is there, and its owner is told
            log.error("receipt: %s", type(error).__name__)
            self._say(live, "There is no receipt: it could not be signed or kept.", "warn")
            return False
        return True

    def _kept(self, live: _Live) -> bool:
        """The curve, as a file."""
        if self._keep is None:
            return False
        try:
            curve = self._curve(live.tenant, live.job.id)
            self._keep(live.tenant, results_of(live.job.id), "step_metrics.csv", _csv(curve))
        except (Refusal, OSError):
            self._say(live, "There is no file of the figures: it could not be written.", "warn")
            return False
        return True


def _finite(value: Any) -> Any:
    """What JSON can tell: a loss that is no number any more is none, wherever it stands."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _short(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report with no more validation losses than a job may have figures; that of what was kept stays."""
    told: dict[str, Any] = _finite(report)
    losses = told.get("validation_losses") or []
    every = 1 + len(losses) // MOST_FIGURES
    if every > 1:
        best, last = told.get("best_step"), losses[-1]
        told["validation_losses"] = [
            each for at, each in enumerate(losses) if at % every == 0 or each[0] == best or each is last
        ]
    return told


def _csv(curve: Sequence[Mapping[str, Any]]) -> bytes:
    """As OpenAI writes it; accuracies are not known here."""
    lines = ["step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"]
    for row in curve:
        told = ("" if row[name] is None else repr(row[name]) for name in ("loss", "validation_loss"))
        lines.append(f"{row['step']},{next(told)},,{next(told)},")
    return "\n".join([*lines, ""]).encode()


def _failure(error: BaseException) -> Failure:
    """What its owner is told of it. The words of an unexpected error, which could hold a row, go nowhere."""
    if isinstance(error, Refusal):
        return Failure(error.message, error.code, error.param, error.status)
    if isinstance(error, Unlearnable):
        return Failure(str(error), error.code)
    if isinstance(error, TrainingFailed):
        return Failure(str(error), error.code, status=500)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(
            "The enclave's disk is full; delete what you no longer need, or try again later.",
            "no_space",
            status=507,
        )
    if isinstance(error, MemoryError):
        return Failure("The enclave ran out of memory. Use fewer or shorter rows.", "no_memory", status=503)
    trace = error.__traceback__
    place = "?"
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    log.error("unexpected %s at %s", type(error).__name__, place)
    return Failure(
        "Something failed inside the enclave; nothing of yours was lost. Trying again may help.",
        "internal_error",
        status=500,
    )


def _too_soon(told: int, step: int, total: int) -> bool:
    """Is it so soon after what was told that there would be more than `MOST_FIGURES` in all?"""
    every = 1 + total // MOST_FIGURES
    return step // every == told // every and step != total


def _runs(thread: threading.Thread | None) -> bool:
    return thread is not None and thread.is_alive()


async def _end_of(ear: Ear) -> None:
    async for _ in ear.items():
        pass


def _wished(wish: Stop) -> Status:
    return "cancelled" if wish == "cancel" else "paused"


def _is_over(job: Job) -> Conflict:
    return Conflict(f"The job is {job.status} already.", code="wrong_status", status=400)


_SETTLED: Final = threading.Event()
_SETTLED.set()
