"""
Things to do at a certain time, unless they are called off before: limits that no socket option can keep.

One thread for the whole process, which sleeps until the earliest of them; a forked child begins anew.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from . import process


class Later:
    """Actions must be short, and may come from any thread."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._generation = process.generation()
        self._changed = threading.Condition(threading.Lock())
        self._waiting: dict[object, tuple[float, Callable[[], None]]] = {}
        self._wakes = math.inf
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def unless_left(self, seconds: float | None, action: Callable[[], None]) -> Iterator[Callable[[], bool]]:
        """Do `action` after `seconds`, unless the block is left before; what it gives tells whether."""
        if seconds is None:
            yield lambda: False
            return
        if self._generation != process.generation():
            with process.guard():
                if self._generation != process.generation():
                    self._begin()
        mine, at = object(), time.monotonic() + seconds
        with self._changed:
            self._waiting[mine] = (at, action)
            if self._thread is None:
                self._thread = threading.Thread(target=self._wait, name="limits", daemon=True)
                self._thread.start()
            elif at < self._wakes:
                self._changed.notify()
        try:
            yield lambda: mine not in self._waiting
        finally:
            with self._changed:
                self._waiting.pop(mine, None)

    def _wait(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                due = [mine for mine, (at, _) in self._waiting.items() if at <= now]
                actions = [self._waiting.pop(mine)[1] for mine in due]
                if not actions:
                    self._wakes = min((at for at, _ in self._waiting.values()), default=math.inf)
                    self._changed.wait(None if self._wakes == math.inf else self._wakes - now)
            for action in actions:
                action()


LATER: Final = Later()
