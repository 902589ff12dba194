"""
How fast answers end, measured: what "try again in so many seconds" is made of.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_LAST: Final = 64  # endings that are looked back on
_LONGEST: Final = 60  # seconds; the openai package does not wait as told where it is told to wait longer


class Pace:
    """The time between two endings, while there is work. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._gaps: deque[float] = deque(maxlen=_LAST)
        self._since: float | None = None  # the last ending, or when work began; None = there is none

    def begin(self) -> None:
        """There is work, perhaps there was before."""
        if self._since is None:
            self._since = self._clock()

    def ended(self, *, more: bool) -> None:
        """An answer ended; `more` of them are running."""
        now = self._clock()
        if self._since is not None:
            self._gaps.append(now - self._since)
        self._since = now if more else None

    def until(self, number: int) -> int:
        """Whole seconds until so many more have ended, 1 to 60: told to callers as Retry-After."""
        waited = 0.0 if self._since is None else self._clock() - self._since
        # Where nothing has ended yet, that it has not for so long is all that is known.
        rest = number * sum(self._gaps) / len(self._gaps) - waited if self._gaps else waited
        return max(1, min(_LONGEST, math.ceil(rest)))
