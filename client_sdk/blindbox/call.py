"""
One sealed call as others see it: has any byte of it left, and how to end it from another thread.

A thread that waits for an answer cannot be stopped; its socket can be closed under it. Whoever hands a `Call`
to `SealedAdapter.send` may do so at any time, and the enclave then frees what the call held. The difficulty
is that a connection goes back to the pool by itself and serves another call, which must not be hit.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, cast

import requests
from requests.exceptions import ReadTimeout
from urllib3.connection import HTTPConnection

from blindbox_attestation.errors import AttestationError

from . import question
from .later import LATER


def may_be_repeated(error: Exception, request: requests.PreparedRequest, call: Call) -> bool:
    """
    Whether whoever asked may ask again without any risk that the enclave runs the call twice.

    Nothing of it was sent, or its method or the caller says that running it again does no harm. A machine
    that did not prove itself, or a message that was tampered with, is no reason to try again.
    """
    if isinstance(error, AttestationError) or not isinstance(error, requests.RequestException):
        return False
    return not call.sent or question.may_run_twice(request)


class GivenUp(Exception):
    """Nobody waits for this call any more."""


class Call:
    """Handed to one `send`; holds nothing of what is said."""

    def __init__(self) -> None:
        self.sent = False  # whether any byte of the sealed request may have left
        self.given_up = False
        self._connection: _Watched | None = None

    def give_up(self) -> None:
        """End it, wherever it is. The thread that waits for it gets an error; nothing is sent again."""
        self.given_up = True  # before looking: `begin` looks in the other order
        if self._connection is not None:
            self._connection.give_up(self)

    def begin(self, connection: _Watched) -> None:
        self._connection = connection
        self.go_on()

    def go_on(self) -> None:
        """Raise `GivenUp` if it was."""
        if self.given_up:
            raise GivenUp


_CARRIED: ContextVar[Call | None] = ContextVar("blindbox-call", default=None)


@contextlib.contextmanager
def carried(call: Call, pool: Any, seconds: float | None) -> Iterator[None]:
    """
    What the block asks through `pool` belongs to `call`, and is given up if it takes longer than `seconds`.

    A limit between bytes alone is none: whoever sends or takes one now and then keeps to it for ever.
    """
    if not issubclass(pool.ConnectionCls, _Watched):
        pool.ConnectionCls = _watched(pool.ConnectionCls)
    before = _CARRIED.set(call)
    try:
        with LATER.unless_left(seconds, call.give_up) as late:
            try:
                yield
            except Exception as error:
                if late():
                    raise ReadTimeout("the call took longer than its limit") from error
                raise
            if late():  # a head that ends with its connection looks whole
                raise ReadTimeout("the call took longer than its limit")
    finally:
        _CARRIED.reset(before)


class _Watched(HTTPConnection):
    """A connection that knows whose it is: the last call that began a request on it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guard = threading.Lock()
        self._call: Call | None = None
        self._ended = False

    def give_up(self, call: Call) -> None:
        with self._guard:
            if self._call is call and self.sock is not None:
                self._ended = True
                with contextlib.suppress(OSError):
                    # Not SSLSocket's own, which would take TLS away from under the thread that reads.
                    socket.socket.shutdown(cast("socket.socket", self.sock), socket.SHUT_RDWR)

    def request(self, *args: Any, **kwargs: Any) -> None:
        call = _CARRIED.get()
        with self._guard:
            self._call = call
            if self._ended:  # by whoever had it before
                self.close()
                self._ended = False
        if call is not None:
            call.begin(self)
            if self.sock is None:
                self.connect()
            call.go_on()
            call.sent = True
        super().request(*args, **kwargs)


@lru_cache(maxsize=16)
def _watched(kind: type[HTTPConnection]) -> type[_Watched]:
    return type(kind.__name__, (_Watched, kind), {})
