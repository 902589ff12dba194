"""
The page for talking to a machine that proved itself: its files, what it shows, and how it is served.

`LocalPage` serves it on loopback: with the proxy behind it if the machine was accepted, and with nothing
behind it if it was refused. What the browser may do with the page is said in its headers: load its own
files, speak to its own server, and nothing else. Other users of the same computer lack the token of this
start; pages from elsewhere are refused in `loopback.py`.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from types import TracebackType
from typing import Any, Final, Self

from blindbox_attestation.steps import NAMES

from ..adapter import AnyPolicyOrFile, SealedAdapter
from ..collateral import SHARED, Collateral
from ..errors import AttestationError, NoPolicy, SealingError
from ..loopback import Doorkeeper, Listening, Refused
from ..origin import origin_of
from ..proxy import OWN, Page, Proxy
from ..report import Report, instant
from ..report.page import NOT_PROVED

HEADERS: Final = (
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    ("cache-control", "no-store"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
)
SHOWN: Final = f"{OWN}page.json"
"""Where the page finds what it shows of the proof."""

_FILES: Final = {
    "": ("index.html", "text/html; charset=utf-8"),
    "app.js": ("app.js", "text/javascript; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}


def files() -> dict[str, Page]:
    """The page's files, by path. They are nobody's: a browser loads them before it has the token."""
    here = resources.files(__name__)
    return {
        OWN + name: Page((here / file).read_bytes(), media, headers=HEADERS)
        for name, (file, media) in _FILES.items()
    }


def shown(report: Report) -> Page:
    """What the page shows of a proof: the file of SPEC §7, the steps' names, what no proof shows, its end."""
    told = {
        "report": json.loads(report.to_json()),
        "names": NAMES,
        "limits": NOT_PROVED,
        "until": None if report.until is None else instant(report.until),
    }
    return Page(json.dumps(told).encode(), headers=HEADERS)


class LocalPage:
    """
    The page of one machine, served from now on until `close`. `url` is its address.

    The machine is asked for its proof at once. `report` tells what came of it; one that was refused is shown,
    and cannot be talked to. Raises what `SealedAdapter.prove` raises where there was nothing to judge.
    """

    def __init__(
        self,
        origin: str,
        *,
        policy: AnyPolicyOrFile | None = None,
        port: int = 0,
        collateral: Collateral | None = SHARED,
    ) -> None:
        self.origin: Final = origin_of(origin)
        listen = f"127.0.0.1:{port}"
        self._door = door = SealedAdapter(policy, origin=self.origin, collateral=collateral)
        self._server: Proxy | _Refusal
        try:
            self._server = self._proxy = Proxy(
                self.origin,
                listen=listen,
                token=True,
                adapter=door,
                files=files(),
                pages={SHOWN: lambda: shown(self.now())},
            )
            self.report = self._proxy.proof.report
        except NoPolicy:
            raise
        except (AttestationError, SealingError) as error:
            self.report = self._refused(error)
            self._server = _Refusal(self.report, Listening.parse(listen))
        # What follows # is not sent to anybody; the page takes it, and clears the address.
        self.url: Final = f"{self._server.url}{OWN}#{self._server.token}"
        self._server.start()

    def now(self) -> Report:
        """The proof in use, or a new one where that may no longer be used, or why there is none."""
        try:
            return self._proxy.prove().report
        except (AttestationError, SealingError) as error:
            return self._refused(error)

    def _refused(self, error: Exception) -> Report:
        return Report(self.origin, datetime.now(UTC), self._door.policy_for(self.origin)).ended(error)

    def close(self) -> None:
        self._server.close()
        self._door.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Refusal(ThreadingHTTPServer):
    """Serves the page of a machine that was refused. There is no way on from here."""

    def __init__(self, report: Report, at: Listening) -> None:
        try:
            super().__init__((at.host, at.port), _Handler)
        except OSError as error:
            raise ValueError(
                f"{at.url} cannot be listened on: {error.strerror} (port 0 takes a free one)"
            ) from error
        listening = Listening(at.host, self.server_port)
        self.token = secrets.token_urlsafe(24)
        self.url = listening.url
        self.doorkeeper = Doorkeeper(listening, self.token)
        self.files = files()
        self.shown = shown(report)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One request for it."""

    timeout = 30

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        assert isinstance(server, _Refusal)
        page = server.files.get(path)
        try:
            server.doorkeeper.look(self.headers, open_to_all=page is not None)
        except Refused as refused:
            page = Page(b"", status=refused.status)
        else:
            page = page or (server.shown if path == SHOWN else Page(b"", status=404))
        self.send_response(page.status)
        for name, value in (("content-type", page.media), *page.headers):
            self.send_header(name, value)
        self.send_header("content-length", str(len(page.body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(page.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
