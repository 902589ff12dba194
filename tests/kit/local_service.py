"""
A service of the machine itself, really listening: a cloud's metadata service, a launcher's socket.

    with local_service({("GET", "/x"): lambda asked: b"answer"}) as service: …
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that came."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


Answer = Callable[[Asked], "bytes | tuple[int, bytes]"]


@dataclass(slots=True)
class LocalService:
    """Where it listens, and what it was asked."""

    address: str | Path = ""
    asked: list[Asked] = field(default_factory=list)


class _Unix(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@contextmanager
def local_service(
    answers: Mapping[tuple[str, str], Answer], *, socket: Path | None = None
) -> Iterator[LocalService]:
    """Answer these methods and targets, and nothing else; on a Unix socket if one is named."""
    service = LocalService()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            size = int(self.headers.get("content-length", "0"))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, self.rfile.read(size))
            service.asked.append(asked)
            known = answers.get((self.command, self.path))
            told = known(asked) if known else (404, b"nothing here")
            status, body = told if isinstance(told, tuple) else (200, told)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815 - the names that http.server looks for

        def address_string(self) -> str:
            return "here"

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server: Any
    if socket is not None:
        server = _Unix(str(socket), Handler)
        service.address = socket
    else:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        service.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)
