"""
A plain local endpoint that proves and seals: any program of this machine speaks HTTP/1.1 to it.

    with Proxy("http://203.0.113.7:80", policy="release-1.0.json") as proxy:
        print(proxy.url)        # http://127.0.0.1:8080

It listens only after the machine has proved itself, and nothing reaches the machine but through
`SealedAdapter`: what cannot be proved or sealed is answered with an error, never sent as it is. Who may use
the port is decided in `loopback.py`; what a request's body may look like, in `local_body.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.errors import (
    FirstHeaderLineIsContinuationDefect,
    HeaderDefect,
    MissingHeaderBodySeparatorDefect,
)
from email.message import Message
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import requests as outer
from requests.structures import CaseInsensitiveDict

from .adapter import AnyPolicyOrFile, SealedAdapter
from .call import Call, GivenUp, may_be_repeated
from .collateral import SHARED, Collateral
from .departures import Departures
from .errors import (
    AttestationError,
    BlindBoxError,
    ForeignRedirect,
    OutcomeUnknown,
    SealingError,
    UnsealedAnswer,
)
from .local_body import BadBody, ClientGone, LocalBody
from .loopback import Doorkeeper, Listening, Refused
from .origin import origin_of
from .printable import plain
from .proof import Proof
from .requests import Session
from .timeouts import DEFAULT, Timeouts

EVIDENCE_HEADER: Final = "blindbox-evidence-id"
OWN: Final = "/blindbox/"  # paths that are the proxy's, and never sent on
MOST_CONNECTIONS: Final = 512
HEAD_BYTES: Final = 64 * 1024
IDLE_SECONDS: Final = 75.0  # for the next request, and between two bytes of one
STALL_SECONDS: Final = 120.0  # for a program that does not take what it asked for
_PIECE: Final = 64 * 1024

# RFC 9110 §7.6.1; of the rest, what is ours to say. CORS would let other pages in.
_ABOUT_A_CONNECTION = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NO_HEADER = (FirstHeaderLineIsContinuationDefect, HeaderDefect, MissingHeaderBodySeparatorDefect)
_NOT_SENT = _ABOUT_A_CONNECTION | {"host", "expect", "origin", "referer", "accept-encoding"}
_NOT_RETURNED = _ABOUT_A_CONNECTION | {"blindbox-request-id", "content-length", "alt-svc", EVIDENCE_HEADER}


@dataclass(frozen=True, slots=True)
class Page:
    """Something that the proxy itself answers with."""

    body: bytes
    media: str = "application/json"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


class Proxy:
    """
    Proves `origin` at once, and serves it from `start` on (or within a `with` block) until `close`.

    `listen` is a loopback address; for others, `anywhere` has to be True, and a `token` is asked for then in
    any case. `token` is what programs must show as their bearer; True makes one. `forward_authorization`
    passes a program's own Authorization on, sealed; else each call is made as the user of this machine, with
    their tenant token. `pages` are answers of the proxy's own, by path; those of `files` are the same for
    everybody, and nobody has to show the token for them. `timeouts` are those towards the machine. `log` is
    called with one line about each request: no query, no content.
    """

    def __init__(
        self,
        origin: str,
        *,
        policy: AnyPolicyOrFile | None = None,
        listen: str = "127.0.0.1:8080",
        anywhere: bool = False,
        token: str | bool = False,
        forward_authorization: bool = False,
        pages: Mapping[str, Callable[[], Page]] | None = None,
        files: Mapping[str, Page] | None = None,
        collateral: Collateral | None = SHARED,
        timeouts: Timeouts = DEFAULT,
        adapter: SealedAdapter | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.origin = origin_of(origin)
        at = Listening.parse(listen)
        if not at.loopback and not anywhere:
            raise ValueError(
                f"{listen} can be reached from other machines, and whoever reaches it speaks in your name; "
                "listen on 127.0.0.1, or say --listen-anywhere, which asks every program for a token"
            )
        if token is True or (not token and not at.loopback):
            token = secrets.token_urlsafe(24)
        self.token = token or None
        if self.token and forward_authorization:
            raise ValueError(
                "a token for the proxy and a forwarded Authorization would be in one and the same header: "
                "choose one of them"
            )
        self.door = adapter or SealedAdapter(
            policy, origin=self.origin, pool_maxsize=MOST_CONNECTIONS, collateral=collateral
        )
        self._own_door = adapter is None
        self.session = Session(adapter=self.door)
        self._way: Any = self.session.merge_environment_settings(self.origin, {}, True, None, None)
        self.forward_authorization = forward_authorization
        self.pages = {f"{OWN}proof": self._proof_page, **(pages or {})}
        self.files: Final = dict(files or {})
        self.log = log
        self._timeouts = timeouts
        self._calls: set[Call] = set()
        self._guard = threading.Lock()
        self._serving = self._stopped = False
        self.proof: Final = self.prove()
        try:
            self._server = _Server(self, at)
        except OSError as error:
            raise ValueError(
                f"{at.url} cannot be listened on: {error.strerror} (port 0 takes a free one)"
            ) from error
        self.listening: Final = Listening(at.host, self._server.port)
        self.doorkeeper: Final = Doorkeeper(self.listening, self.token)
        self.departures: Final = Departures()

    # ── its life ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def url(self) -> str:
        return self.listening.url

    def prove(self) -> Proof:
        """The machine's proof: the one in use, or a new one where that may no longer be used."""
        way = {name: self._way[name] for name in ("verify", "cert", "proxies")}
        return self.door.prove(self.origin, **way)

    def serve(self) -> None:
        """Serve until `stop` is called from another thread."""
        self._serving = True
        if not self._stopped:
            self._server.serve_forever(poll_interval=0.1)

    def start(self) -> None:
        """Serve in a thread of its own."""
        threading.Thread(target=self.serve, name="proxy", daemon=True).start()

    def stop(self) -> None:
        """Take no new connections; `serve` returns."""
        self._stopped = True
        if self._serving:  # who shuts down what never began waits for ever
            self._server.shutdown()

    def close(self) -> None:
        """Stop, and give up what is under way: the enclave no longer works on it."""
        self.stop()
        self._server.server_close()
        with self._guard:
            calls = list(self._calls)
        for call in calls:
            call.give_up()
        self._server.hang_up()
        self.departures.close()
        if self._own_door:
            self.door.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ── one call ──────────────────────────────────────────────────────────────────────────────────────────

    def prepared(self, method: str, target: str, headers: Message, body: Any) -> outer.PreparedRequest:
        """What a local program asks, as `SealedAdapter` takes it."""
        request = outer.PreparedRequest()
        request.method = method
        request.url = self.origin + target
        request.body = body
        fields: CaseInsensitiveDict[str] = CaseInsensitiveDict()
        unwanted = _NOT_SENT | _named(headers.get_all("connection", []))
        if not self.forward_authorization:
            unwanted |= {"authorization"}
        for name, value in headers.items():
            if name.lower() not in unwanted and not name.lower().startswith("sec-fetch-"):
                apart = "; " if name.lower() == "cookie" else ", "
                fields[name] = f"{fields[name]}{apart}{value}" if name in fields else value
        # Compressing before sealing would let the length of a message tell about its content.
        fields["Accept-Encoding"] = "identity"
        request.headers = fields
        return request

    @contextlib.contextmanager
    def asked(self, request: outer.PreparedRequest, call: Call) -> Iterator[outer.Response]:
        """The machine's answer, opened as it comes."""
        with self._guard:
            self._calls.add(call)
        try:
            response = self.door.send(
                request, **{**self._way, "stream": True}, timeout=self._timeouts, call=call
            )
            with contextlib.closing(response):
                yield response
        finally:
            with self._guard:
                self._calls.discard(call)

    def returned(self, response: outer.Response) -> list[tuple[str, str]]:
        """The answer's headers, without its length."""
        unwanted = _NOT_RETURNED | _named([response.headers.get("connection", "")])
        fields = [
            (name, value)
            for name, value in response.raw.headers.iteritems()
            if name.lower() not in unwanted and not name.lower().startswith("access-control-")
        ]
        target = self.session.get_redirect_target(response)  # raises if it leads elsewhere
        if target:
            to = urlsplit(target)
            local = (to.path or "/") + (f"?{to.query}" if to.query else "")
            fields = [field for field in fields if field[0].lower() != "location"]
            fields.append(("location", local + (f"#{to.fragment}" if to.fragment else "")))
        return [*fields, (EVIDENCE_HEADER, response.__dict__["blindbox"].evidence_id)]

    def _proof_page(self) -> Page:
        return Page(self.prove().to_json().encode(), headers=(("cache-control", "no-store"),))


def _named(values: list[str]) -> frozenset[str]:
    """The fields that a Connection field names."""
    return frozenset(name.strip().lower() for value in values for name in value.split(","))


# ── the server ────────────────────────────────────────────────────────────────────────────────────────────


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread for each local connection: they are few, and none waits for another."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, proxy: Proxy, at: Listening) -> None:
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in at.host else socket.AF_INET
        super().__init__((at.host, at.port), _Handler)

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            room = len(self._open) < MOST_CONNECTIONS
            if room:
                self._open.add(request)
        if room:
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.send(
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        self.close_request(request)  # `finish` has said good-bye, or must not

    def hang_up(self) -> None:
        with self._guard:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The program hung up, or the handler has a fault: its traceback could show what was said."""


class _Handler(BaseHTTPRequestHandler):
    """One local connection."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def serve(self) -> None:
        """Answer one request, whose head has been read."""
        began = time.monotonic()
        self.begun = 0  # the status of the answer, once its head is written
        path = self.path.partition("?")[0]
        try:
            self._answer(path)
        except (ClientGone, GivenUp):
            self.close_connection = True
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told in our words or not at all
            self.close_connection = True
            if not self.begun:
                with contextlib.suppress(OSError):
                    self._tell(_told(error, self.call, self.request_asked))
        if self.server.proxy.log is not None:
            took = 1000 * (time.monotonic() - began)
            self.server.proxy.log(plain(f"{self.command} {path} {self.begun or 'gone'} {took:.0f} ms"))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = serve  # noqa: N815

    def _answer(self, path: str) -> None:
        """
        1. may this program ask at all?
        2. is it asking the proxy itself?
        3. read, seal, send
        4. hand on what comes, as it comes
        """
        proxy = self.server.proxy
        self.call, self.request_asked = Call(), None
        self._check_head()
        proxy.doorkeeper.look(self.headers, open_to_all=path in proxy.files)  # 1
        body = LocalBody(self.headers, self.rfile, self._go_on)
        if path in proxy.files or path in proxy.pages or path.startswith(OWN):  # 2
            self._page(path, body)
            return
        self.request_asked = proxy.prepared(self.command, self.path, self.headers, body.read())  # 3
        with contextlib.ExitStack() as waiting:
            if body.finished:
                waiting.enter_context(proxy.departures.noticed(self.connection, self.call.give_up))
            with proxy.asked(self.request_asked, self.call) as response:
                self._hand_on(response, proxy.returned(response))  # 4
        if not body.finished:
            self.close_connection = True

    def _check_head(self) -> None:
        headers = self.headers
        size = sum(len(name) + len(value) for name, value in headers.items())
        if size + len(self.path) > HEAD_BYTES:
            raise BadBody(431, f"the request's head is longer than {HEAD_BYTES} bytes")
        # Other defects are of a mail whose parts are missing: an upload's head names their boundary.
        broken = any(isinstance(each, _NO_HEADER) for each in headers.defects)
        if broken or any("\r" in value or "\n" in value for value in headers.values()):
            raise BadBody(400, "the request's head has a line that is no header")
        if not self.path.startswith("/") or any(each <= " " or each in "#\x7f" for each in self.path):
            raise BadBody(400, "the request's target is not a path; this is no proxy for other addresses")

    def _page(self, path: str, body: LocalBody) -> None:
        proxy = self.server.proxy
        if path not in proxy.files and path not in proxy.pages:
            raise BadBody(404, f"the proxy itself has no such path; what begins with {OWN} is never sent on")
        if self.command not in ("GET", "HEAD"):
            raise BadBody(405, "this path can be read, nothing else")
        if not body.finished:
            self.close_connection = True
        self._tell(proxy.files[path] if path in proxy.files else proxy.pages[path]())

    def _hand_on(self, response: outer.Response, headers: list[tuple[str, str]]) -> None:
        raw = response.raw
        length = raw.headers.get("content-length")
        bare = self.command == "HEAD" or raw.status in (204, 304)
        chunked = length is None and not bare and self.request_version == "HTTP/1.1"
        if length is not None and raw.status != 204:
            headers.append(("content-length", length))
        elif chunked:
            headers.append(("transfer-encoding", "chunked"))
        elif not bare:  # HTTP/1.0: the end of the connection is the end of the answer
            self.close_connection = True
        self.connection.settimeout(STALL_SECONDS)
        self._write_head(raw.status, raw.reason or "", headers)
        left = int(length) if length is not None and not bare else None
        try:
            held = (
                b""  # by length, the last piece says that the answer is whole: it waits for the seal's word
            )
            for piece in raw.stream(_PIECE, decode_content=False):
                if left is not None:
                    left -= len(piece)
                    held, piece = piece, held
                if bare or (left is not None and left < 0):
                    raise SealingError("the answer is longer than it says")
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if left:
                raise SealingError("the answer is shorter than it says")
            self.wfile.write(held)
        except BaseException:
            # An answer without its authenticated end must not look like a whole one.
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            raise
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        self.connection.settimeout(IDLE_SECONDS)

    def _tell(self, page: Page) -> None:
        headers = [("content-type", page.media), ("content-length", str(len(page.body))), *page.headers]
        if not any(name == EVIDENCE_HEADER for name, _ in headers):
            key = self.server.proxy.door.keys.latest().get(self.server.proxy.origin)
            if key is not None:
                headers.append((EVIDENCE_HEADER, key.verified.evidence_id.hex()))
        self._write_head(page.status, "", headers, b"" if self.command == "HEAD" else page.body)

    def _write_head(
        self, status: int, reason: str, headers: list[tuple[str, str]], body: bytes = b""
    ) -> None:
        if self.close_connection:
            headers = [*headers, ("connection", "close")]
        elif self.request_version == "HTTP/1.0":
            headers = [*headers, ("connection", "keep-alive")]
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers)]
        self.begun = status
        self.wfile.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1") + body)

    def _go_on(self) -> None:
        if self.headers.get("expect", "").strip().lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # ── what the base class would do otherwise ────────────────────────────────────────────────────────────

    def handle_expect_100(self) -> bool:
        """Said when the body is wanted, not before."""
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The head could not be read."""
        self.close_connection = True
        self.command = self.command or "?"
        self._tell(_error(code, message or "the request cannot be read", "bad-request"))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing, but by `Proxy.log`."""

    def finish(self) -> None:
        """Let the answer to a body that was not read to its end arrive before the connection is reset."""
        with contextlib.suppress(OSError):
            super().finish()
            if self.close_connection and not self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER):
                self.connection.shutdown(socket.SHUT_WR)
                self.connection.settimeout(1.0)
                left = 8 << 20
                while left > 0 and (data := self.connection.recv(_PIECE)):
                    left -= len(data)


_RESET: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # struct linger: on, 0 seconds


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────


def _told(error: Exception, call: Call, request: outer.PreparedRequest | None) -> Page:
    """What the local program is told: OpenAI's error object, which its packages understand."""
    if isinstance(error, Refused):
        return _error(error.status, str(error), error.code)
    if isinstance(error, BadBody):
        return _error(error.status, str(error), "bad-request")
    again = request is not None and may_be_repeated(error, request, call)
    more: tuple[tuple[str, str], ...] = ()
    if isinstance(error, AttestationError):
        why = f"the machine did not prove itself, so nothing was sent to it: {plain(str(error))}"
        return _error(502, why, error.code, kind="attestation_error", again=False)
    if isinstance(error, UnsealedAnswer):
        if error.retry_after is not None:
            more = (("retry-after", f"{error.retry_after:.0f}"),)
        status = error.status if error.status in (413, 503) else 502
        return _error(status, plain(str(error)), "unsealed-answer", again=again, more=more)
    if isinstance(error, ForeignRedirect):
        why = "the enclave redirects to another origin, which has proved nothing; not passed on"
        return _error(502, why, "foreign-redirect", again=False)
    if isinstance(error, OutcomeUnknown):
        return _error(502, plain(str(error)), "outcome-unknown", again=again)
    if isinstance(error, SealingError):
        return _error(502, plain(str(error)), "sealing-error", again=False)
    if isinstance(error, outer.exceptions.Timeout):
        return _error(504, f"the machine did not answer in time{_sent(call)}", "timeout", again=again)
    if isinstance(error, outer.exceptions.UnrewindableBodyError | BlindBoxError):
        return _error(502, plain(str(error)), "not-sent", again=again)
    if isinstance(error, outer.RequestException):
        return _error(502, f"the machine could not be reached{_sent(call)}", "unreachable", again=again)
    return _error(500, f"a fault in the proxy itself ({type(error).__name__})", "internal-error", again=False)


def _sent(call: Call) -> str:
    return "; the call was sent, and whether it ran is unknown" if call.sent else "; nothing was sent to it"


def _error(
    status: int,
    message: str,
    code: str,
    *,
    kind: str | None = None,
    again: bool | None = None,
    more: tuple[tuple[str, str], ...] = (),
) -> Page:
    """`again` is what OpenAI's packages ask before they send a call once more."""
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
    headers = more if again is None else (("x-should-retry", str(again).lower()), *more)
    return Page(body, status=status, headers=headers)
