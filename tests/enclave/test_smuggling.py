"""
S-9: request smuggling. Two parsers in a row may not read the same bytes as different numbers of requests.

Every attack here hides `GET /smuggled` where one reading finds a body and another a request. It is sent
straight to the enclave, and through nginx and haproxy with connections to the enclave that others use next.
In no case may the enclave see a request that the one in front of it has not seen, nor another caller get its
answer.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from enclave_app.gateway import Gateway
from tests.kit.debian import need
from tests.kit.enclave import make_echo_app, make_identity, serving
from tests.kit.peer import seal
from tests.kit.process import free_port

HIDDEN = b"GET /smuggled HTTP/1.1\r\nHost: x\r\nX: "
GATEWAY = b"/.well-known/ohttp-gateway"


def post(fields: bytes, body: bytes, *, path: bytes = GATEWAY, version: bytes = b"1.1") -> bytes:
    head = b"POST " + path + b" HTTP/" + version + b"\r\nHost: x\r\n"
    return head + b"Content-Type: message/ohttp-chunked-req\r\n" + fields + b"\r\n" + body


def length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n" % len(body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


CHUNKED = b"Transfer-Encoding: chunked\r\n"
LAST = b"0\r\n\r\n"
ENDED = LAST + HIDDEN  # a chunked body that has ended, and what hides behind it

# Spellings of one field that some parsers read as chunked and others do not.
HALF_CHUNKED = {
    "an unknown coding": b"Transfer-Encoding: xchunked\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n",
    "a tab before the value": b"Transfer-Encoding:\tchunked\r\n",
    "a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n",
    "a null after it": b"Transfer-Encoding: chunked\x00\r\n",
    "folded": b"Transfer-Encoding:\r\n chunked\r\n",
    "folded with a tab": b"Transfer-Encoding:\r\n\tchunked\r\n",
    "a bare LF before it": b"X: y\nTransfer-Encoding: chunked\r\n",
    "a bare CR before it": b"X: y\rTransfer-Encoding: chunked\r\n",
    "a bare LF in its name": b"Transfer-Encoding\n: chunked\r\n",
    "a space before it": b" Transfer-Encoding: chunked\r\n",
    "quoted": b'Transfer-Encoding: "chunked"\r\n',
    "identity first": b"Transfer-Encoding: identity, chunked\r\n",
    "identity last": b"Transfer-Encoding: chunked, identity\r\n",
    "twice, unknown last": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
    "twice, unknown first": b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
    "an underscore": b"Transfer_Encoding: chunked\r\n",
    "a comma": b"Transfer-Encoding: ,chunked\r\n",
    "a parameter": b"Transfer-Encoding: chunked;q=1\r\n",
    "upper case": b"TRANSFER-ENCODING: CHUNKED\r\n",
}

ATTACKS: dict[str, bytes] = {
    "CL.TE": post(length(ENDED) + CHUNKED, ENDED),
    "TE.CL": post(CHUNKED + b"Content-Length: 4\r\n", chunk(HIDDEN) + LAST),
    "both, HTTP/1.0": post(length(ENDED) + CHUNKED, ENDED, version=b"1.0"),
    **{
        f"{what}, and a length of all": post(length(ENDED) + spelling, ENDED)
        for what, spelling in HALF_CHUNKED.items()
    },
    **{
        f"{what}, and a length of a part": post(spelling + b"Content-Length: 4\r\n", chunk(HIDDEN) + LAST)
        for what, spelling in HALF_CHUNKED.items()
    },
    "two lengths": post(b"Content-Length: 0\r\n" + length(HIDDEN), HIDDEN),
    "two lengths, turned": post(length(HIDDEN) + b"Content-Length: 0\r\n", HIDDEN),
    "a list of lengths": post(b"Content-Length: 0, %d\r\n" % len(HIDDEN), HIDDEN),
    "a signed length": post(b"Content-Length: +%d\r\n" % len(HIDDEN), HIDDEN),
    "a negative length": post(b"Content-Length: -1\r\n", HIDDEN),
    "a length in hex": post(b"Content-Length: 0x%x\r\n" % len(HIDDEN), HIDDEN),
    "a length with a space": post(b"Content-Length: %d 0\r\n" % len(HIDDEN), HIDDEN),
    "a length with an underscore": post(b"Content-Length: %d_0\r\n" % len(HIDDEN), HIDDEN),
    "a length beyond 64 bits": post(b"Content-Length: 18446744073709551616\r\n", HIDDEN),
    "a length with a space before its colon": post(b"Content-Length : %d\r\n" % len(HIDDEN), HIDDEN),
    "a folded length": post(b"X: y\r\n Content-Length: %d\r\n" % len(HIDDEN), HIDDEN),
    "a length behind a bare LF": post(b"X: y\nContent-Length: %d\r\n" % len(HIDDEN), HIDDEN),
    "a length behind a bare CR": post(b"X: y\rContent-Length: %d\r\n" % len(HIDDEN), HIDDEN),
    "a head that ends with bare LFs": b"POST / HTTP/1.1\nHost: x\n" + length(HIDDEN) + b"\n" + HIDDEN,
    "a line that ends in a bare LF": post(b"X: y\n" + length(HIDDEN), HIDDEN),
    "a chunk's extension with a bare LF": post(CHUNKED, b"2;\nxx\r\n%x\r\n" % len(HIDDEN) + ENDED),
    "a chunk's extension with a bare CR": post(CHUNKED, b"2;\rxx\r\n%x\r\n" % len(HIDDEN) + ENDED),
    "a chunk size that ends in a bare LF": post(CHUNKED, b"2\nxx\r\n0\r\n\r\n" + HIDDEN + LAST),
    "a chunk's end that is a bare LF": post(CHUNKED, b"2\r\nxx\n0\r\n\r\n" + HIDDEN),
    "a chunk's end that is anything": post(CHUNKED, b"2\r\nxxyy0\r\n\r\n" + HIDDEN),
    "a chunk size in C's hex": post(CHUNKED, b"0x2\r\nxx\r\n" + ENDED),
    "a signed chunk size": post(CHUNKED, b"+2\r\nxx\r\n" + ENDED),
    "a negative chunk size": post(CHUNKED, b"-2\r\nxx\r\n" + ENDED),
    "a chunk size with a space": post(CHUNKED, b"2 0\r\nxx\r\n" + ENDED),
    "a chunk size with an underscore": post(CHUNKED, b"0_2\r\nxx\r\n" + ENDED),
    "a chunk size beyond 64 bits": post(CHUNKED, b"10000000000000002\r\nxx\r\n" + ENDED),
    "a last chunk without its end": post(CHUNKED, b"0\r\n" + HIDDEN),
    "a body for a GET": b"GET / HTTP/1.1\r\nHost: x\r\n" + length(HIDDEN) + b"\r\n" + HIDDEN,
    "a chunked body for a GET": b"GET / HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\n" + chunk(HIDDEN) + LAST,
    "a body for a route that is not there": post(length(HIDDEN), HIDDEN, path=b"/nothing"),
    "a body for a HEAD": b"HEAD / HTTP/1.1\r\nHost: x\r\n" + length(HIDDEN) + b"\r\n" + HIDDEN,
    "a body that is waited for": post(length(HIDDEN) + b"Expect: 100-continue\r\n", HIDDEN),
    "a body that is waited for, oddly": post(length(HIDDEN) + b"Expect: y 100-continue\r\n", HIDDEN),
    "an upgrade to HTTP/2": b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n" + length(HIDDEN) + b"\r\n" + HIDDEN,
    "a null in a field": post(b"X: a\x00b\r\n" + length(HIDDEN), HIDDEN),
    "a field without a name": post(b": y\r\n" + length(HIDDEN), HIDDEN),
    "a line without a colon": post(b"nothing\r\n" + length(HIDDEN), HIDDEN),
    "a trailer with a length": post(CHUNKED, b"0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN))
    + b"POST / HTTP/1.1\r\nHost: x\r\n" + length(HIDDEN) + b"\r\n" + HIDDEN,
}  # fmt: skip


@dataclass
class Watched:
    """A gateway that notes what reaches it."""

    gateway: Gateway
    paths: list[bytes] = field(default_factory=list)
    unmarked: list[bytes] = field(default_factory=list)  # of requests that nobody in front has seen

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.paths.append(scope["raw_path"])
            if (b"x-front", b"seen") not in scope["headers"]:
                self.unmarked.append(scope["raw_path"])
        await self.gateway(scope, receive, send)


@dataclass(frozen=True)
class Place:
    """Where requests are sent to, and what then arrived at the enclave."""

    port: int
    enclave: Watched


def exchange(port: int, data: bytes, patience: float = 0.5) -> bytes:
    """Send, and hear what comes until the other side closes or says nothing for a while."""
    heard = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as peer, contextlib.suppress(OSError):
        peer.sendall(data)
        peer.settimeout(patience)
        while piece := peer.recv(65536):
            heard += piece
    return heard


def is_served(place: Place) -> bool:
    """Another caller asks, and gets the answer to that."""
    heard = exchange(place.port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 60)
    return heard.startswith(b"HTTP/1.1 200 ") and heard.endswith(b"alive")


@pytest.fixture(scope="module")
def direct() -> Iterator[Place]:
    watched = Watched(Gateway(make_echo_app(), make_identity()))
    with serving(watched) as port:
        yield Place(port, watched)


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_two_parsers_could_read_in_two_ways_is_no_second_request(direct: Place, attack: str) -> None:
    """S-9: straight to the enclave; it hears nothing of the hidden request, and the connection is closed."""
    heard = exchange(direct.port, ATTACKS[attack] + b"\r\n\r\n")
    assert b"/smuggled" not in direct.enclave.paths
    assert heard.count(b"HTTP/1.1 ") <= 2  # `100 Continue` is one
    assert is_served(direct)


NGINX = """
user root; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream enclave {{ server 127.0.0.1:{onward}; keepalive 1; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://enclave; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header X-Front seen; {buffering}
    }}
  }}
}}
"""

HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 10s
  timeout server 10s
  http-reuse always
{tolerant_defaults}
frontend outside
  bind 127.0.0.1:{port}
  http-request set-header x-front seen
  default_backend enclave
backend enclave
  server one 127.0.0.1:{onward} pool-max-conn 1
"""


def nginx(folder: Path, port: int, onward: int, *, buffering: str) -> list[str]:
    page = folder / "nginx.conf"
    page.write_text(NGINX.format(folder=folder, port=port, onward=onward, buffering=buffering))
    return ["nginx", "-p", str(folder), "-c", str(page), "-e", str(folder / "error.log")]


def haproxy(folder: Path, port: int, onward: int, *, tolerant: bool) -> list[str]:
    page = folder / "haproxy.cfg"
    more = "  option accept-invalid-http-request" if tolerant else ""
    page.write_text(HAPROXY.format(port=port, onward=onward, tolerant_defaults=more))
    return ["haproxy", "-q", "-db", "-f", str(page)]


FRONTS: dict[str, tuple[str, Callable[[Path, int, int], list[str]]]] = {
    "nginx": ("nginx", lambda f, p, o: nginx(f, p, o, buffering="")),
    "nginx that streams": ("nginx", lambda f, p, o: nginx(f, p, o, buffering="proxy_request_buffering off;")),
    "haproxy": ("haproxy", lambda f, p, o: haproxy(f, p, o, tolerant=False)),
    "haproxy that tolerates": ("haproxy", lambda f, p, o: haproxy(f, p, o, tolerant=True)),
}


@contextmanager
def behind(front: str, folder: Path) -> Iterator[Place]:
    """An enclave behind this proxy."""
    program, command = FRONTS[front]
    need(program, "nginx-light" if program == "nginx" else None)
    watched = Watched(Gateway(make_echo_app(), make_identity()))
    with serving(watched) as onward:
        port = free_port()
        running = subprocess.Popen(command(folder, port, onward), stderr=subprocess.DEVNULL)
        try:
            place, deadline = Place(port, watched), time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):
                    assert is_served(place)
                    break
                assert running.poll() is None, f"{program} did not start"
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield place
        finally:
            running.terminate()
            running.wait(60)


@pytest.mark.parametrize("front", FRONTS)
def test_no_proxy_in_front_can_be_made_to_smuggle(front: str, tmp_path: Path) -> None:
    """S-9: whatever a proxy lets through, and however; the next caller on its connection is not poisoned."""
    with behind(front, tmp_path) as place:
        for attack, data in ATTACKS.items():
            exchange(place.port, data + b"\r\n\r\n", 0.05)
            assert not place.enclave.unmarked, attack
            assert is_served(place), attack
            assert is_served(place), attack
        # And what a client of ours sends goes through.
        sealed = seal(place.enclave.gateway.identity, b"POST", b"/upload", b"x" * 100_000)
        heard = exchange(place.port, post(length(sealed.body) + b"Connection: close\r\n", sealed.body), 60)
        head, _, body = heard.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert sealed.open(body).json["size"] == 100_000
