"""`blindbox proxy`: what passes, who may use it, and what happens when something goes wrong."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from blindbox import Policy, SnpPolicy, Tcb, cli
from blindbox.errors import AttestationError
from blindbox.loopback import Listening
from blindbox.proxy import EVIDENCE_HEADER, HEAD_BYTES, Proxy
from blindbox.report import SavedProof
from blindbox.tenant import STORE
from blindbox.timeouts import Timeouts
from enclave_app.identity import Identity
from tests.kit.amd import MEASUREMENT, FakeAmd
from tests.kit.enclave import RunningEnclave, make_identity, running
from tests.kit.generating import Generating
from tests.kit.pinned_amd import FakeAmdQuoter, accepting
from tests.kit.relay import Asked, Box, Relay, Reply, http_reply
from tests.kit.simulated import unsafe

CANARY = "the prompt nobody else may see"


@contextlib.contextmanager
def proxied(origin: str, policy: Any, **options: Any) -> Iterator[Proxy]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proxy = Proxy(origin, policy=policy, listen="127.0.0.1:0", **options)
    with proxy:
        yield proxy


@pytest.fixture
def proxy(enclave: RunningEnclave, policy: Any) -> Iterator[Proxy]:
    with proxied(enclave.origin, policy) as one:
        yield one


def connected(proxy: Proxy, timeout: float = 60) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", proxy.listening.port, timeout=timeout)


def asked(proxy: Proxy, method: str, path: str, body: Any = None, **headers: str) -> tuple[Any, bytes]:
    """One request on a connection of its own: the answer's head, and its body."""
    connection = connected(proxy)
    with contextlib.closing(connection):
        connection.request(
            method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer, answer.read()


def error_of(body: bytes) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(body)["error"]
    assert set(told) == {"message", "type", "param", "code"}
    return told


# ── what passes ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_a_request_arrives_as_it_was_said_and_sealed(method: str, proxy: Proxy) -> None:
    body = None if method == "GET" else b"\x00some bytes\xff"
    answer, told = asked(proxy, method, "/echo/a%20b?x=1&y=%2F", body, x_one="1", cookie="a=b")
    arrived = json.loads(told)
    assert answer.status == 200
    assert (arrived["method"], arrived["path"], arrived["query"]) == (method, "/echo/a b", "x=1&y=%2F")
    headers = dict(arrived["headers"])
    assert headers["x-one"] == "1"
    assert headers["cookie"] == "a=b"
    assert headers["accept-encoding"] == "identity"
    assert headers["host"] == proxy.proof.boot_id
    assert answer.getheader(EVIDENCE_HEADER) == proxy.proof.evidence_id


def test_nothing_that_is_said_can_be_read_on_the_way(enclave: RunningEnclave, policy: Any) -> None:
    with Relay(enclave.origin) as relay, proxied(relay.origin, policy) as proxy:
        asked(proxy, "POST", "/echo/secret-path?secret=1", CANARY.encode(), x_secret="secret")
        assert relay.sealed()
        assert CANARY.encode() not in relay.heard
        assert b"secret" not in relay.heard


def test_head_and_answers_without_a_body_have_none(proxy: Proxy) -> None:
    answer, body = asked(proxy, "HEAD", "/echo")
    assert (answer.status, body) == (200, b"")
    assert int(answer.getheader("content-length")) > 0
    answer, body = asked(proxy, "GET", "/status/204")
    assert (answer.status, body) == (204, b"")
    assert answer.getheader("content-length") is answer.getheader("transfer-encoding") is None


def test_a_connection_serves_one_request_after_the_other(proxy: Proxy) -> None:
    connection = connected(proxy)
    with contextlib.closing(connection):
        connection.connect()
        first = connection.sock
        for number in range(5):
            connection.request("POST", "/echo", f"number {number}")
            assert json.loads(connection.getresponse().read())["method"] == "POST"
            connection.request("GET", "/events?n=2&gap=0")
            assert connection.getresponse().read() == b"data: 0\n\ndata: 1\n\n"
        assert connection.sock is first


def test_bodies_arrive_whole_by_length_and_in_chunks(proxy: Proxy) -> None:
    for size in (0, 1, 100_000, (8 << 20) + 1):
        data = hashlib.shake_128(b"seed").digest(size)
        wanted = {"sha256": hashlib.sha256(data).hexdigest(), "size": size}
        assert json.loads(asked(proxy, "POST", "/digest", data)[1]) == wanted
        pieces = (data[at : at + 99_999] for at in range(0, size, 99_999))
        assert json.loads(asked(proxy, "POST", "/digest", pieces)[1]) == wanted


def test_an_answer_of_any_size_arrives_whole(proxy: Proxy) -> None:
    for size in (0, 1, 65_536, 3_000_000):
        _, body = asked(proxy, "GET", f"/big?n={size}")
        assert len(body) == size


def test_a_program_that_waits_for_100_continue_is_told_to_go_on(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.listening.port), timeout=60) as raw:
        host = f"127.0.0.1:{proxy.listening.port}".encode()
        raw.sendall(b"POST /digest HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 3\r\n")
        raw.sendall(b"Expect: 100-continue\r\n\r\n")
        assert raw.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(b"abc")
        assert raw.recv(16).startswith(b"HTTP/1.1 200 ")


def test_a_program_of_http_1_0_gets_an_answer_without_chunks(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.listening.port), timeout=60) as raw:
        raw.sendall(
            f"GET /events?n=2&gap=0 HTTP/1.0\r\nHost: 127.0.0.1:{proxy.listening.port}\r\n\r\n".encode()
        )
        told = b"".join(iter(lambda: raw.recv(4096), b""))
    assert told.endswith(b"\r\n\r\ndata: 0\n\ndata: 1\n\n")
    assert b"transfer-encoding" not in told


def test_redirects_stay_here_and_never_lead_to_somebody_unproven(proxy: Proxy) -> None:
    for to in ("/echo?q=1", "https://AUTHORITY/echo?q=1"):
        answer, _ = asked(proxy, "GET", f"/go?to={to.replace('?', '%3F')}")
        assert (answer.status, answer.getheader("location")) == (302, "/echo?q=1")
    answer, body = asked(proxy, "POST", "/go?status=307&to=http://127.0.0.1:9/", CANARY)
    assert answer.status == 502
    assert answer.getheader("location") is None
    assert error_of(body)["code"] == "foreign-redirect"


def test_the_proof_can_be_had_and_judged_again(proxy: Proxy, tmp_path: Path) -> None:
    answer, body = asked(proxy, "GET", "/blindbox/proof")
    assert answer.getheader("content-type") == "application/json"
    assert answer.getheader("cache-control") == "no-store"
    path = tmp_path / "proof.json"
    path.write_bytes(body)
    assert SavedProof.load(path).document == proxy.proof.document
    answer, body = asked(proxy, "GET", "/blindbox/nothing")
    assert (answer.status, error_of(body)["code"]) == (404, "bad-request")
    assert asked(proxy, "POST", "/blindbox/proof")[0].status == 405


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def generating() -> Generating:
    return Generating()


@pytest.fixture
def speaking(generating: Generating, policy: Any) -> Iterator[Proxy]:
    with running(generating.asgi) as enclave, proxied(enclave.origin, policy) as proxy:
        yield proxy


def test_each_piece_is_handed_on_before_the_next_is_made(generating: Generating, speaking: Proxy) -> None:
    connection = connected(speaking)
    with contextlib.closing(connection):
        connection.request("GET", "/gated")
        answer = connection.getresponse()
        assert answer.read1(100) == b"first"
        generating.go_on.set()
        assert answer.read() == b"second"


def test_a_large_upload_passes_through_while_it_is_made(generating: Generating, speaking: Proxy) -> None:
    """The end of the body does not exist until the enclave has seen its beginning."""

    def body() -> Iterator[bytes]:
        for _ in range(12):
            yield bytes(1 << 20)
        assert generating.begun.wait(60)
        yield b"the end"

    _, told = asked(speaking, "POST", "/upload", body())
    assert json.loads(told) == {"size": (12 << 20) + 7}


def test_who_hangs_up_in_the_middle_of_a_stream_stops_the_enclave(
    generating: Generating, speaking: Proxy
) -> None:
    """S-11: through the proxy, the application's generator is ended at once."""
    connection = connected(speaking)
    connection.request("GET", "/endless")
    assert connection.getresponse().read1(5)
    connection.close()
    assert generating.ended.wait(30)
    assert generating.live == 0


def test_who_hangs_up_before_the_first_byte_stops_the_enclave(
    generating: Generating, speaking: Proxy
) -> None:
    """S-11: there is no answer yet to break off; the sealed call is given up all the same."""
    connection = connected(speaking)
    connection.request("POST", "/silent", b"{}")
    assert generating.begun.wait(60)
    connection.close()
    assert generating.ended.wait(30)
    until = time.monotonic() + 30
    while speaking._calls and time.monotonic() < until:  # a thread of the proxy's is on its way out
        time.sleep(0.01)
    assert not speaking._calls


def test_a_call_that_is_given_up_hits_no_other(enclave: RunningEnclave, policy: Any) -> None:
    """Connections go back to the pool by themselves: who hangs up late must not cut whoever has it now."""
    with proxied(enclave.origin, policy) as proxy:

        def impatient(number: int) -> None:
            connection = connected(proxy)
            connection.request("GET", "/events?n=50&gap=0.01")
            answer = connection.getresponse()
            answer.read1(1 + number % 9)
            connection.close()

        def patient(number: int) -> bool:
            answer, body = asked(proxy, "POST", "/digest", str(number))
            return answer.status == 200 and json.loads(body)["size"] == len(str(number))

        with ThreadPoolExecutor(16) as pool:
            leaving = [pool.submit(impatient, number) for number in range(60)]
            staying = [pool.submit(patient, number) for number in range(200)]
            assert all(each.result() for each in staying)
            for each in leaving:
                each.result()


def test_64_programs_stream_at_the_same_time(enclave: RunningEnclave, policy: Any) -> None:
    together = threading.Barrier(64, timeout=120)

    def one(_: int) -> bytes:
        connection = connected(proxy, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/events?n=20&gap=0.02")
            answer = connection.getresponse()
            first = answer.read1(4)
            together.wait()  # all of them are in the middle of their answer now
            return first + answer.read()

    wanted = b"".join(b"data: %d\n\n" % number for number in range(20))
    with proxied(enclave.origin, policy) as proxy, ThreadPoolExecutor(64) as pool:
        assert set(pool.map(one, range(64))) == {wanted}


def test_programs_that_do_not_read_hold_up_nobody_and_nothing_piles_up(
    generating: Generating, speaking: Proxy
) -> None:
    stuck = []
    for _ in range(8):
        connection = connected(speaking)
        connection.request("GET", "/flood")
        stuck.append(connection)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    generating.go_on.set()
    for _ in range(10):
        assert asked(speaking, "GET", "/gated")[1] == b"firstsecond"
        time.sleep(0.05)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    for connection in stuck:
        connection.close()
    assert generating.ended.wait(30)
    assert grown < 128 << 10  # KiB; without a brake it would be some hundred MiB a second


# ── who may use it ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:PORT"},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:1"},
        {"host": "127.0.0.1.evil.example:PORT"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"origin": "https://127.0.0.1:PORT"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "new-word"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_page_from_elsewhere_gets_nothing(
    headers: dict[str, str], method: str, enclave: RunningEnclave, policy: Any
) -> None:
    """Neither by a name that was made to point here, nor by a request that a browser sends for it."""
    with Relay(enclave.origin) as relay, proxied(relay.origin, policy) as proxy:
        port = str(proxy.listening.port)
        headers = {name: value.replace("PORT", port) for name, value in headers.items()}
        for path in ("/echo", "/blindbox/proof"):
            answer, body = asked(proxy, method, path, **headers)
            assert answer.status in (403, 421)
            assert error_of(body)["code"] in ("foreign-origin", "wrong-host")
            assert not [name for name, _ in answer.getheaders() if name.startswith("access-control")]
        assert not relay.sealed()


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:PORT"},
        {"host": "LOCALHOST:PORT"},
        {"host": "[::1]:PORT"},
        {"origin": "http://127.0.0.1:PORT", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ],
)
def test_programs_and_pages_of_its_own_are_served(headers: dict[str, str], proxy: Proxy) -> None:
    port = str(proxy.listening.port)
    answer, _ = asked(proxy, "GET", "/echo", **{n: v.replace("PORT", port) for n, v in headers.items()})
    assert answer.status == 200


def test_cors_of_the_application_does_not_open_the_port(policy: Any) -> None:
    async def generous(request: Request) -> Response:
        return Response("x", headers={"access-control-allow-origin": "*"})

    with (
        running(Starlette(routes=[Route("/", generous)])) as enclave,
        proxied(enclave.origin, policy) as proxy,
    ):
        assert asked(proxy, "GET", "/")[0].getheader("access-control-allow-origin") is None


def test_a_programs_key_is_not_the_tenant(proxy: Proxy) -> None:
    """OPENAI_API_KEY=anything: the call is made as the user of this machine, by their stored token."""
    _, told = asked(proxy, "GET", "/echo", authorization="Bearer sk-of-somebody-else")
    assert b"sk-of-somebody-else" not in told
    sent = dict(json.loads(told)["headers"])["authorization"]
    assert sent == f"Bearer {STORE.token(proxy.origin)}"


def test_a_programs_key_is_passed_on_where_that_was_asked_for(enclave: RunningEnclave, policy: Any) -> None:
    with proxied(enclave.origin, policy, forward_authorization=True) as proxy:
        _, told = asked(proxy, "GET", "/echo", authorization="Bearer alice")
        assert dict(json.loads(told)["headers"])["authorization"] == "Bearer alice"


def test_with_a_token_only_who_shows_it_is_served(enclave: RunningEnclave, policy: Any) -> None:
    with Relay(enclave.origin) as relay, proxied(relay.origin, policy, token=True) as proxy:
        assert proxy.token is not None
        for wrong in (None, "Bearer ", f"Basic {proxy.token}", f"Bearer {proxy.token[:-1]}", "Bearer é"):
            given = {} if wrong is None else {"authorization": wrong}
            for path in ("/echo", "/blindbox/proof"):
                answer, body = asked(proxy, "GET", path, **given)
                assert (answer.status, error_of(body)["code"]) == (401, "wrong-token")
                assert proxy.token.encode() not in body
        assert not relay.sealed()
        _, told = asked(proxy, "GET", "/echo", authorization=f"bearer {proxy.token}")
        assert proxy.token.encode() not in told  # it is for here, not for the enclave


def test_beyond_loopback_it_has_to_be_told_and_asks_for_a_token(enclave: RunningEnclave, policy: Any) -> None:
    for where in ("0.0.0.0:0", "[::]:0", "192.0.2.1:8080", "example.com:80"):
        with pytest.raises(ValueError, match="listen-anywhere"):
            Proxy(enclave.origin, policy=policy, listen=where)
    proxy = Proxy(enclave.origin, policy=policy, listen="0.0.0.0:0", anywhere=True)
    with proxy:
        assert proxy.token
        assert asked(proxy, "GET", "/echo", host="some.name:1")[0].status == 401
        shown = f"Bearer {proxy.token}"
        assert asked(proxy, "GET", "/echo", host="some.name:1", authorization=shown)[0].status == 200
    with pytest.raises(ValueError, match="one and the same header"):
        Proxy(enclave.origin, policy=policy, token=True, forward_authorization=True)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("127.0.0.1:8080", Listening("127.0.0.1", 8080)),
        ("8080", Listening("127.0.0.1", 8080)),
        (":0", Listening("127.0.0.1", 0)),
        ("[::1]:80", Listening("::1", 80)),
        ("LocalHost:80", Listening("localhost", 80)),
        ("::1:80", None),
        ("127.0.0.1:65536", None),
        ("127.0.0.1:http", None),
        ("", None),
    ],
)
def test_addresses_are_read_strictly(text: str, at: Listening | None) -> None:
    if at is None:
        with pytest.raises(ValueError, match="address"):
            Listening.parse(text)
    else:
        assert Listening.parse(text) == at
        assert at.loopback


# ── what cannot be a request ──────────────────────────────────────────────────────────────────────────────

HOST = b"Host: 127.0.0.1:PORT\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET http://127.0.0.1:9/ HTTP/1.1\r\n" + HOST, 400),
        (b"CONNECT 127.0.0.1:9 HTTP/1.1\r\n" + HOST, 501),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST, 400),
        (b"GET /a#b HTTP/1.1\r\n" + HOST, 400),
        (b"GET /echo HTTP/1.1\r\n", 421),
        (b"GET /echo HTTP/1.1\r\n" + HOST + HOST, 421),
        (b"GET /echo HTTP/1.1\r\n" + HOST + b"no colon\r\n", 400),
        (b"GET /echo HTTP/1.1\r\n X: y\r\n" + HOST, 400),
        (b"GET /echo HTTP/1.1\r\n" + HOST + b"X: folded\r\n value\r\n", 400),
        (b"GET /echo HTTP/1.1\r\n" + HOST + b"X: " + b"x" * HEAD_BYTES + b"\r\n", 431),
        (b"GET /echo HTTP/1.1\r\n" + HOST + b"X: x\r\n" * 101, 431),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n" + HOST, 414),
        (b"GET /echo HTTP/3.0\r\n" + HOST, 505),
        (b"BREW /echo HTTP/1.1\r\n" + HOST, 501),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 3\r\n", 400),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n", 400),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n", 501),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\n", 413),
        (b"\x16\x03\x01 hello tls\r\n", 400),
    ],
)
def test_a_head_that_is_none_is_refused(head: bytes, status: int, proxy: Proxy) -> None:
    port = str(proxy.listening.port).encode()
    with socket.create_connection(("127.0.0.1", proxy.listening.port), timeout=60) as raw:
        raw.sendall(head.replace(b"PORT", port) + b"\r\n")
        raw.shutdown(socket.SHUT_WR)
        told = b"".join(iter(lambda: raw.recv(65536), b""))
    assert told.startswith(b"HTTP/1.1 %d " % status)
    assert error_of(told.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(
    "body", [b"zz\r\n", b"-1\r\n", b"3\r\nabcd\r\n", b"3;" + b"x" * 5000, b"0\r\n" + b"X: x\r\n" * 101]
)
def test_a_chunked_body_that_is_none_is_refused(body: bytes, proxy: Proxy) -> None:
    head = (
        f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{proxy.listening.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", proxy.listening.port), timeout=60) as raw:
        raw.sendall(head.encode() + body)
        told = b"".join(iter(lambda: raw.recv(65536), b""))
    assert told.startswith(b"HTTP/1.1 400 ")


def test_too_many_connections_are_told_so(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blindbox.proxy.MOST_CONNECTIONS", 3)
    held = [socket.create_connection(("127.0.0.1", proxy.listening.port)) for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for each in held:
            stack.enter_context(each)
        with socket.create_connection(("127.0.0.1", proxy.listening.port), timeout=60) as raw:
            assert raw.recv(100).startswith(b"HTTP/1.1 503 ")
    for _ in range(1000):
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            if asked(proxy, "GET", "/echo")[0].status == 200:
                return
        time.sleep(0.05)
    pytest.fail("it serves nobody any more")


# ── when something goes wrong ─────────────────────────────────────────────────────────────────────────────


def test_it_does_not_listen_before_the_machine_has_proved_itself(
    enclave: RunningEnclave, policy: Any
) -> None:
    floor = Tcb(bootloader=4, tee=0, snp=22, microcode=213)
    wrong = Policy(snp=SnpPolicy(measurements={bytes(48)}, minimum_tcb={"Genoa": floor}))
    before = set(threading.enumerate())
    with pytest.raises(AttestationError):
        Proxy(enclave.origin, policy=wrong, listen="127.0.0.1:0")
    # The enclave, which is in this process, may have a thread more by now.
    assert not [one for one in set(threading.enumerate()) - before if one.name.startswith("proxy")]


def test_a_machine_that_no_longer_proves_itself_gets_nothing(enclave: RunningEnclave) -> None:
    """The proof is asked for again when its time is over; from then on there is an error, and no fallback."""
    short = unsafe(max_age=timedelta(seconds=0.3))
    with Relay(enclave.origin) as relay, proxied(relay.origin, short) as proxy:
        assert asked(proxy, "POST", "/echo", CANARY)[0].status == 200
        sealed = len(relay.sealed())
        relay.before = lambda _: http_reply(200, "application/json", b'{"answered": "in the clear"}')
        time.sleep(0.35)
        for path in ("/echo", "/blindbox/proof"):
            answer, body = asked(proxy, "GET", path)
            assert answer.status == 502
            told = error_of(body)
            assert (told["type"], told["code"]) == ("attestation_error", "no-evidence")
            assert "not with an attestation document" in told["message"]
            assert answer.getheader("x-should-retry") == "false"
        assert len(relay.sealed()) == sealed
        assert CANARY.encode() not in relay.heard
        relay.before = None
        assert asked(proxy, "GET", "/echo")[0].status == 200


def test_an_answer_in_the_clear_is_not_handed_on(enclave: RunningEnclave, policy: Any) -> None:
    with Relay(enclave.origin) as relay, proxied(relay.origin, policy) as proxy:
        relay.change = lambda passed: http_reply(200, "application/json", b'{"forged": true}')
        answer, body = asked(proxy, "POST", "/echo", CANARY)
        assert answer.status == 502
        assert b"forged" not in body
        assert error_of(body)["code"] == "unsealed-answer"
        relay.change = lambda passed: http_reply(503, "text/plain", b"busy", more="Retry-After: 7\r\n")
        answer, body = asked(proxy, "POST", "/echo", CANARY)
        assert (answer.status, answer.getheader("retry-after")) == (503, "7")
        # It proves nothing: somebody on the way may say so while the enclave runs the call.
        assert answer.getheader("x-should-retry") == "false"
        assert asked(proxy, "GET", "/echo")[0].getheader("x-should-retry") == "true"


def test_a_cut_answer_does_not_look_like_a_whole_one(enclave: RunningEnclave, policy: Any) -> None:
    """In chunks, by length, and to a program of HTTP/1.0, which knows the end by the connection's."""
    with Relay(enclave.origin) as relay, proxied(relay.origin, policy) as proxy:
        relay.change = lambda passed: passed.reply(cut=len(passed.body) - 1)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            asked(proxy, "GET", "/big?n=200000")
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            asked(proxy, "POST", "/echo", b"x" * 200_000)
        with socket.create_connection(("127.0.0.1", proxy.listening.port), timeout=60) as raw:
            raw.sendall(
                f"GET /big?n=200000 HTTP/1.0\r\nHost: 127.0.0.1:{proxy.listening.port}\r\n\r\n".encode()
            )
            with pytest.raises(ConnectionError):
                list(iter(lambda: raw.recv(65536), b""))


def test_a_call_whose_answer_is_lost_is_not_sent_again(
    app: Any, enclave: RunningEnclave, policy: Any
) -> None:
    """C-34: cut after the request was sent: it ran once, and the program is told not to try again."""
    with Relay(enclave.origin) as relay, proxied(relay.origin, policy) as proxy:
        relay.change = lambda passed: Reply([])
        answer, body = asked(proxy, "POST", "/run/lost-by-proxy", b"{}")
        assert answer.status == 502
        assert answer.getheader("x-should-retry") == "false"
        assert "whether it ran is unknown" in error_of(body)["message"]
        assert app.runs["lost-by-proxy"] == 1
        answer, _ = asked(proxy, "GET", "/run/lost-by-proxy")
        assert answer.getheader("x-should-retry") == "true"  # nobody minds if that runs twice
        answer, _ = asked(proxy, "POST", "/run/lost-by-proxy", b"{}", idempotency_key="mine-1")
        assert answer.getheader("x-should-retry") == "true"  # and here the program has said so


def test_a_machine_that_is_gone_is_told_of_and_may_be_asked_again(app: Any, policy: Any) -> None:
    """C-34: nothing was sent, so that trying again is safe."""
    with contextlib.ExitStack() as stack:
        with running(app.asgi) as enclave:
            proxy = stack.enter_context(proxied(enclave.origin, policy, timeouts=Timeouts(connect=0.5)))
            assert asked(proxy, "GET", "/echo")[0].status == 200
        answer, body = asked(proxy, "POST", "/run/gone", b"{}")
        assert answer.status in (502, 504)
        assert answer.getheader("x-should-retry") == "true"
        assert "nothing was sent" in error_of(body)["message"]
        assert app.runs["gone"] == 0


def test_keys_that_wear_out_under_load_lose_no_call_and_run_none_twice(app: Any) -> None:
    """C-35: every key opens 48 messages and every proof lasts 500 ms, while 16 programs call and stream."""
    restless = unsafe(max_age=timedelta(seconds=0.5))
    identity = make_identity(seen_per_key=48)
    wanted = b"".join(b"data: %d\n\n" % number for number in range(12))
    evidence = set()

    def one(number: int) -> bool:
        answer, body = asked(proxy, "POST", f"/run/rotating-{number}", b"{}")
        evidence.add(answer.getheader(EVIDENCE_HEADER))
        _, events = asked(proxy, "GET", "/events?n=12&gap=0.02")
        return answer.status == 200 and json.loads(body) == {"runs": 1} and events == wanted

    with (
        running(app.asgi, identity=identity) as enclave,
        proxied(enclave.origin, restless) as proxy,
        ThreadPoolExecutor(16) as pool,
    ):
        assert all(pool.map(one, range(120)))
        assert len(evidence) > 2


def silent_after_the_proof(enclave: RunningEnclave, pieces: Any) -> Box:
    """Proves itself honestly, and answers a sealed call with `pieces`."""
    relay = Relay(enclave.origin)
    relay.before = lambda one: Reply(pieces(one)) if one.method == "POST" else None
    return relay


def nothing_at_all(_: Asked) -> Iterator[bytes]:
    time.sleep(200)
    yield b""


def heads_without_end(_: Asked) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    for number in range(400):
        yield b"X-%d: x\r\n" % number
        time.sleep(0.4)


def a_byte_now_and_then(_: Asked) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\ncontent-type: message/ohttp-chunked-res\r\ncontent-length: 10000\r\n\r\n"
    for _each in range(2000):
        yield b"\x00"
        time.sleep(0.05)


@pytest.mark.parametrize("pieces", [nothing_at_all, heads_without_end, a_byte_now_and_then])
def test_a_machine_that_does_not_answer_is_not_waited_for(
    pieces: Any, enclave: RunningEnclave, policy: Any
) -> None:
    """C-48: no first byte, a head without end, a byte now and then: the program hears of it in time."""
    limits = Timeouts(connect=1.0, between_bytes=0.8, in_all=1.5)
    with (
        silent_after_the_proof(enclave, pieces) as box,
        proxied(box.origin, policy, timeouts=limits) as proxy,
    ):
        began = time.monotonic()
        answer, body = asked(proxy, "POST", "/echo", CANARY)
        assert time.monotonic() - began < 30  # urllib3 alone gives up on endless heads after 40 s
        assert answer.status == 504
        assert CANARY.encode() not in body


def test_the_limits_are_finite_unless_somebody_says_otherwise(enclave: RunningEnclave, policy: Any) -> None:
    """C-48: connect, between bytes, and in all."""
    with proxied(enclave.origin, policy) as proxy:
        limits = proxy._timeouts
        assert None not in (limits.connect, limits.between_bytes, limits.in_all)


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def machine(app: Any, amd: FakeAmd) -> Iterator[RunningEnclave]:
    """An enclave that proves itself to a pinned root, so that a policy file can accept it."""
    with running(app.asgi, identity=Identity(FakeAmdQuoter(amd), config_digest=bytes(48))) as one:
        yield one


@pytest.fixture
def policy_file(amd: FakeAmd, tmp_path: Path) -> Path:
    path = tmp_path / "policy.json"
    path.write_text(accepting(amd).to_json())
    return path


def run(arguments: list[str], use: Any, told: Any) -> int:
    """The command, on this thread; `use(url)` runs beside it once it says where it listens, then SIGTERM."""
    problems: list[BaseException] = []

    def beside() -> None:
        try:
            out = ""
            for _ in range(2000):
                if "speaks for" in (out := told()):
                    break
                time.sleep(0.05)
            url = next(word for word in out.split() if word.startswith("http://127.0.0.1:"))
            use(url)
        except BaseException as error:
            problems.append(error)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=beside)
    thread.start()
    status = cli.main(arguments)
    thread.join()
    assert not problems, problems
    return status


def test_the_command_says_what_was_proved_and_what_to_set_and_ends_when_told(
    machine: RunningEnclave, policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def told() -> str:
        said.append(capsys.readouterr().out)
        return "".join(said)

    def use(url: str) -> None:
        with urllib.request.urlopen(f"{url}/echo?secret=1") as answer:
            assert json.load(answer)["path"] == "/echo"

    origin = machine.origin
    arguments = ["proxy", origin, "--policy", str(policy_file), "--port", "0", "--verbose"]
    assert run(arguments, use, told) == cli.DONE
    lines = "".join(said).splitlines()
    assert lines[0].startswith(f"proved: AMD SEV-SNP, measurement {MEASUREMENT.hex()}, evidence ")
    assert lines[1].endswith(f" speaks for {origin}. Programs of this machine use it with:")
    assert lines[2].startswith("    export OPENAI_BASE_URL=http://127.0.0.1:")
    assert lines[2].endswith("/v1")
    assert lines[3] == "    export OPENAI_API_KEY=unused"
    assert "--require-token" in lines[4]
    log = capsys.readouterr().err
    assert log.startswith("GET /echo 200 ")
    assert "secret" not in log


def test_a_token_that_is_asked_for_is_printed_as_the_key_to_set(
    machine: RunningEnclave, policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def told() -> str:
        said.append(capsys.readouterr().out)
        return "".join(said)

    def use(url: str) -> None:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}/echo")
        key = told().partition("OPENAI_API_KEY=")[2].split()[0]
        asking = urllib.request.Request(f"{url}/echo", headers={"Authorization": f"Bearer {key}"})
        assert urllib.request.urlopen(asking).status == 200

    arguments = ["proxy", machine.origin, "--policy", str(policy_file), "--listen", "127.0.0.1:0"]
    assert run([*arguments, "--require-token"], use, told) == cli.DONE
    assert "--require-token" not in "".join(said)


@pytest.mark.parametrize(
    ("more", "status", "why"),
    [
        (["--listen", "0.0.0.0:0"], cli.USAGE, "listen-anywhere"),
        (["--listen", "nonsense"], cli.USAGE, "no address like"),
        (["--require-token", "--forward-authorization"], cli.USAGE, "one and the same header"),
        (["--policy", "/nowhere.json"], cli.USAGE, "nowhere.json"),
        (["--policy", "ANOTHER"], cli.NOT_PROVED, "not proved: "),
    ],
)
def test_the_command_refuses_before_it_listens(
    more: list[str],
    status: int,
    why: str,
    machine: RunningEnclave,
    policy_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    another = tmp_path / "another.json"
    another.write_text(policy_file.read_text().replace(MEASUREMENT.hex(), bytes(48).hex()))
    more = [str(another) if each == "ANOTHER" else each for each in more]
    arguments = ["proxy", machine.origin, "--policy", str(policy_file), *more]
    assert cli.main(arguments) == status
    told = capsys.readouterr()
    assert told.out == ""
    assert why in told.err


def test_a_port_that_is_taken_is_told_of(
    machine: RunningEnclave, policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ["proxy", machine.origin, "--policy", str(policy_file), "--listen", where]
        assert cli.main(arguments) == cli.USAGE
    assert f"http://{where} cannot be listened on" in capsys.readouterr().err


def test_the_client_needs_no_web_framework_for_it() -> None:
    code = (
        "import sys, blindbox.proxy, blindbox.commands.proxy; "
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('fastapi', 'starlette', 'uvicorn', 'httpx', 'httpx2', 'openai', 'anyio')])"
    )
    path = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout.strip() == "[]", done.stderr
