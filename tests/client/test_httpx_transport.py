"""The transports for `httpx2`: what passes, how it streams, how it ends, and what errors look like."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import pytest

from blindbox import AttestationError, ForeignRedirect, NoPolicy, Proof, ResponseTooLarge, SealedAdapter
from blindbox.httpx_transport import PROOF, STREAMED, AsyncSealedTransport, SealedTransport
from tests.kit.enclave import RunningEnclave, running
from tests.kit.generating import Generating
from tests.kit.relay import Relay, Reply, http_reply

CANARY = "the prompt nobody else may see"


@contextlib.contextmanager
def client_of(policy: Any, *, unrepeatable: Any = None, **options: Any) -> Iterator[httpx2.Client]:
    told = {} if unrepeatable is None else {"unrepeatable": unrepeatable}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transport = SealedTransport(SealedAdapter(policy), **told)
    with httpx2.Client(transport=transport, trust_env=False, **options) as client:
        yield client


def async_client(policy: Any, **options: Any) -> httpx2.AsyncClient:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transport = AsyncSealedTransport(SealedAdapter(policy))
    return httpx2.AsyncClient(transport=transport, trust_env=False, **options)


@pytest.fixture
def client(policy: Any) -> Iterator[httpx2.Client]:
    with client_of(policy) as one:
        yield one


@pytest.fixture
def generating() -> Generating:
    return Generating()


@pytest.fixture
def speaking(generating: Generating) -> Iterator[str]:
    with running(generating.asgi) as enclave:
        yield enclave.origin


# ── what passes ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_a_request_arrives_as_it_was_said(
    method: str, enclave: RunningEnclave, client: httpx2.Client
) -> None:
    body = b"" if method == "GET" else b"\x00some bytes\xff"
    response = client.request(
        method, f"{enclave.origin}/echo/a%20b?x=1&y=%2F#z", content=body, headers={"x-one": "1"}
    )
    told = response.json()
    assert (told["method"], told["path"], told["query"]) == (method, "/echo/a b", "x=1&y=%2F")
    headers = dict(told["headers"])
    assert (headers["x-one"], headers["accept-encoding"]) == ("1", "identity")
    proof = response.extensions[PROOF]
    assert isinstance(proof, Proof)
    assert proof.boot_id == headers["host"]


def test_nothing_that_is_said_can_be_read_on_the_way(enclave: RunningEnclave, client: httpx2.Client) -> None:
    with Relay(enclave.origin) as relay:
        client.post(
            f"{relay.origin}/echo/secret?secret=1", json={"x": CANARY}, headers={"x-secret": "secret"}
        )
        assert relay.sealed()
        assert CANARY.encode() not in relay.heard
        assert b"secret" not in relay.heard


def test_bodies_of_every_kind_arrive_whole(enclave: RunningEnclave, client: httpx2.Client) -> None:
    data = hashlib.shake_128(b"seed").digest((9 << 20) + 1)
    wanted = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    pieces = (data[at : at + 99_999] for at in range(0, len(data), 99_999))
    url = f"{enclave.origin}/digest"
    assert client.post(url, content=data).json() == wanted
    assert client.post(url, content=pieces).json() == wanted
    assert client.post(url, files={"file": ("x", data)}).json()["size"] > len(data)

    async def piecewise() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 99_999):
            yield data[at : at + 99_999]

    async def all_of_it(policy: Any) -> None:
        async with async_client(policy) as one:
            assert (await one.post(url, content=data)).json() == wanted
            assert (await one.post(url, content=piecewise())).json() == wanted
            assert (await one.post(url, files={"file": ("x", b"small")})).status_code == 200

    transport: Any = client._transport
    asyncio.run(all_of_it(transport._calls.door.policy))


def test_redirects_stay_within_the_origin(enclave: RunningEnclave, policy: Any) -> None:
    with client_of(policy, follow_redirects=True) as client:
        for to in ("/echo?q=1", "https://AUTHORITY/echo?q=1"):
            response = client.post(f"{enclave.origin}/go", params={"to": to, "status": 307}, content=CANARY)
            assert response.json()["path"] == "/echo"
        with pytest.raises(ForeignRedirect):
            client.post(f"{enclave.origin}/go?status=307&to=http://127.0.0.1:9/", content=CANARY)


def test_another_origin_needs_a_policy_of_its_own(enclave: RunningEnclave, policy: Any) -> None:
    door = SealedAdapter(policy, origin=enclave.origin)
    with (
        socket.create_server(("127.0.0.1", 0)) as elsewhere,
        httpx2.Client(transport=SealedTransport(door)) as client,
    ):
        elsewhere.settimeout(0.2)
        with pytest.raises(NoPolicy):
            client.get(f"http://127.0.0.1:{elsewhere.getsockname()[1]}/")
        with pytest.raises(TimeoutError):
            elsewhere.accept()


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────


def test_each_piece_is_handed_on_before_the_next_is_made(
    generating: Generating, speaking: str, client: httpx2.Client
) -> None:
    with client.stream("GET", f"{speaking}/gated") as response:
        pieces = response.iter_raw()
        assert next(pieces) == b"first"
        generating.go_on.set()
        assert b"".join(pieces) == b"second"


def test_the_async_client_streams_too(generating: Generating, speaking: str, policy: Any) -> None:
    async def main() -> None:
        async with async_client(policy) as client, client.stream("GET", f"{speaking}/gated") as response:
            pieces = response.aiter_raw()
            assert await anext(pieces) == b"first"
            generating.go_on.set()
            assert [piece async for piece in pieces] == [b"second"]

    asyncio.run(main())


def test_100_async_streams_run_side_by_side(enclave: RunningEnclave, policy: Any) -> None:
    """None waits for a thread that another one holds."""

    async def main() -> None:
        together = asyncio.Barrier(100)
        async with async_client(policy, timeout=60) as client:

            async def one() -> bytes:
                async with client.stream("GET", f"{enclave.origin}/events?n=5&gap=0.02") as response:
                    pieces = response.aiter_raw()
                    first = await anext(pieces)
                    await together.wait()
                    return first + b"".join([piece async for piece in pieces])

            wanted = b"".join(b"data: %d\n\n" % number for number in range(5))
            assert set(await asyncio.gather(*(one() for _ in range(100)))) == {wanted}

    asyncio.run(main())


@pytest.mark.parametrize(("method", "path"), [("GET", "/endless"), ("POST", "/silent")])
def test_a_cancelled_task_stops_the_enclave(
    method: str, path: str, generating: Generating, speaking: str, policy: Any
) -> None:
    """S-11: in the middle of a stream, and before its first byte."""

    async def main() -> None:
        async with async_client(policy, timeout=60) as client:

            async def asks() -> None:
                async with client.stream(method, speaking + path) as response:
                    async for _ in response.aiter_raw():
                        pass

            task = asyncio.create_task(asks())
            assert await asyncio.to_thread(generating.begun.wait, 60)
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(generating.ended.wait, 30)

    asyncio.run(main())


def test_leaving_a_stream_stops_the_enclave(
    generating: Generating, speaking: str, client: httpx2.Client
) -> None:
    """S-11."""
    with client.stream("GET", f"{speaking}/endless") as response:
        assert next(response.iter_raw())
    assert generating.ended.wait(30)


# ── limits ────────────────────────────────────────────────────────────────────────────────────────────────


def test_httpx2s_limits_are_kept(enclave: RunningEnclave, policy: Any) -> None:
    """C-48: its read timeout means words of the enclave; signs of life are none."""
    with client_of(policy) as client:
        client.get(f"{enclave.origin}/echo")
        with pytest.raises(httpx2.ReadTimeout):
            client.get(f"{enclave.origin}/slow?s=3", timeout=0.4)
        assert client.get(f"{enclave.origin}/slow?s=0.2", timeout=None).text == "at last"


def test_a_head_without_end_is_not_waited_for(
    enclave: RunningEnclave, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C-48: each byte comes in time; the limit in all ends it, for `requests` and for httpx2."""
    from dataclasses import replace

    import blindbox.requests as requests
    from blindbox import httpx_transport
    from blindbox.timeouts import DEFAULT, Timeouts

    def head() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nX: "
        for _ in range(2000):
            yield b"x"
            time.sleep(0.05)

    with Relay(enclave.origin) as relay, client_of(policy) as client:
        relay.before = lambda asked: Reply(head()) if asked.method == "POST" else None
        began = time.monotonic()
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{relay.origin}/echo", policy=policy, timeout=Timeouts(in_all=0.7))
        monkeypatch.setattr(httpx_transport, "DEFAULT", replace(DEFAULT, in_all=0.7))
        with pytest.raises(httpx2.ReadTimeout):
            client.post(f"{relay.origin}/echo", content=CANARY)
        assert time.monotonic() - began < 60
    assert None not in (DEFAULT.connect, DEFAULT.between_bytes, DEFAULT.in_all)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses")
def test_a_machine_that_never_accepts_is_not_waited_for(client: httpx2.Client, policy: Any) -> None:
    """C-48: the limit for a connection, for `requests` and for httpx2; nothing has been sent then."""
    import blindbox.requests as requests

    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/"
        with pytest.raises(requests.ConnectTimeout):
            requests.get(url, policy=policy, timeout=requests.Timeouts(connect=0.3))
        with pytest.raises(httpx2.ConnectTimeout):
            client.get(url, timeout=httpx2.Timeout(30, connect=0.3))


def test_evidence_whose_head_never_ends_is_not_waited_for(
    enclave: RunningEnclave, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C-48: also before anything is proved."""
    from dataclasses import replace

    import blindbox.requests as requests
    from blindbox import adapter

    def head() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nX: "
        for _ in range(2000):
            yield b"x"
            time.sleep(0.05)

    monkeypatch.setattr(adapter, "EVIDENCE_LIMITS", replace(adapter.EVIDENCE_LIMITS, in_all=0.7))
    with Relay(enclave.origin) as relay:
        relay.before = lambda asked: Reply(head())
        began = time.monotonic()
        with pytest.raises(requests.ReadTimeout):
            requests.get(f"{relay.origin}/echo", policy=policy)
        assert time.monotonic() - began < 60


def test_an_answer_larger_than_the_limit_is_refused_unless_it_is_streamed(
    enclave: RunningEnclave, policy: Any
) -> None:
    """C-49: there is a limit by default."""
    assert SealedAdapter(policy).max_response_bytes == 1 << 30
    door = SealedAdapter(policy, max_response_bytes=100_000)
    with httpx2.Client(transport=SealedTransport(door)) as client:
        assert len(client.get(f"{enclave.origin}/big?n=100000").content) == 100_000
        with pytest.raises(ResponseTooLarge):
            client.get(f"{enclave.origin}/big?n=100001")
        told = client.get(f"{enclave.origin}/big?n=300000", extensions={STREAMED: True})
        assert len(told.content) == 300_000


READING = """
import resource, sys, warnings
warnings.simplefilter("ignore")
from blindbox import SealedAdapter, UnsafeSimulatedPolicy
way, origin, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
policy = UnsafeSimulatedPolicy()

def through_requests(size):
    import blindbox.requests as requests
    with requests.get(f"{origin}/big?n={size}", policy=policy, stream=True) as response:
        return sum(len(piece) for piece in response.iter_content(None))

def through_httpx2(size):
    import httpx2
    from blindbox.httpx_transport import STREAMED, SealedTransport
    with httpx2.Client(transport=SealedTransport(SealedAdapter(policy))) as client:
        with client.stream("GET", f"{origin}/big?n={size}", extensions={STREAMED: True}) as response:
            return sum(len(piece) for piece in response.iter_raw())

def through_the_proxy(size):
    import http.client
    from blindbox.proxy import Proxy
    with Proxy(origin, policy=policy, listen="127.0.0.1:0") as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.listening.port)
        connection.request("GET", f"/big?n={size}")
        answer, seen = connection.getresponse(), 0
        while piece := answer.read1(1 << 16):
            seen += len(piece)
        return seen

read = globals()[f"through_{way}"]
assert read(1 << 20) == 1 << 20
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (32 << 20), resource.RLIM_INFINITY))
try:
    bytearray(48 << 20)
    sys.exit("the limit does not hold")
except MemoryError:
    pass
assert read(wanted) == wanted
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
@pytest.mark.parametrize("way", ["requests", "httpx2", "the_proxy"])
@pytest.mark.parametrize("size", [96 << 20, pytest.param(10 << 30, marks=pytest.mark.slow)])
@pytest.mark.timeout(1800)
def test_a_streamed_answer_of_any_size_needs_the_same_little_memory(
    way: str, size: int, enclave: RunningEnclave
) -> None:
    """C-49: under a limit of memory that the answer is much larger than."""
    path = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, "-c", READING, way, enclave.origin, str(size)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_machine_that_does_not_prove_itself_is_no_error_of_the_network(
    enclave: RunningEnclave, client: httpx2.Client
) -> None:
    """A retry loop that knows httpx2's errors must not swallow it."""
    with Relay(enclave.origin) as relay:
        relay.before = lambda _: http_reply(404, "text/plain", b"nothing here")
        with pytest.raises(AttestationError) as told:
            client.post(f"{relay.origin}/echo", content=CANARY)
        assert not isinstance(told.value, httpx2.HTTPError)
        assert CANARY.encode() not in relay.heard


def lost(relay: Relay) -> None:
    relay.change = lambda passed: Reply([])


def cut(relay: Relay) -> None:
    relay.change = lambda passed: passed.reply(cut=len(passed.body) - 1)


def in_the_clear(relay: Relay) -> None:
    relay.change = lambda passed: http_reply(503, "text/plain", b"busy")


@pytest.mark.parametrize(
    ("trouble", "error"),
    [(lost, httpx2.ReadError), (cut, httpx2.RemoteProtocolError), (in_the_clear, httpx2.ReadError)],
)
def test_only_what_may_run_twice_is_left_to_be_sent_again(
    trouble: Callable[[Relay], None], error: type[Exception], enclave: RunningEnclave, policy: Any, app: Any
) -> None:
    """C-34: of what was sent, idempotent methods, and what carries an Idempotency-Key of the caller's."""

    class Final(Exception):
        pass

    name = f"httpx-{trouble.__name__}"
    with (
        Relay(enclave.origin) as relay,
        client_of(policy, unrepeatable=lambda request, told: Final(str(told))) as client,
    ):
        url = f"{relay.origin}/run/{name}"
        client.get(f"{relay.origin}/echo")  # it has proved itself
        trouble(relay)
        with pytest.raises(Final):
            client.post(url, content=CANARY)
        assert app.runs[name] == 1
        with pytest.raises(error):
            client.get(url)
        with pytest.raises(error):
            client.post(url, content=CANARY, headers={"idempotency-key": "mine"})
    with client_of(policy, unrepeatable=lambda request, told: Final(str(told))) as client:
        with running(app.asgi) as gone:
            client.get(f"{gone.origin}/echo")
        with pytest.raises(httpx2.ConnectError):
            client.post(f"{gone.origin}/echo", content=CANARY)  # nothing was sent


def test_no_error_tells_what_was_said(enclave: RunningEnclave, client: httpx2.Client) -> None:
    import traceback

    with Relay(enclave.origin) as relay:
        client.get(f"{relay.origin}/echo")
        for trouble in (lost, cut, in_the_clear):
            trouble(relay)
            with pytest.raises(httpx2.HTTPError) as told:
                client.post(f"{relay.origin}/echo/secret-path", content=CANARY)
            shown = "".join(traceback.format_exception(told.value))
            assert CANARY not in shown
            assert "secret-path" not in str(told.value)


def test_threads_end_with_the_calls_they_wait_for(enclave: RunningEnclave, policy: Any) -> None:
    async def main() -> None:
        async with async_client(policy) as client:
            await asyncio.gather(*(client.get(f"{enclave.origin}/echo") for _ in range(30)))

    before = threading.active_count()
    for _ in range(3):
        asyncio.run(main())
    deadline = time.monotonic() + 60
    while threading.active_count() > before + 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before + 2


def test_the_body_is_json_as_the_enclave_made_it(enclave: RunningEnclave, client: httpx2.Client) -> None:
    told = client.post(f"{enclave.origin}/echo", json={"a": [1, "ü"]}).json()
    import base64

    assert json.loads(base64.b64decode(told["body"])) == {"a": [1, "ü"]}
