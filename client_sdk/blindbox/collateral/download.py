"""
One bounded question to a server that publishes things: a GET with a deadline, a size, and nothing followed.

Nothing here is believed. What an answer means is read in `amd_kds.py` and `intel_pcs.py`, whether it is
kept in `cache.py`, and whether it proves anything by `verify`. Of the environment only the
proxies are used.
"""

from __future__ import annotations

import contextlib
import queue
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3.exceptions import HTTPError

PAUSES: Final = (0.5, 1.0)
"""Seconds to wait before each retry, where the server does not say how long. There are no other retries."""

_LATER: Final = frozenset({429, 503})

T = TypeVar("T")


class Unavailable(Exception):
    """
    What was asked for could not be had. The message says why; `retry_after` (seconds) if the server said.
    """

    def __init__(self, why: str, *, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Answer:
    """The bytes that a server sent. Nothing here has been verified."""

    body: bytes
    headers: Mapping[str, str]


def get(url: str, *, limit: int, until: float, tls: bool | str = True) -> Answer:
    """
    Ask for `url`, and take at most `limit` bytes before the monotonic time `until`.

    No redirect is followed and nothing is decoded. A server that says "later" (429, 503) is asked again,
    twice at most, if what it says leaves time for it. Raises `Unavailable`, and nothing else for anything a
    server can do.
    """
    for pause in (*PAUSES, None):
        try:
            return _within(until, _Exchange(url, limit, until, tls))
        except _Later as later:
            wait = later.retry_after if later.retry_after is not None else pause
            if pause is None or wait is None or wait >= until - time.monotonic():
                raise Unavailable(str(later), retry_after=later.retry_after) from None
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


class _Later(Unavailable):
    """The server is there, and too busy."""


class _Exchange:
    """One attempt. `end` may be called from another thread, and breaks it off."""

    def __init__(self, url: str, limit: int, until: float, tls: bool | str) -> None:
        self.url, self.limit, self.until, self.tls = url, limit, until, tls
        self.wire = _Wire()

    def run(self) -> Answer:
        with requests.Session() as session:
            session.trust_env = False
            session.mount("http://", self.wire)
            session.mount("https://", self.wire)
            left = max(0.001, self.until - time.monotonic())
            try:
                response = session.get(
                    self.url,
                    headers={"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "blindbox"},
                    stream=True,
                    allow_redirects=False,
                    timeout=(left, left),
                    verify=self.tls,
                    proxies=get_environ_proxies(self.url),
                )
                with response:
                    _check_head(response, self.limit)
                    return Answer(self._body(response), response.headers)
            except (requests.RequestException, HTTPError, OSError, ValueError) as error:
                raise Unavailable(_why(error)) from error

    def _body(self, response: requests.Response) -> bytes:
        body = bytearray()
        while data := response.raw.read1(self.limit + 1 - len(body), decode_content=False):
            body += data
            if len(body) > self.limit:
                raise Unavailable(_too_large(self.limit))
            if time.monotonic() >= self.until:
                raise Unavailable(_TOO_SLOW)
        return bytes(body)

    def end(self) -> None:
        self.wire.cut()


class _Wire(HTTPAdapter):
    """Remembers its sockets, so that they can be cut: a head that drips in has no other end."""

    def __init__(self) -> None:
        super().__init__(max_retries=0)
        self._sockets: list[socket.socket] = []
        self._cut = False

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        wire, usual = self, pool.ConnectionCls

        class Remembered(usual):  # type: ignore[misc, valid-type]
            def connect(self) -> None:
                super().connect()
                wire._sockets.append(self.sock)
                if wire._cut:
                    wire.cut()

        pool.ConnectionCls = Remembered
        return pool

    def cut(self) -> None:
        self._cut = True
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _within(until: float, exchange: _Exchange) -> Answer:
    """Run the exchange, and be back by `until` whatever it does: looking up a name alone may take long."""
    outcome: queue.SimpleQueue[Answer | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(exchange.run())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            outcome.put(error)

    threading.Thread(target=run, name="blindbox-download", daemon=True).start()
    try:
        result = outcome.get(timeout=max(0.001, until - time.monotonic()))
    except queue.Empty:
        raise Unavailable(_TOO_SLOW) from None
    finally:
        exchange.end()
    if isinstance(result, BaseException):
        raise result
    return result


_TOO_SLOW: Final = "it did not answer in time"


def _too_large(limit: int) -> str:
    return f"it sent more than {limit} bytes"


def _check_head(response: requests.Response, limit: int) -> None:
    status = response.status_code
    if status in _LATER:
        raise _Later(f"it is too busy (status {status})", retry_after=_seconds(response.headers))
    if 300 <= status < 400:
        raise Unavailable(f"it answered with a redirect ({status}), which is not followed")
    if status == 404:
        raise Unavailable("it does not know what was asked for (status 404)")
    if status != 200:
        raise Unavailable(f"it answered with status {status}")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise Unavailable("it sent something compressed, which was not asked for")
    if int(response.raw.length_remaining or 0) > limit:
        raise Unavailable(_too_large(limit))


def _seconds(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds; as a date (RFC 9110 §10.2.3) it would depend on two clocks, and is not used."""
    value = headers.get("retry-after", "")
    return float(value) if re.fullmatch(r"[0-9]{1,6}", value) else None


def _why(error: Exception) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return f"its TLS certificate is not accepted ({_innermost(error)})"
    if isinstance(error, requests.Timeout):
        return _TOO_SLOW
    if isinstance(error, requests.ConnectionError):
        return f"it cannot be reached ({_innermost(error)})"
    return f"its answer broke off or is no HTTP ({type(error).__name__})"


def _innermost(error: BaseException) -> str:
    """urllib3 wraps errors in errors: the kind of the first one says most."""
    while (inner := getattr(error, "reason", None) or error.__cause__ or error.__context__) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    return type(error).__name__
