"""
One question over HTTP to a service of this very machine: its host's metadata service, or a local socket.

Bounded in time and size, through no proxy, following nothing. What comes back is not trusted: the client
verifies what is made of it.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from . import QuoteUnavailable


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(
    service: str | Path,
    method: str,
    target: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = 10.0,
    most: int = 64 * 1024,
) -> bytes:
    """
    The body of the answer, which must be a 200. `service` is "http://address" or a socket's path.

    `seconds` is for all of it: when they are over the socket is shut, wherever the answer is by then.
    """
    if isinstance(service, Path):
        connection: http.client.HTTPConnection = _UnixConnection(service, seconds)
    else:
        connection = http.client.HTTPConnection(urlsplit(service).netloc, timeout=seconds)
    over = threading.Event()
    opened: list[socket.socket] = []  # the connection itself forgets its socket when an answer has no length

    def shut() -> None:
        over.set()
        for one in opened:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, shut)
    timer.daemon = True
    timer.start()
    try:
        connection.connect()
        opened.append(connection.sock)
        connection.request(method, target, body, dict(headers or {}))
        response = connection.getresponse()
        found = response.read(most + 1)
        status, whole = response.status, response.isclosed()
    except (OSError, http.client.HTTPException) as error:
        why = f"no answer within {seconds:g} s" if over.is_set() else str(error) or type(error).__name__
        raise QuoteUnavailable(f"{service}{target}: {why}") from error
    finally:
        timer.cancel()
        connection.close()
    if status != 200:
        raise QuoteUnavailable(f"{service}{target} answers {status}: {found[:200]!a}")
    if len(found) > most:
        raise QuoteUnavailable(f"{service}{target} answers more than {most} bytes")
    if over.is_set() or not whole:
        raise QuoteUnavailable(f"{service}{target}: the answer was cut after {len(found)} bytes")
    return found
