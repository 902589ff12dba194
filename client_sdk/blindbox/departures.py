"""
Notices, for all threads of a server, that a client hung up while its thread waits for something else.

Nothing is read from a client here: a socket whose peer has left is readable, and a look at it shows no byte.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Iterator

_LOOK_AGAIN_SECONDS = 0.25  # where a selector does not see what is added while it waits


class Departures:
    """One thread that watches the sockets of many."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        # A selector of nothing is an error on some systems.
        self._closing, self._closed = socket.socketpair()
        self._selector.register(self._closed, selectors.EVENT_READ)
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="departures", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def noticed(self, client: socket.socket, gone: Callable[[], None]) -> Iterator[None]:
        """
        Call `gone`, on another thread, if the client hangs up before the block ends.

        `client` has a timeout, as every socket of a server should.
        """
        look = client.dup()  # its own handle, that never waits; `client` has a timeout and would
        look.setblocking(False)
        with self._guard:
            self._selector.register(look, selectors.EVENT_READ, gone)
        try:
            yield
        finally:
            self._forget(look)
            look.close()

    def close(self) -> None:
        """Watch no more."""
        self._closing.close()
        self._thread.join()
        self._closed.close()
        self._selector.close()

    def _forget(self, look: socket.socket) -> None:
        with self._guard, contextlib.suppress(KeyError, ValueError, OSError):
            self._selector.unregister(look)

    def _watch(self) -> None:
        while True:
            for key, _ in self._selector.select(_LOOK_AGAIN_SECONDS):
                if key.fileobj is self._closed:
                    return
                look: socket.socket = key.fileobj  # type: ignore[assignment]
                try:
                    left = not look.recv(1, socket.MSG_PEEK)
                except BlockingIOError:
                    continue
                except OSError:
                    left = True
                # Who sends its next request already can hang up unnoticed, until it is written to.
                self._forget(look)
                if left:
                    key.data()
