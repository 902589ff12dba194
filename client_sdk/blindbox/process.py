"""
Which process we are in. After `fork` the child must not use its parent's proven keys, locks or sockets.

RFC 9180 §9.7.5 is the reason: two processes that continue one state would seal with the same secrets.
"""

from __future__ import annotations

import os
import threading


class _Process:
    def __init__(self) -> None:
        self.generation = 0
        self.lock = threading.Lock()

    def born(self) -> None:
        """Runs in the child, alone, before anything else there."""
        self.generation += 1
        self.lock = threading.Lock()


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.born)


def generation() -> int:
    """A number that is different in every forked child."""
    return _process.generation


def guard() -> threading.Lock:
    """A lock that no thread of a parent can hold."""
    return _process.lock
