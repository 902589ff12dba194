"""The server in front of the gateway: what one connection may take, over real sockets."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from blindbox_attestation.binding import Bound
from enclave_app import edge
from enclave_app.figures import resident_bytes
from enclave_app.gateway import Limits
from enclave_app.identity import QuoteLimits
from enclave_app.quoting import Quote
from tests.kit.debian import need
from tests.kit.enclave import RunningEnclave, running, simulated_quoter
from tests.kit.peer import b64url, seal
from tests.soak.caller import ATTESTATION, Line

GATEWAY = (
    b"POST /.well-known/ohttp-gateway HTTP/1.1\r\nHost: x\r\nContent-Type: message/ohttp-chunked-req\r\n"
)


@pytest.fixture(scope="module")
def enclave() -> Iterator[RunningEnclave]:
    patch = pytest.MonkeyPatch()
    patch.setattr(edge, "HEAD_SECONDS", 0.5)
    patch.setattr(edge, "STALL_SECONDS", 0.5)
    limits = Limits(receipt_seconds=1.0, least_rate=1 << 20, body_bytes=8 << 20)
    with running(limits=limits) as enclave:
        yield enclave
    patch.undo()


def connect(enclave: RunningEnclave) -> socket.socket:
    return socket.create_connection(("127.0.0.1", enclave.port), timeout=60)


def answer(peer: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    try:
        while piece := peer.recv(65536):
            received += piece
    except ConnectionResetError:
        pass  # it closed while we were sending: what it said before is in `received`
    return received


def send_until_refused(peer: socket.socket, piece: bytes, most: int) -> int:
    sent = 0
    try:
        while sent < most:
            peer.sendall(piece)
            sent += len(piece)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return sent


def healthy(enclave: RunningEnclave) -> bool:
    with closing(connect(enclave)) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return answer(peer).endswith(b"alive")


@pytest.mark.parametrize(
    "kind", ["a million headers", "a header without end", "a path without end", "endless folding"]
)
def test_a_head_is_bounded(enclave: RunningEnclave, kind: str) -> None:
    """S-7: 431 and a closed connection; the memory does not grow by what was sent."""
    start, piece = {
        "a million headers": (b"GET / HTTP/1.1\r\n", b"x-y: z\r\n" * 8192),
        "a header without end": (b"GET / HTTP/1.1\r\nx: ", b"y" * 65536),
        "a path without end": (b"GET /", b"y" * 65536),
        "endless folding": (b"GET / HTTP/1.1\r\nx: y\r\n", b" " * 65536),
    }[kind]
    before = resident_bytes()
    with closing(connect(enclave)) as peer:
        peer.sendall(start)
        sent = send_until_refused(peer, piece, 64 << 20)
        said = answer(peer)
    assert sent < 16 << 20
    assert said == b"" or said.split(b"\r\n")[0] in (
        b"HTTP/1.1 431 Request Header Fields Too Large",
        b"HTTP/1.1 400 Bad Request",
    )
    assert resident_bytes() - before < 32 << 20
    assert healthy(enclave)


@pytest.mark.parametrize("greeting", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-x\r\n"])
def test_what_is_no_http_gets_400_and_leaves_no_trace(
    enclave: RunningEnclave, greeting: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(connect(enclave)) as peer:
        peer.sendall(greeting)
        assert answer(peer).startswith(b"HTTP/1.1 400 ")
    assert not [record for record in caplog.records if record.exc_info]
    assert healthy(enclave)


def test_an_endless_chunked_body_is_bounded(enclave: RunningEnclave) -> None:
    """S-7: 413 at the limit, whatever is sent after; the memory does not grow by it."""
    before = resident_bytes()
    with closing(connect(enclave)) as peer:
        peer.sendall(GATEWAY + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = send_until_refused(peer, b"10000\r\n" + bytes(65536) + b"\r\n", 256 << 20)
        said = answer(peer)
    assert sent < 64 << 20
    assert said == b"" or said.startswith(b"HTTP/1.1 413 ")
    assert resident_bytes() - before < 32 << 20
    assert healthy(enclave)


def test_a_huge_announced_body_is_answered_before_it_is_sent(enclave: RunningEnclave) -> None:
    """S-7: 413 from the head alone."""
    with closing(connect(enclave)) as peer:
        peer.sendall(GATEWAY + b"Content-Length: 1099511627776\r\n\r\n")
        said = answer(peer)
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in said


def test_a_head_that_drips_in_is_cut_off(enclave: RunningEnclave) -> None:
    """S-8: the deadline for a head is absolute."""
    with closing(connect(enclave)) as peer:
        start = time.monotonic()
        try:
            for byte in b"GET / HTTP/1.1\r\nHost: " + b"x" * 5000:  # for more than a minute and a half
                peer.sendall(bytes([byte]))
                time.sleep(0.02)
        except (BrokenPipeError, ConnectionResetError):
            pass
        said = answer(peer)
        assert time.monotonic() - start < 40
    assert said == b"" or said.startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_says_nothing_is_closed(enclave: RunningEnclave) -> None:
    """S-8: also a second head that never ends, on a connection that was used before."""
    with closing(connect(enclave)) as peer:
        start = time.monotonic()
        assert answer(peer).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - start < 40
    with closing(connect(enclave)) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET")
        start = time.monotonic()
        assert b"alive" in answer(peer)
        assert time.monotonic() - start < 40


def test_a_body_that_drips_in_is_cut_off(enclave: RunningEnclave) -> None:
    """S-8: 408 after the receipt deadline, though bytes keep coming."""
    body = seal(enclave.identity, b"POST", b"/upload", b"x" * 10000).body  # takes a hundred seconds
    with closing(connect(enclave)) as peer:
        peer.sendall(GATEWAY + b"Content-Length: %d\r\n\r\n" % len(body))
        start = time.monotonic()
        try:
            for byte in body:
                peer.sendall(bytes([byte]))
                time.sleep(0.01)
        except (BrokenPipeError, ConnectionResetError):
            pass
        said = answer(peer)
        assert time.monotonic() - start < 40
    assert said == b"" or said.startswith(b"HTTP/1.1 408 ")


def test_slow_senders_do_not_keep_others_waiting(enclave: RunningEnclave) -> None:
    """S-8: 200 slow heads and 200 slow bodies; a healthy request is answered meanwhile."""
    peers = [connect(enclave) for _ in range(400)]
    try:
        for number, peer in enumerate(peers):
            peer.sendall(b"GET /" if number % 2 else GATEWAY + b"Content-Length: 100\r\n\r\n\x00")
        start = time.monotonic()
        assert healthy(enclave)
        assert time.monotonic() - start < 40  # one after the other they would take minutes
    finally:
        for peer in peers:
            peer.close()


def test_a_reader_that_stalls_is_dropped(enclave: RunningEnclave) -> None:
    """S-8: a connection whose buffer stays full is aborted; what the application holds for it is released."""
    sealed = seal(enclave.identity, path=b"/bytes/16000000?pieces=300")
    deadline = time.monotonic() + 120
    while enclave.gateway._running and time.monotonic() < deadline:  # what other tests left is on its way out
        time.sleep(0.01)
    with closing(socket.socket()) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(60)
        peer.connect(("127.0.0.1", enclave.port))
        peer.sendall(GATEWAY + b"Content-Length: %d\r\n\r\n" % len(sealed.body) + sealed.body)
        while not enclave.gateway._running and time.monotonic() < deadline:
            time.sleep(0.001)
        assert enclave.gateway._running == 1
        while enclave.gateway._running and time.monotonic() < deadline:
            time.sleep(0.05)
        assert enclave.gateway._running == 0
        assert len(answer(peer)) < 12 << 20


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("-H", ["-t", "GET"]),
        ("-B", ["-t", "POST", "-s", "8192", "-f", "message/ohttp-chunked-req"]),
    ],
    ids=["headers", "body"],
)
def test_slowhttptest_finds_the_service_available_and_is_cut_off(
    enclave: RunningEnclave, kind: str, more: list[str]
) -> None:
    """S-8: 300 connections of a known tool; none is left open, and its own probe is answered throughout."""
    need("slowhttptest")
    path = "/" if kind == "-H" else GATEWAY.split(b" ")[1].decode()
    pace = ["-c", "300", "-r", "300", "-i", "1", "-x", "10", "-l", "30", "-p", "5", "-v", "1"]
    found = subprocess.run(
        ["slowhttptest", kind, *pace, *more, "-u", enclave.origin + path],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    said = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", found.stdout)
    assert "service available:   YES" in said
    assert "service available:   NO" not in said
    assert "No open connections left" in said
    assert healthy(enclave)


def test_a_flood_of_questions_for_evidence_is_coalesced_and_paced() -> None:
    """
    S-14: 1000 questions within about a second, to a machine that takes 200 ms for a quote. Those without a
    nonce cost one quote and are served from memory; of the others a few are answered and the rest told when
    to come back. What is sealed is served meanwhile.
    """

    class Slow:
        platform = "simulated"
        quotes = 0

        def quote(self, bound: Bound) -> Quote:
            self.quotes += 1
            time.sleep(0.2)
            return simulated_quoter().quote(bound)

    quoter = Slow()

    async def ask(port: int, nonce: bytes | None) -> tuple[int, dict[bytes, bytes], bytes]:
        line = Line(port)
        target = ATTESTATION if nonce is None else ATTESTATION + b"?nonce=" + b64url(nonce)
        await line.send(b"GET", target, b"Connection: close\r\n", b"")
        status, fields = await line.head()
        return status, fields, b"".join([piece async for piece in line.body(fields)])

    async def flood(port: int) -> tuple[list[int], set[bytes], list[tuple[int, dict[bytes, bytes]]]]:
        asking = []
        for number in range(1000):
            nonce = number.to_bytes(32, "big") if number % 2 else None
            asking.append(asyncio.create_task(ask(port, nonce)))
            await asyncio.sleep(0.001)
        answers = await asyncio.gather(*asking)
        plain, fresh = answers[::2], answers[1::2]
        return [one[0] for one in plain], {one[2] for one in plain}, [one[:2] for one in fresh]

    with running(quoter=quoter) as enclave:
        told: list[bool] = []
        beside = threading.Timer(0.4, lambda: told.append(healthy(enclave)))
        beside.start()
        started = time.monotonic()
        plain, documents, fresh = asyncio.run(flood(enclave.port))
        seconds = time.monotonic() - started
        beside.join()
    assert set(plain) == {200}
    assert len(documents) == 1
    answered = [status for status, _ in fresh].count(200)
    limits = QuoteLimits()
    assert 1 <= answered <= limits.burst + limits.per_second * seconds
    assert answered < len(fresh)
    assert all(status == 200 or (status == 503 and b"retry-after" in fields) for status, fields in fresh)
    assert quoter.quotes <= answered + 1
    assert told == [True]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        GATEWAY + b"Content-Length: -1\r\n\r\n",
        GATEWAY + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        GATEWAY + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request_closes_the_connection(enclave: RunningEnclave, request_bytes: bytes) -> None:
    """S-9: nothing is tolerated that two parsers could read in two ways."""
    with closing(connect(enclave)) as peer:
        peer.sendall(request_bytes)
        said = answer(peer)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1") == 1


def test_an_upgrade_is_not_offered(enclave: RunningEnclave) -> None:
    """S-5: no web socket outside the seal."""
    with closing(connect(enclave)) as peer:
        peer.sendall(
            b"GET /test HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert answer(peer).startswith(b"HTTP/1.1 404 ")


def test_a_connection_serves_many_requests(enclave: RunningEnclave) -> None:
    with closing(connect(enclave)) as peer:
        for _ in range(5):
            peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            said = b""
            while not said.endswith(b"alive"):
                piece = peer.recv(4096)
                assert piece, "the connection was closed"
                said += piece


def test_the_sender_of_too_much_still_hears_why(enclave: RunningEnclave) -> None:
    """A client in the middle of an upload reads its 413 instead of a reset."""
    with closing(connect(enclave)) as peer:
        peer.sendall(GATEWAY + b"Content-Length: 100000000\r\n\r\n")
        stop = threading.Event()

        def keep_sending() -> None:
            while not stop.is_set():
                try:
                    peer.sendall(bytes(65536))
                except OSError:
                    return

        sender = threading.Thread(target=keep_sending)
        sender.start()
        said = peer.recv(4096)
        stop.set()
        sender.join()
    assert said.startswith(b"HTTP/1.1 413 ")
    assert said.endswith(b"the request is too large")
