"""
Who is here, and what they left unfinished.

Without its token nothing of a tenant's can be read. So it is when it comes that its jobs go back into the
line, that what the full disk had no room for is written, and that what is too old goes.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ..refusals import Refusal
from ..settings import Settings
from ..tenants import Tenant
from . import move
from .book import Book, Listed
from .failures import failure_of
from .line import Line
from .shift import Shift

_REMEMBERED: Final = 1 << 16
_DAY: Final = 86400
_ABSURD: Final = 20 * 365 * _DAY
_SETTLED: Final = threading.Event()
_SETTLED.set()

Forget = Callable[[Tenant, str], object]
"""Removes a job and all that is its own."""
Expire = Callable[[Tenant], None]
"""Removes files and uploads of a tenant that are over."""


class Arrivals:
    """Remembers whom it has seen in this boot; so many of them and no more."""

    def __init__(
        self,
        settings: Settings,
        line: Line,
        book: Book,
        shift: Shift,
        forget: Forget,
        expire: Expire | None = None,
    ) -> None:
        self._settings = settings
        self._line = line
        self._book = book
        self._shift = shift
        self._forget = forget
        self._expire = expire
        self._seen: OrderedDict[str, threading.Event] = OrderedDict()  # under the line's lock
        self._boot = (time.time(), time.monotonic())

    def done_with(self, tenant: Tenant) -> bool:
        """Has everything of this tenant's been seen to?"""
        late = list(self._line.unwritten.values())
        return tenant.id in self._seen and all(owner != tenant.id for owner, _ in late)

    def look(self, tenant: Tenant) -> None:
        """See to it, on a thread."""
        # Any token is a tenant. One that has nothing costs no thread, and is not remembered.
        if self._book.any(tenant):
            threading.Thread(target=self._look, args=(tenant,), name="jobs-seen", daemon=True).start()

    def _look(self, tenant: Tenant) -> None:
        try:
            self.settle(tenant)
        except Exception as error:  # noqa: BLE001 - told by type alone; the next request tries again
            failure_of(error)

    def forget(self) -> None:
        """Whoever comes is looked at again."""
        with self._line.lock:
            self._seen.clear()

    def settle(self, tenant: Tenant) -> None:
        """What a tenant left unfinished is picked up, once in this boot, before anything is told of it."""
        with self._line.lock:
            event = self._seen.get(tenant.id)
            mine = event is None
            if event is None:
                event = self._seen[tenant.id] = threading.Event()
        if not mine:
            event.wait(60)
            self._line.write_late(tenant)
            return
        try:
            self._pick_up(tenant)
        except BaseException:
            with self._line.lock:
                self._seen.pop(tenant.id, None)  # the next request tries again
            raise
        finally:
            event.set()
        with self._line.lock:
            if self._seen.get(tenant.id) is event:
                self.remember(tenant)

    def remember(self, tenant: Tenant) -> None:
        """Nothing of this tenant's is to be picked up. Who is forgotten again is looked at again, no more."""
        self._seen[tenant.id] = _SETTLED
        self._seen.move_to_end(tenant.id)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def _pick_up(self, tenant: Tenant) -> None:
        # The lock also while it is read: what is told here must still be so when it is acted upon.
        with self._line.lock:
            listed = self._book.jobs(tenant)
            for job in reversed(listed.jobs):
                here = job.id in self._line.live or job.id in self._line.unwritten
                if not job.live or here or self._line.closing:
                    continue
                if job.status == "running":
                    job = move(job, "queued", phase="queued")
                    with suppress(Refusal, OSError):  # a full disk keeps nobody from going on
                        self._book.write(tenant, job)
                    live = self._line.enlist(tenant, job)
                    self._line.say(
                        live, "The enclave was started anew; the job waits to go on where it was.", "warn"
                    )
                else:
                    self._line.enlist(tenant, job)
            self._shift.go()
        self._sweep(tenant, listed)
        if self._expire is not None:
            try:
                self._expire(tenant)
            except Exception as error:  # noqa: BLE001 - old files are no reason to tell nothing of jobs
                failure_of(error)

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
                with self._line.lock:
                    if job.id not in self._line.live:  # resumed just now
                        self._forget(tenant, job.id)
