"""
How long a caller waits: for a connection, between bytes, and in all.

Nothing waits for ever by default. The enclave sends a sealed sign of life every 10 seconds (SPEC §5.5), so a
short limit between bytes does not cut a long computation. A `timeout=` that the caller gives means what it
means in `requests`: signs of life do not count as an answer then, and there is no limit in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import urllib3


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds; None is no limit."""

    connect: float | None = 5.0
    between_bytes: float | None = 60.0
    in_all: float | None = 6 * 3600.0
    given: bool = False  # by the caller: then heartbeats do not count

    def __post_init__(self) -> None:
        # urllib3 says what is wrong with a limit that is not a positive number.
        self.for_urllib3()

    def for_urllib3(self) -> urllib3.Timeout:
        return urllib3.Timeout(connect=self.connect, read=self.between_bytes)

    @classmethod
    def of(cls, timeout: Any) -> Timeouts:
        """Read what `requests` accepts as `timeout=`."""
        if isinstance(timeout, Timeouts):
            return timeout
        if isinstance(timeout, urllib3.Timeout):
            connect, read = timeout.connect_timeout, timeout.read_timeout
            return cls(
                connect if isinstance(connect, int | float) else None,
                read if isinstance(read, int | float) else None,
                None,
                given=True,
            )
        if isinstance(timeout, tuple):
            if len(timeout) != 2:
                raise ValueError(
                    f"Invalid timeout {timeout}. Pass a (connect, read) timeout tuple, "
                    f"or a single float to set both timeouts to the same value."
                )
            return cls(timeout[0], timeout[1], None, given=True)
        return cls(timeout, timeout, None, given=True)


DEFAULT: Final = Timeouts()


class Deadline:
    """Watches one call."""

    def __init__(self, limits: Timeouts, tick: Callable[[], float]) -> None:
        self._tick = tick
        self._limits = limits
        self._end = None if limits.in_all is None else tick() + limits.in_all
        self._last_word = tick()

    def heard(self) -> None:
        """Something other than a heartbeat arrived."""
        self._last_word = self._tick()

    def passed(self) -> bool:
        now = self._tick()
        if self._end is not None and now >= self._end:
            return True
        quiet = self._limits.between_bytes
        return self._limits.given and quiet is not None and now - self._last_word > quiet
