"""
The two threads that jobs are worked on by: one reads the rows of jobs, one works at the bench.

Rows are read while others have the bench, so that what is wrong with them is told at once. Each thread is
begun when there is work for it (`line.py` says which) and ends when there is none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..refusals import Refusal
from ..training import Progress
from . import Order, move
from .bench import Bench, Rows
from .failures import failure_of
from .line import Line, Live
from .reading import Stopped


class Shift:
    """Takes the next job from the line, for as long as there is one."""

    def __init__(self, line: Line, bench: Bench, rows: Rows) -> None:
        self._line = line
        self._bench = bench
        self._rows = rows
        self._reader: threading.Thread | None = None
        self._worker: threading.Thread | None = None

    def go(self) -> None:
        """Let the threads run for which there is work."""
        with self._line.lock:
            if self._line.closing:
                return
            if not _runs(self._reader) and self._line.next("validating_files") is not None:
                self._reader = threading.Thread(target=self._reads, name="jobs-reader", daemon=True)
                self._reader.start()
            if not _runs(self._worker) and self._line.next("queued") is not None:
                self._worker = threading.Thread(target=self._works, name="jobs-bench", daemon=True)
                self._worker.start()

    @property
    def resting(self) -> bool:
        """Is there no thread, for there is no work?"""
        with self._line.lock:
            return self._reader is None and self._worker is None

    def join(self, seconds: float) -> None:
        """Wait so long for both to end."""
        until = time.monotonic() + seconds
        with self._line.lock:  # whoever begins a thread holds it until that runs
            threads = (self._worker, self._reader)
        for thread in threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))

    def _reads(self) -> None:
        while True:
            with self._line.lock:
                live = None if self._line.closing else self._line.next("validating_files")
                if live is None:
                    self._reader = None
                    return
                live.reading = True
            try:
                reading = self._rows.read(live.tenant, live.job.order, self._unwanted(live))
                order = self._rows.settle(live.job.order, reading)
                estimate = self._rows.admit(order, reading, alone=self._line.idle)
            except Stopped:
                live.reading = False
                continue
            except BaseException as error:  # noqa: BLE001 - told by type alone
                with self._line.lock:
                    live.reading = False
                    if not live.ended.is_set():
                        self._line.fail(live, failure_of(error))
                continue
            with self._line.lock:
                live.reading = False
                if live.ended.is_set():  # cancelled or paused meanwhile
                    continue
                try:
                    told = {"data": reading.report, "estimate": estimate}
                    self._line.put(live, move(live.job, "queued", order=order, **told))
                except (Refusal, OSError) as error:
                    self._line.fail(live, failure_of(error))
                    continue
                self._line.say(live, _ready(len(reading.examples), order))
                self._line.hear(live, Progress("queued"))
                self._line.hold(live, reading)
                self.go()
            del reading

    def _unwanted(self, live: Live) -> Callable[[], bool]:
        return lambda: live.ended.is_set() or self._line.closing

    def _works(self) -> None:
        while True:
            with self._line.lock:
                live = None if self._line.closing else self._line.next("queued")
                if live is None:
                    self._worker = None
                    return
                self._line.seat(live)
            try:
                self._bench.work(live)
            except BaseException as error:  # noqa: BLE001 - told by type alone
                if not live.ended.is_set():
                    self._line.fail(live, failure_of(error))
            live.at_bench = False


def _ready(rows: int, order: Order) -> str:
    """That the rows can be learned, and how they will be."""
    recipe = order.recipe
    counted = "1 row is" if rows == 1 else f"{rows} rows are"
    often = "once" if recipe.epochs == 1 else f"{recipe.epochs} times"
    if recipe.most_steps is not None:
        often += f", in {recipe.most_steps} {'step' if recipe.most_steps == 1 else 'steps'} at most"
    return (
        f"{counted} ready, to be read {often}, {recipe.batch_size} at a time, at a learning rate of "
        f"{recipe.learning_rate:g}. The job waits for its turn."
    )


def _runs(thread: threading.Thread | None) -> bool:
    return thread is not None and thread.is_alive()
