"""
The line before the bench: which jobs the enclave has work with, whose turn it is, and how one leaves.

Who waits longest without having had the bench is next, tenant by tenant. What is told of a job here is newer
than what `book.py` has of it, and is written there first. A tenant's key is in memory only while the tenant
has live work. A job that ends because the disk is full may find no room for its last record either: it is
then kept here and written when its tenant comes again.

What is done at the bench is in `bench.py`, the threads are in `shift.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ..refusals import Busy, Conflict, RateLimited, Refusal
from ..settings import Settings
from ..tenants import Tenant
from ..training import Stop
from . import Event, Failure, Job, Level, Status, move
from .book import Book, Diary
from .curve import Curve, words_of
from .ears import MOST_EARS, Ear, Heard
from .reading import Reading


@dataclass(slots=True, eq=False)
class Live:
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
    curve: Curve = field(default_factory=Curve)
    kept_step: int = 0  # of the last checkpoint
    damaged: frozenset[int] = frozenset()  # steps of checkpoints that cannot be read

    @property
    def ran(self) -> float:
        """Seconds at the bench, all its starts together."""
        return self.job.ran_seconds + (time.monotonic() - self.began if self.began else 0.0)


class Line:
    """The live jobs of all tenants. Its methods may be called from any thread."""

    def __init__(self, settings: Settings, book: Book) -> None:
        self.lock = threading.RLock()  # over everything below, and over jobs that are not at the bench
        self.live: dict[str, Live] = {}
        self.unwritten: dict[str, tuple[str, Job]] = {}  # by job, with the tenant's id
        self.closing = False  # the enclave is about to stop: nothing is begun any more
        self._settings = settings
        self._book = book
        self._turns: dict[str, int] = {}  # by tenant: when it had the bench last
        self._turn = 0
        self._held: tuple[str, Reading] | None = None  # of one job: rows take much memory

    # --- whose turn it is

    def enlist(self, tenant: Tenant, job: Job) -> Live:
        """From now on there is work with it."""
        live = Live(tenant, job, self._book.diary(tenant, job.id))
        self.live[job.id] = live
        self._turns.setdefault(tenant.id, 0)
        return live

    def next(self, status: Status) -> Live | None:
        """Of the tenant that has waited longest for the bench, the oldest job."""
        waiting = [
            live
            for live in self.live.values()
            if live.job.status == status and not live.at_bench and not live.reading
        ]
        return min(
            waiting, key=lambda live: (self._turns.get(live.tenant.id, 0), live.job.number), default=None
        )

    def seat(self, live: Live) -> None:
        """It has the bench, and its tenant has had a turn."""
        live.at_bench = True
        self._turn += 1
        self._turns[live.tenant.id] = self._turn

    @property
    def idle(self) -> bool:
        """Is nobody at the bench?"""
        with self.lock:
            return not any(live.at_bench for live in self.live.values())

    def hold(self, live: Live, reading: Reading) -> None:
        """Keep its rows until its turn, unless those of another job are kept."""
        with self.lock:
            if self._held is None:
                self._held = (live.job.id, reading)

    def held(self, live: Live) -> Reading | None:
        """Its rows, if they were kept; those of another job make room."""
        with self.lock:
            held, self._held = self._held, None
        return held[1] if held is not None and held[0] == live.job.id else None

    # --- how much of it is whose

    def own(self, tenant: Tenant, *, ending: bool = False) -> int:
        """How many of the tenant's jobs run or wait; one that is about to end does not count, or does."""
        with self.lock:
            return sum(
                live.tenant.id == tenant.id and (ending or live.wish != "cancel")
                for live in self.live.values()
            )

    def check_room(self, tenant: Tenant, *, alone: bool = False) -> None:
        """Refuse where there is no place for one more."""
        with self.lock:
            own = self.own(tenant)
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
            if len(self.live) > self._settings.max_jobs_waiting:
                raise Busy(
                    f"{len(self.live) - 1} trainings are waiting already; try again in a few minutes.",
                    code="training_queue_full",
                    retry_after=60,
                )

    # --- what is known of a job

    def known(self, tenant: Tenant, job_id: str) -> Job | None:
        """What is newer here than on the disk."""
        live = self.live.get(job_id)
        if live is not None and live.tenant.id == tenant.id:
            return live.job
        owner, job = self.unwritten.get(job_id, (None, None))
        return job if owner == tenant.id else None

    def job(self, tenant: Tenant, job_id: str) -> Job:
        """The newest there is of it; raises `NotFound`, for another tenant's job as well."""
        return self.known(tenant, job_id) or self._book.job(tenant, job_id)

    def told(self, tenant: Tenant, job_id: str) -> Sequence[Event]:
        """All events so far, the oldest first."""
        with self.lock:
            live = self.live.get(job_id)
            fresh = [] if live is None else live.diary.unwritten
        kept = {event.number: event for event in self._book.events(tenant, job_id)}
        kept |= {event.number: event for event in fresh}
        return [event for _, event in sorted(kept.items())]

    # --- who listens

    def listen(self, job: Job, ear: Ear) -> bool:
        """Let it hear of the job from now on, if the job is live."""
        with self.lock:
            live = self.live.get(job.id)
            if live is None:
                return False
            live.ears = [each for each in live.ears if not each.deaf]
            if len(live.ears) >= MOST_EARS:
                raise RateLimited(
                    f"{MOST_EARS} streams of this job are open, which is the limit; close one.",
                    code="too_many_streams",
                    retry_after=10,
                )
            live.ears.append(ear)
            return True

    def deafen(self, job_id: str, ear: Ear) -> None:
        """It listens no more."""
        # Without the lock, which may be held while the disk is waited for: this runs on event loops.
        ear.deaf = True
        live = self.live.get(job_id)
        if live is not None:
            with suppress(ValueError):
                live.ears.remove(ear)

    def hear(self, live: Live, item: Heard) -> None:
        """Whoever listens hears this."""
        with self.lock:
            for ear in tuple(live.ears):
                ear.hear(item)

    # --- what is said of it

    def say(
        self, live: Live, message: str, level: Level = "info", data: dict[str, Any] | None = None
    ) -> None:
        """An event."""
        with self.lock:
            self.hear(live, live.diary.note(message, level, data))

    def say_figures(self, live: Live, figures: dict[str, Any] | None) -> None:
        """Those of a step, where there are any."""
        if figures is not None:
            self.say(live, words_of(figures), data=figures)

    def note(self, tenant: Tenant, job: Job, message: str, level: Level = "info") -> None:
        """An event of a job that is not live."""
        with suppress(Refusal, OSError):
            diary = self._book.diary(tenant, job.id)
            diary.note(message, level)
            diary.flush()

    def put(self, live: Live, job: Job) -> None:
        """What is told from now on, written down."""
        self._book.write(live.tenant, job)
        live.job = job

    # --- how it leaves

    def finish(self, live: Live, job: Job, message: str, level: Level = "info") -> None:
        """The end of the enclave's work with it. A full disk does not keep a job from being over."""
        with self.lock:
            self.say_figures(live, live.curve.take())
            self.say(live, message, level)
            with suppress(Refusal, OSError):
                live.diary.flush()
            try:
                self.put(live, job)
            except (Refusal, OSError):
                live.job = job
                self.unwritten[job.id] = (live.tenant.id, job)
            with suppress(OSError):
                self._book.thin(live.tenant, job.id, self._settings.max_checkpoints, live.damaged)
            self._dismiss(live)

    def fail(self, live: Live, failure: Failure) -> None:
        """It cannot be done."""
        with self.lock:
            job = replace(live.job, error=failure, ran_seconds=live.ran)
            self.finish(
                live,
                move(job, "failed", phase="done", finished_at=job.now()),
                failure.message,
                "error",
            )

    def halt(self, live: Live, wish: Stop) -> None:
        """It was wished to stop, and nobody works on it now."""
        if wish == "pause":
            job = move(live.job, "paused", phase="paused", ran_seconds=live.ran)
            self.finish(live, job, "The job is paused. Resume it to let it go on.")
        else:
            job = move(live.job, "cancelled", phase="done", finished_at=live.job.now(), ran_seconds=live.ran)
            self.finish(live, job, "The job was cancelled.")

    def put_aside(self) -> None:
        """No more work with those that nobody is working on; on the disk they wait as they are."""
        with self.lock:
            for live in [each for each in self.live.values() if not (each.at_bench or each.reading)]:
                with suppress(Refusal, OSError):
                    live.diary.flush()
                self._dismiss(live)

    def write_late(self, tenant: Tenant) -> None:
        """Last records that the full disk had no room for."""
        with self.lock:
            for job_id, (owner, job) in list(self.unwritten.items()):
                if owner == tenant.id:
                    with suppress(Refusal, OSError):
                        self._book.write(tenant, job)
                        del self.unwritten[job_id]
                        if job.error is not None:
                            self.note(tenant, job, job.error.message, "error")

    def _dismiss(self, live: Live) -> None:
        """The enclave has no more work with it; with the tenant's last live job its key is forgotten."""
        self.live.pop(live.job.id, None)
        if not any(each.tenant.id == live.tenant.id for each in self.live.values()):
            self._turns.pop(live.tenant.id, None)
        if self._held is not None and self._held[0] == live.job.id:
            self._held = None
        live.ended.set()
        for ear in tuple(live.ears):
            ear.hear(live.job if not live.job.live else replace(live.job, status="paused"))
        live.ears.clear()
