"""
Where jobs are written down, sealed for their tenant: records, events, keys, checkpoints, receipts.

Every record is one file of the store, so each is there whole or not at all. What cannot be read any more is
said and left where it is: a damaged record is never taken for a missing one, and nothing here removes it
unless its owner asks. The order of writing makes a crash harmless: a key before its job, events before the
checkpoint that follows them, a job's own record last when it goes.

    jobs         ID              the job
    job-events   ID-SEGMENT      256 numbers' worth of events; the last segment is written again as it grows
    job-keys     SHA-256         the idempotency key of a job, and what was asked with it
    checkpoints  ID-STEP         where a training stood (../checkpoint.py)
    receipts     ID              what `receipts.py` signed
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from ..checkpoint import CHECKPOINTS, Checkpoint, MalformedCheckpoint, name_in_store
from ..refusals import Failed, NotFound
from ..store import Damaged, Missing, Store
from ..tenants import Tenant
from ..training import Snapshot, Task
from . import DESCRIPTIONS, EVENTS, FILES, JOBS, KEYS, RECEIPTS, Event, Job, Level, results_of

SEGMENT: Final = 256
_HEAD: Final = 80 << 10  # bytes in which a checkpoint tells of itself
_MISREAD: Final = (Damaged, MalformedCheckpoint, ValueError, KeyError, TypeError)


@dataclass(frozen=True, slots=True)
class Listed:
    """All jobs of a tenant, the newest first, and the ids of those whose record cannot be read."""

    jobs: tuple[Job, ...]
    damaged: tuple[str, ...]


class Book:
    """The records of all tenants; one who calls holds the tenant's key."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- jobs

    def job(self, tenant: Tenant, job_id: str) -> Job:
        """The job of this id; raises `NotFound`, which does not tell whether somebody else has it."""
        try:
            return Job.parse(self._store.read(tenant, JOBS, job_id))
        except Missing:
            raise not_found() from None
        except _MISREAD:
            raise Failed(
                "The record of this job is damaged. It is left as it is; DELETE of the job removes it.",
                code="damaged_job",
            ) from None

    def jobs(self, tenant: Tenant) -> Listed:
        """Those that can be read, and the names of the others."""
        found, damaged = [], []
        for name in self._store.names(tenant, JOBS):
            try:
                found.append(Job.parse(self._store.read(tenant, JOBS, name)))
            except Missing:
                continue  # deleted between the two lines
            except _MISREAD:
                damaged.append(name)
        found.sort(key=lambda job: (job.number, job.id), reverse=True)
        return Listed(tuple(found), tuple(damaged))

    def any(self, tenant: Tenant) -> bool:
        """Has the tenant jobs at all? Cheap."""
        return bool(self._store.names(tenant, JOBS))

    def write(self, tenant: Tenant, job: Job) -> None:
        """Replace the record."""
        self._store.write(tenant, JOBS, job.id, job.encode())

    def forget(self, tenant: Tenant, job_id: str) -> dict[str, int]:
        """Remove a job and all that belongs to it, and tell how much of what there was."""
        removed: dict[str, int] = {}
        for kind in (CHECKPOINTS, EVENTS, RECEIPTS):
            names = self._of(tenant, kind, job_id)
            for name in names:
                with suppress(Missing):
                    self._store.delete(tenant, kind, name)
            removed[kind] = len(names)
        for kind in (DESCRIPTIONS, FILES):
            with suppress(Missing):
                self._store.delete(tenant, kind, results_of(job_id))
                removed[FILES] = 1
        for name in self._store.names(tenant, KEYS):
            with suppress(Missing, *_MISREAD):
                if json.loads(self._store.read(tenant, KEYS, name))["job"] == job_id:
                    self._store.delete(tenant, KEYS, name)
        with suppress(Missing):
            self._store.delete(tenant, JOBS, job_id)  # last: as long as it is listed, it can be deleted again
            removed[JOBS] = 1
        return removed

    # --- idempotency keys

    def keyed(self, tenant: Tenant, key: str) -> tuple[str, str] | None:
        """The id of the job that this key made or was about to make, and the digest of what was asked."""
        try:
            kept = json.loads(self._store.read(tenant, KEYS, key))
            return str(kept["job"]), str(kept["asked"])
        except Missing:
            return None
        except _MISREAD:
            raise Failed(
                "The record of this Idempotency-Key is damaged; whether its job was made shows GET "
                "/v1/fine_tuning/jobs. Send another key to make one.",
                code="damaged_key",
            ) from None

    def write_key(self, tenant: Tenant, key: str, job_id: str, asked: str) -> None:
        """Before the job: a crash between the two leaves a key whose job is made when it is sent again."""
        self._store.write(tenant, KEYS, key, json.dumps({"job": job_id, "asked": asked}).encode())

    # --- events

    def events(self, tenant: Tenant, job_id: str) -> list[Event]:
        """All events, the oldest first; where a segment cannot be read there is a word of it."""
        events: list[Event] = []
        for name in self._of(tenant, EVENTS, job_id):
            try:
                events += _events(job_id, self._store.read(tenant, EVENTS, name))
            except Missing:
                continue
            except _MISREAD:
                at = int(name.rpartition("-")[2]) * SEGMENT
                told = (
                    f"Up to {SEGMENT} events from here on cannot be read any more: their record is damaged."
                )
                events.append(Event(job_id, at, events[-1].created_at if events else 0, told, "warn"))
        return events

    def diary(self, tenant: Tenant, job_id: str) -> Diary:
        """For writing on, behind the last event."""
        return Diary(self._store, tenant, job_id, self._of(tenant, EVENTS, job_id))

    # --- checkpoints

    def add_checkpoint(self, tenant: Tenant, job: Job, task: Task, snapshot: Snapshot, base: str) -> None:
        """Seal a snapshot, with what serving it needs to know. It is there when all of it is."""
        kept = Checkpoint(
            job=job.id,
            step=snapshot.step,
            total_steps=snapshot.total_steps,
            created_at=job.now(),
            suffix=job.order.suffix,
            loss=snapshot.loss,
            validation_loss=snapshot.validation_loss,
            model=base,
            template=task.template,
            template_digest=task.template_digest,
            method=task.recipe.method,
            rank=task.recipe.rank,
            alpha=task.recipe.alpha,
        )
        with self._store.writer(tenant, CHECKPOINTS, kept.name) as writer:
            writer.write(kept.encode())
            writer.write(snapshot.state)

    def checkpoints(self, tenant: Tenant, job_id: str) -> list[Checkpoint]:
        """Those of a job, the newest first, without their weights; what cannot be read is left out."""
        heads = []
        for name in reversed(self._of(tenant, CHECKPOINTS, job_id)):
            with suppress(Missing, *_MISREAD), self._store.reader(tenant, CHECKPOINTS, name) as file:
                heads.append(Checkpoint.head(name, file.read(_HEAD)))
        return heads

    def checkpoint(self, tenant: Tenant, job_id: str, step: int) -> Snapshot:
        """One of them, whole; raises `Missing` or `Damaged`."""
        name = name_in_store(job_id, step)
        try:
            kept = Checkpoint.parse(name, self._store.read(tenant, CHECKPOINTS, name))
        except MalformedCheckpoint as error:
            raise Damaged(f"{CHECKPOINTS}/{name}: {error}") from None
        return Snapshot(kept.step, kept.total_steps, kept.loss, kept.validation_loss, kept.state)

    def newest(
        self, tenant: Tenant, job_id: str, skipped: frozenset[int] = frozenset()
    ) -> tuple[Snapshot | None, list[int]]:
        """The newest checkpoint that is whole, and the steps of newer ones that are not."""
        damaged: list[int] = []
        for step in reversed(self._steps(tenant, job_id)):
            if step in skipped:
                continue
            try:
                return self.checkpoint(tenant, job_id, step), damaged
            except Missing:
                continue
            except Damaged:
                damaged.append(step)
        return None, damaged

    def thin(self, tenant: Tenant, job_id: str, keep: int, spare: frozenset[int] = frozenset()) -> None:
        """Remove all but the newest `keep` checkpoints; those in `spare` (damaged ones) stay."""
        steps = [step for step in self._steps(tenant, job_id) if step not in spare]
        for step in steps[: max(0, len(steps) - keep)]:
            with suppress(Missing):
                self._store.delete(tenant, CHECKPOINTS, name_in_store(job_id, step))

    # --- receipts

    def write_receipt(self, tenant: Tenant, job_id: str, receipt: bytes) -> None:
        """Keep what was signed."""
        self._store.write(tenant, RECEIPTS, job_id, receipt)

    def receipt(self, tenant: Tenant, job_id: str) -> bytes:
        """What was signed; raises `NotFound`."""
        try:
            return self._store.read(tenant, RECEIPTS, job_id)
        except Missing:
            raise NotFound(
                "This job has no receipt. Only jobs that succeeded have one.", code="receipt_not_found"
            ) from None
        except Damaged:
            raise Failed("The stored receipt is damaged.", code="damaged_receipt") from None

    def _of(self, tenant: Tenant, kind: str, job_id: str) -> list[str]:
        """Names of this kind that belong to the job, in their order; not what somebody else put there."""
        return [
            name
            for name in self._store.names(tenant, kind)
            if name == job_id or (name.rpartition("-")[0] == job_id and name.rpartition("-")[2].isdigit())
        ]

    def _steps(self, tenant: Tenant, job_id: str) -> list[int]:
        return [int(name.rpartition("-")[2]) for name in self._of(tenant, CHECKPOINTS, job_id)]


class Diary:
    """
    The events of one job, being written.

    `note` is quick and stays in memory; `flush` makes it last. Numbers are never given twice, not even those
    of events that were dropped.
    """

    def __init__(self, store: Store, tenant: Tenant, job_id: str, segments: list[str]) -> None:
        self._store = store
        self._tenant = tenant
        self._job = job_id
        self._segments = segments
        self._next = 0
        self._open: list[Event] = []  # of the segment that `_next` is in
        self._full: list[list[Event]] = []  # segments before it that are not written yet
        self._dirty = False
        self._latest = 0
        if segments:
            last = int(segments[-1].rpartition("-")[2])
            try:
                events = _events(job_id, store.read(tenant, EVENTS, segments[-1]))
            except (Missing, *_MISREAD):
                self._next = (last + 1) * SEGMENT  # left as it is
            else:
                self._next = events[-1].number + 1 if events else last * SEGMENT
                self._latest = events[-1].created_at if events else 0
                self._open = events if self._next // SEGMENT == last else []

    def note(self, message: str, level: Level = "info", data: dict[str, Any] | None = None) -> Event:
        """Add an event. Its time is never before that of the last one, whatever the clock says."""
        self._latest = max(self._latest, int(time.time()))
        event = Event(self._job, self._next, self._latest, message, level, data)
        if self._open and self._open[-1].number // SEGMENT != self._next // SEGMENT:
            if self._dirty:
                self._full.append(self._open)
            self._open = []
        self._open.append(event)
        self._next += 1
        self._dirty = True
        return event

    def flush(self) -> None:
        """Write what has been noted. Where that fails it is all still here."""
        while self._full:
            self._write(self._full[0][0].number // SEGMENT, self._full[0])
            del self._full[0]
        if self._dirty:
            self._write(self._open[0].number // SEGMENT, self._open)
            self._dirty = False

    @property
    def unwritten(self) -> list[Event]:
        """Those of the open segment and of such as are not written: the disk may lack the last of them."""
        return [event for events in (*self._full, self._open) for event in events]

    def drop_figures_after(self, step: int) -> int:
        """
        Take out the figures of steps that are going to be trained again, and tell how many there were.

        So each step is in the curve once. From the end backwards, a segment at a time: a crash in between
        leaves figures without a gap, and the next start takes out the rest.
        """
        self.flush()
        dropped = 0
        for name in reversed(self._segments):
            try:
                events = _events(self._job, self._store.read(self._tenant, EVENTS, name))
            except (Missing, *_MISREAD):
                continue
            kept = [event for event in events if event.step is None or event.step <= step]
            dropped += len(events) - len(kept)
            if len(kept) != len(events):
                number = int(name.rpartition("-")[2])
                self._write(number, kept)
                if self._open and self._open[0].number // SEGMENT == number:
                    self._open = kept
            if any(event.step is not None for event in kept):
                break  # what stands before is older still
        return dropped

    def _write(self, segment: int, events: list[Event]) -> None:
        name = f"{self._job}-{segment:04d}"
        rows = [[each.number, each.created_at, each.level, each.message, each.data] for each in events]
        self._store.write(
            self._tenant, EVENTS, name, json.dumps({"blindbox-events": 1, "events": rows}).encode()
        )
        if name not in self._segments:
            self._segments.append(name)


def not_found() -> NotFound:
    """The one answer for a job that is not there and for one of somebody else."""
    return NotFound(
        "You have no job of this id. GET /v1/fine_tuning/jobs lists yours.", code="job_not_found", param="id"
    )


def digest(text: str) -> str:
    """SHA-256 in hexadecimal: a key's name in the store."""
    return hashlib.sha256(text.encode()).hexdigest()


def _events(job_id: str, data: bytes) -> list[Event]:
    told = json.loads(data)
    if told["blindbox-events"] != 1:
        raise ValueError("another version of events")
    return [
        Event(job_id, number, created, message, level, data)
        for number, created, level, message, data in told["events"]
    ]
