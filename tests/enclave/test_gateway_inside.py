"""What happens to a request that was opened, and to its answer."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import requests

from blindbox_attestation.channel import bhttp, ohttp
from blindbox_attestation.errors import SealingError, TruncatedMessage
from enclave_app.gateway import GATEWAY, Gateway, Limits
from tests.kit.enclave import make_echo_app, make_identity, pattern, running
from tests.kit.peer import Opened, Outer, Sealed, b64url, call, exchange, inner_head, read_answer, seal

App = Callable[[Any, Any, Any], Any]
START = {"type": "http.response.start", "status": 200, "headers": []}


def make_gateway(app: App | None = None, **limits: Any) -> Gateway:
    return Gateway(app or make_echo_app(), make_identity(), limits=Limits(**limits))


# Once, and only once


def test_a_replayed_request_runs_once() -> None:
    """
    S-1: each of 20 captured requests is sent 100 times at once; each runs once, and the rest learn nothing.
    """
    gateway = make_gateway()

    async def ask() -> list[Counter[int]]:
        outcomes = []
        for number in range(20):
            sealed = seal(gateway.identity, b"POST", b"/count", b"x" * (50 * number))
            half = len(sealed.body) // 2
            # Every second one arrives in halves, so that the copies are in the gateway at the same time.
            pieces = [sealed.body] if number % 2 else [sealed.body[:half], sealed.body[half:]]
            outers = await asyncio.gather(*(call(gateway, pieces) for _ in range(100)))
            outcomes.append(Counter(outer.status for outer in outers))
            opened = sealed.open(next(outer.body for outer in outers if outer.status == 200))
            assert opened.json == {"runs": number + 1}
        return outcomes

    assert asyncio.run(ask()) == [Counter({200: 1, 400: 99})] * 20


def test_a_replayed_request_runs_once_over_real_connections() -> None:
    """S-1: the same with 100 copies from ten threads, through sockets."""
    with running() as enclave:
        sealed = seal(enclave.identity, b"POST", b"/count")
        statuses: list[int] = []
        ready = threading.Barrier(10)

        def replay() -> None:
            with requests.Session() as session:
                ready.wait()
                for _ in range(10):
                    answer = session.post(
                        enclave.origin + GATEWAY.decode(), sealed.body, headers={"content-type": sealed.media}
                    )
                    statuses.append(answer.status_code)

        threads = [threading.Thread(target=replay) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Counter(statuses) == {200: 1, 400: 99}


def test_a_request_id_runs_once_under_whatever_key_it_is_sealed() -> None:
    """S-1: a request that is sealed again, also to a later key, is a sealed 409 and does not run."""
    now = [1_000_000.0]
    gateway = Gateway(make_echo_app(), make_identity(clock=lambda: now[0], monotonic=lambda: now[0]))
    identity = gateway.identity
    request_id = b64url(b"sixteen bytes id")

    async def ask() -> list[Opened]:
        answers = [await exchange(gateway, seal(identity, b"POST", b"/count", request_id=request_id))]
        answers.append(await exchange(gateway, seal(identity, b"POST", b"/count", request_id=request_id)))
        now[0] += 13 * 3600  # a new generation
        answers.append(await exchange(gateway, seal(identity, b"POST", b"/count", request_id=request_id)))
        answers.append(await exchange(gateway, seal(identity, b"POST", b"/count")))
        return answers

    first, second, third, other = asyncio.run(ask())
    assert first.json == {"runs": 1}
    assert [(again.status, again.code) for again in (second, third)] == [(409, "already-received")] * 2
    assert other.json == {"runs": 2}


def test_a_repeated_request_runs_only_while_its_first_sending_would_be_remembered() -> None:
    """S-1: it names the proof it was first sent under; with that proof's generation its id is forgotten."""
    now = [1_000_000.0]
    identity = make_identity(clock=lambda: now[0], monotonic=lambda: now[0])
    gateway = Gateway(make_echo_app(), identity)
    request_id = b64url(b"sixteen bytes id")

    def repeated(evidence: bytes) -> Opened:
        first = (b"blindbox-first-evidence", b64url(evidence))
        return asyncio.run(
            exchange(gateway, seal(identity, b"POST", b"/count", request_id=request_id, fields=(first,)))
        )

    for nonce in (bytes(32), None):  # of either form
        now[0] += 25 * 3600
        identity.document(nonce)
        generation = identity._generations[-1]
        proof = generation.cached_evidence[-1] if nonce is None else next(reversed(identity._evidence))
        now[0] += 13 * 3600
        identity.renew()
        assert repeated(proof).status == 200  # that never came: it runs, under the next key too
        assert (repeated(proof).status, repeated(proof).code) == (409, "already-received")
        now[0] += 25 * 3600
        identity.renew()
        assert asyncio.run(exchange(gateway, seal(identity, b"POST", b"/count"))).status == 200
        assert (repeated(proof).status, repeated(proof).code) == (409, "already-received")
    assert (repeated(bytes(48)).status, repeated(bytes(48)).code) == (409, "already-received")
    assert asyncio.run(exchange(gateway, seal(identity, b"POST", b"/count"))).json == {"runs": 5}


def test_every_answer_has_a_nonce_of_its_own_and_a_request_has_one_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S-2, C-31: one draw of 32 random bytes for each answer, none twice; the right to answer is used up."""
    drawn: list[bytes] = []
    original = ohttp.secrets.token_bytes

    def watched(size: int | None = None) -> bytes:
        drawn.append(original(size))
        return drawn[-1]

    gateway = make_gateway()
    sealed = [seal(gateway.identity, path=f"/status/{200 + n % 5}".encode()) for n in range(500)]
    monkeypatch.setattr(ohttp.secrets, "token_bytes", watched)

    async def ask() -> list[Outer]:
        return [await call(gateway, one.body) for one in sealed]

    nonces = [outer.body[:32] for outer in asyncio.run(ask())]
    assert len(set(nonces)) == len(nonces) == 500
    assert drawn == nonces

    opener = ohttp.RequestOpener(gateway.identity.opening_keys(), chunked=True)
    opener.feed(seal(gateway.identity).body)
    opener.close()
    opener.response_sealer()
    with pytest.raises(SealingError):
        opener.response_sealer()


def test_a_key_that_can_remember_no_more_is_closed() -> None:
    """
    S-1: the memory of what was seen is bounded; when it is full the key opens nothing, and another is there
    before.
    """
    identity = make_identity(seen_per_key=8)
    gateway = Gateway(make_echo_app(), identity)
    old = ohttp.preferred(ohttp.parse_key_configs(identity.key_config))

    async def ask() -> list[int]:
        return [(await call(gateway, seal(identity, config=old).body)).status for _ in range(10)]

    assert asyncio.run(ask()) == [200] * 8 + [400] * 2
    assert identity.key_config != b""
    renewed = ohttp.preferred(ohttp.parse_key_configs(identity.key_config))
    assert renewed.key_id != old.key_id
    assert asyncio.run(exchange(gateway, seal(identity))).status == 200


# What the request must say


@pytest.mark.parametrize(
    "field",
    [
        (b"blindbox-request-id", b"short"),
        (b"blindbox-request-id", b"A" * 21 + b"B"),
        (b"blindbox-evidence", b"AAAA"),
        (b"blindbox-first-evidence", b"AAAA"),
        (b"blindbox-padding", b"1"),
    ],
)
def test_a_field_of_ours_that_is_malformed_or_twice_is_a_sealed_400(field: tuple[bytes, bytes]) -> None:
    gateway = make_gateway()
    answer = asyncio.run(exchange(gateway, seal(gateway.identity, fields=(field,), request_id=b"")))
    assert (answer.status, answer.code) == (400, "malformed-request")


@pytest.mark.parametrize(
    "inner",
    [b"", b"\x00", b"\xff" * 40, b"GET / HTTP/1.1\r\n\r\n", b"\x00\x03GET\x04http\x00\x01x", bytes(1024)],
)
def test_what_is_no_request_is_a_sealed_400(inner: bytes) -> None:
    """S-3: once the seal was opened the answer is sealed, also to nonsense."""
    gateway = make_gateway()
    answer = asyncio.run(exchange(gateway, seal(gateway.identity, inner=inner)))
    assert (answer.status, answer.code) == (400, "malformed-request")


def test_a_proof_that_is_no_longer_live_is_a_sealed_421() -> None:
    """
    A request that leans on evidence of another boot, or of another key of this boot, is told to prove again.
    """
    now = [1_000_000.0]
    identity = make_identity(clock=lambda: now[0], monotonic=lambda: now[0])
    gateway = Gateway(make_echo_app(), identity)

    def live() -> bytes:
        identity.document(bytes(32))
        return next(reversed(identity._evidence))

    async def ask(evidence: bytes) -> Opened:
        return await exchange(gateway, seal(identity, fields=((b"blindbox-evidence", b64url(evidence)),)))

    first = live()
    assert asyncio.run(ask(first)).status == 200
    stale = asyncio.run(ask(bytes(48)))
    assert (stale.status, stale.code) == (421, "stale-evidence")
    now[0] += 12 * 3600
    assert asyncio.run(ask(live())).status == 200
    assert asyncio.run(ask(first)).code == "stale-evidence"  # that proof was about the former key


def test_what_belongs_to_the_seal_does_not_reach_the_application() -> None:
    gateway = make_gateway()
    fields = (
        (b"blindbox-other", b"x"),
        (b"connection", b"close"),
        (b"host", b"evil.example"),
        (b"x-mine", b"kept"),
        (b"x-mine", b"twice"),
    )
    answer = asyncio.run(
        exchange(gateway, seal(gateway.identity, b"DELETE", b"/anything/a%2Fb?x=%20y", fields=fields))
    )
    assert answer.json["headers"] == [
        ["host", gateway.identity.authority],
        ["x-mine", "kept"],
        ["x-mine", "twice"],
    ]
    assert (answer.json["method"], answer.json["query"], answer.json["client"]) == ("DELETE", "x=%20y", None)


def test_the_application_sees_an_ordinary_scope() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)
        await send(START)
        await send({"type": "http.response.body"})

    gateway = make_gateway(app)
    sealed = seal(gateway.identity, b"GET", b"/caf%C3%A9/a%2Fb?q=%C3%A9&r", authority=b"", fields=())
    assert asyncio.run(exchange(gateway, sealed)).status == 421
    assert not seen
    asyncio.run(exchange(gateway, seal(gateway.identity, b"GET", b"/caf%C3%A9/a%2Fb?q=%C3%A9&r")))
    assert seen["type"] == "http"
    assert (seen["path"], seen["raw_path"], seen["query_string"]) == (
        "/café/a/b",
        b"/caf%C3%A9/a%2Fb",
        b"q=%C3%A9&r",
    )
    assert (seen["scheme"], seen["client"], seen["server"]) == (
        "http",
        None,
        (gateway.identity.authority, 80),
    )


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("kem", [0, 1])
def test_both_forms_and_both_keys_are_served(chunked: bool, kem: int) -> None:
    """Clients of plain RFC 9458 are served too, once they hold a proven key."""
    gateway = make_gateway()
    config = ohttp.parse_key_configs(gateway.identity.key_config)[kem]
    sealed = seal(
        gateway.identity, b"POST", b"/upload", b"x" * 5000, chunked=chunked, config=config, framed=False
    )
    outer = asyncio.run(call(gateway, sealed.body, media=sealed.media))
    assert (
        dict(outer.headers)[b"content-type"]
        == (ohttp.CHUNKED_RESPONSE if chunked else ohttp.RESPONSE).encode()
    )
    assert sealed.open(outer.body).json["size"] == 5000


def test_a_client_that_sends_none_of_our_fields_is_served() -> None:
    gateway = make_gateway()
    answer = asyncio.run(exchange(gateway, seal(gateway.identity, request_id=b"", framed=False)))
    assert answer.status == 200
    assert [name for name, _ in answer.fields] == [b"content-length", b"content-type"]


# Whatever the application does, it leaves sealed


async def raises(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("canary: the prompt was here")


async def exits(scope: Any, receive: Any, send: Any) -> None:
    raise SystemExit("canary")


async def says_it_was_cancelled(scope: Any, receive: Any, send: Any) -> None:
    raise asyncio.CancelledError("canary")


async def raises_after_start(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    raise RuntimeError("canary")


async def says_nothing(scope: Any, receive: Any, send: Any) -> None:
    await receive()


async def starts_only(scope: Any, receive: Any, send: Any) -> None:
    await send(START)


async def speaks_before_it_starts(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.body", "body": b"canary"})


async def starts_twice(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    await send(START)


async def breaks_a_header(scope: Any, receive: Any, send: Any) -> None:
    await send({**START, "headers": [(b"x-canary", b"a\r\nb: canary")]})
    await send({"type": "http.response.body", "body": b"canary"})


async def has_an_odd_status(scope: Any, receive: Any, send: Any) -> None:
    await send({**START, "status": 42})
    await send({"type": "http.response.body", "body": b"canary"})


BROKEN = [raises, exits, says_it_was_cancelled, raises_after_start, says_nothing, starts_only,
          speaks_before_it_starts, starts_twice, breaks_a_header, has_an_odd_status]  # fmt: skip


@pytest.mark.parametrize("app", BROKEN, ids=lambda app: app.__name__)
@pytest.mark.parametrize("chunked", [True, False])
def test_an_application_that_fails_is_a_sealed_500_without_details(
    app: App, chunked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """S-20: nothing of the exception is in the answer, outside the seal, or in a log."""
    gateway = make_gateway(app)
    sealed = seal(gateway.identity, chunked=chunked)
    with caplog.at_level(logging.DEBUG):
        answer = asyncio.run(exchange(gateway, sealed))
    assert answer.status == 500
    assert answer.header(b"blindbox-request-id") == sealed.request_id
    assert answer.json["error"].keys() == {"message", "type", "param", "code"}
    assert answer.code == "internal-error"
    assert b"canary" not in answer.body
    assert "canary" not in caplog.text


def test_the_gateway_logs_a_status_and_a_duration_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """S-20: no path, header, query or body, of the outer or of the inner request."""
    gateway = make_gateway()
    sealed = seal(
        gateway.identity, b"POST", b"/anything/canary?canary", b"canary", ((b"x-canary", b"canary"),)
    )
    with caplog.at_level(logging.DEBUG, logger="blindbox"):
        asyncio.run(exchange(gateway, sealed, headers=[(b"x-canary", b"canary")]))
        asyncio.run(call(gateway, method="GET", path=b"/canary", query=b"canary"))
    assert [record.__dict__["status"] for record in caplog.records] == [200, 404]
    assert all(record.__dict__["milliseconds"] >= 0 for record in caplog.records)
    assert "canary" not in repr([record.__dict__ for record in caplog.records])


def test_an_answer_that_stops_early_never_looks_whole() -> None:
    """An application that fails in the middle of a stream leaves a message without its end."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"x" * 40000, "more_body": True})
        raise RuntimeError

    gateway = make_gateway(app)
    sealed = seal(gateway.identity)
    outer = asyncio.run(call(gateway, sealed.body))
    assert outer.status == 200
    assert not outer.complete
    assert sealed.opener.feed(outer.body)
    with pytest.raises(TruncatedMessage):
        sealed.opener.close()


# Pieces, in both directions


def pieces_of(
    sealer: ohttp.RequestSealer, gateway: Gateway, body: list[bytes], path: bytes = b"/upload"
) -> list[bytes]:
    head = inner_head(gateway.identity, b"POST", path, ())
    pieces = [sealer.seal(bhttp.request_start(head))]
    pieces += [sealer.seal(bhttp.content(piece)) for piece in body]
    return [*pieces, sealer.seal(bhttp.end(), final=True)]


def new_sealer(gateway: Gateway) -> ohttp.RequestSealer:
    return ohttp.RequestSealer(ohttp.preferred(ohttp.parse_key_configs(gateway.identity.key_config)))


def test_a_request_is_passed_on_as_it_is_opened_and_answered_before_it_ends() -> None:
    """Each piece reaches the application before the next is sent; answers may come in between."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        while True:
            event = await receive()
            await heard.put(event["body"])
            await send({"type": "http.response.body", "body": event["body"], "more_body": event["more_body"]})
            if not event["more_body"]:
                return

    gateway = make_gateway(app)
    sealer = new_sealer(gateway)

    async def talking() -> Any:
        start, one, two, end = pieces_of(sealer, gateway, [b"one", b"two"])
        yield start
        yield one
        assert await asyncio.wait_for(heard.get(), 60) == b"one"
        yield two
        assert await asyncio.wait_for(heard.get(), 60) == b"two"
        yield end

    outer = asyncio.run(call(gateway, talking()))
    opener = sealer.response_opener()
    assert read_answer([*opener.feed(outer.body), *opener.close()]).body == b"onetwo"


@pytest.mark.parametrize(
    "ends_in", ["a lost connection", "an early end", "an altered chunk", "bytes after the end"]
)
def test_a_request_that_is_cut_is_a_disconnect_and_never_a_complete_body(ends_in: str) -> None:
    """
    The application gets what was authentic, then `http.disconnect`; what it says then is not the answer.
    """
    events: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            events.append(await receive())
            if events[-1]["type"] == "http.disconnect" or not events[-1]["more_body"]:
                break
        await send(START)
        await send({"type": "http.response.body", "body": b"stored"})

    gateway = make_gateway(app)
    sealer = new_sealer(gateway)
    start, one, two, end = pieces_of(sealer, gateway, [b"one" * 100, b"two"])

    def pieces() -> Any:
        yield start
        yield one
        if ends_in == "an altered chunk":
            yield two[:-1] + bytes([two[-1] ^ 1])
            yield end
        elif ends_in == "bytes after the end":
            yield two
            yield end + b"\x00"
        elif ends_in == "a lost connection":
            raise ConnectionError

    async def ask() -> Outer:
        leave = asyncio.Event()
        if ends_in == "a lost connection":
            leave.set()
        return await call(gateway, pieces(), leave=leave)

    outer = asyncio.run(ask())
    assert events[-1] == {"type": "http.disconnect"}
    assert all(event["more_body"] for event in events[:-1])
    assert b"".join(event["body"] for event in events[:-1]).startswith(b"one" * 100)
    if ends_in != "a lost connection":
        opener = sealer.response_opener()
        answer = read_answer([*opener.feed(outer.body), *opener.close()])
        assert (answer.status, answer.code) == (400, "truncated-request")


def test_an_upload_is_not_gathered_in_memory() -> None:
    """64 MiB go through an application that keeps none of it, and the process grows by less than 24 MiB."""
    import resource

    gateway = make_gateway()
    sealer = new_sealer(gateway)
    size = 64 << 20
    block = bytes(16000)

    async def body() -> Any:
        yield sealer.seal(bhttp.request_start(inner_head(gateway.identity, b"PUT", b"/upload", ())))
        for _ in range(size // len(block)):
            yield sealer.seal(bhttp.content(block))
        yield sealer.seal(bhttp.end(), final=True)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outer = asyncio.run(call(gateway, body()))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    opener = sealer.response_opener()
    answer = read_answer([*opener.feed(outer.body), *opener.close()])
    assert answer.json["size"] == size // len(block) * len(block)
    assert grown < 24 << 10  # in KiB


def chunks_of(sealed: bytes) -> list[int]:
    """The sizes of the sealed chunks of a chunked answer, the final one last."""
    sizes, at = [], 32
    while True:
        first = sealed[at]
        width = 1 << (first >> 6)
        size = int.from_bytes(sealed[at : at + width], "big") & ((1 << (8 * width - 2)) - 1)
        at += width
        if size == 0:
            return [*sizes, len(sealed) - at]
        sizes.append(size)
        at += size


def test_a_stream_shows_its_pieces_sizes_to_nobody() -> None:
    """C-43: every sealed chunk is a multiple of 2048 bytes, whatever the application's pieces were."""
    left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**START, "headers": [(b"x-long", b"y" * (int(scope["query_string"] or b"0")))]})
        for size in (1, 3, 57, 58, 59, 60, 61, 300, 511, 512, 513, 16352, 16368, 16384, 50000):
            left.clear()
            await send({"type": "http.response.body", "body": pattern(size), "more_body": True})
            await asyncio.wait_for(left.wait(), 60)
        await send({"type": "http.response.body", "body": b"the end"})

    gateway = make_gateway(app, tick_seconds=0.001)
    whole = b"".join(
        pattern(n) for n in (1, 3, 57, 58, 59, 60, 61, 300, 511, 512, 513, 16352, 16368, 16384, 50000)
    )

    async def ask(query: bytes) -> None:
        nonlocal left
        left = asyncio.Event()
        sealed = seal(gateway.identity, path=b"/?" + query)
        outer = await call(gateway, sealed.body, on_piece=lambda _: left.set())
        sizes = chunks_of(outer.body)
        assert len(sizes) > 12
        assert {size % 2048 for size in sizes} == {0}
        answer = sealed.open(outer.body)
        assert answer.body == whole + b"the end"

    for query in (b"", b"60000", b"8100", b"16300", b"427"):
        asyncio.run(ask(query))


def test_small_pieces_are_gathered_so_that_tokens_cannot_be_counted() -> None:
    """C-43: 100 tokens, 2 ms apart, leave in about as many chunks as there were ticks."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for number in range(100):
            await send({"type": "http.response.body", "body": b"token%d " % number, "more_body": True})
            await asyncio.sleep(0.002)
        await send({"type": "http.response.body"})

    gateway = make_gateway(app)
    sealed = seal(gateway.identity)
    began = time.monotonic()
    outer = asyncio.run(call(gateway, sealed.body))
    ticks = (time.monotonic() - began) / Limits().tick_seconds
    assert 3 <= len(chunks_of(outer.body)) <= 3 + ticks < 50
    assert sealed.open(outer.body).body == b"".join(b"token%d " % number for number in range(100))


def test_the_first_piece_leaves_at_once_with_its_head_and_the_next_ones_wait() -> None:
    """The time to the first token is not made longer by the tick; what comes within the tick is gathered."""
    left = asyncio.Event()
    while_it_ran: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await asyncio.wait_for(left.wait(), 60)  # the tick is an hour: this piece did not wait for it
        for _ in range(5):
            await send({"type": "http.response.body", "body": b" then", "more_body": True})
            await asyncio.sleep(0.01)
        while_it_ran.append(len(pieces))
        await send({"type": "http.response.body"})

    gateway = make_gateway(app, tick_seconds=3600.0)
    sealed = seal(gateway.identity)
    pieces: list[bytes] = []

    def see(piece: bytes) -> None:
        pieces.append(piece)
        left.set()

    outer = asyncio.run(call(gateway, sealed.body, on_piece=see))
    assert while_it_ran == [1]
    assert chunks_of(outer.body) == [2048, 2048]
    assert sealed.open(outer.body).body == b"first then then then then then"


def test_a_piece_that_comes_long_after_the_last_does_not_wait() -> None:
    """A tick is counted from the last piece that left: slow tokens are not made slower."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for number in range(4):
            left.clear()
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
            await asyncio.wait_for(left.wait(), 60)
            await asyncio.sleep(0.03)
        await send({"type": "http.response.body"})

    left = asyncio.Event()
    gateway = make_gateway(app, tick_seconds=0.02)
    sealed = seal(gateway.identity)
    outer = asyncio.run(call(gateway, sealed.body, on_piece=lambda _: left.set()))
    assert chunks_of(outer.body) == [2048] * 5
    assert sealed.open(outer.body).body == b"0123"


def test_a_whole_answer_is_padded_to_steps() -> None:
    """
    C-43: answers of 1 to 3000 bytes leave in a handful of sizes, with no informational answer before them.
    """
    gateway = make_gateway()

    async def ask() -> set[int]:
        return {
            len((await call(gateway, seal(gateway.identity, path=f"/bytes/{size}".encode()).body)).body)
            for size in range(1, 3000, 37)
        }

    sizes = asyncio.run(ask())
    assert len(sizes) <= 22
    assert min(sizes) == 32 + 1 + 512 + 16


def test_a_short_stream_that_ends_at_once_is_a_whole_answer() -> None:
    gateway = make_gateway()
    sealed = seal(gateway.identity, path=b"/bytes/100?pieces=3")
    outer = asyncio.run(call(gateway, sealed.body))
    assert b"content-length" in dict(outer.headers)
    assert sealed.open(outer.body).body == pattern(100)


def test_a_client_without_padding_frames_gets_the_plain_stream() -> None:
    gateway = make_gateway()
    sealed = seal(gateway.identity, path=b"/stream/3?gap=0.06", framed=False)
    answer = asyncio.run(exchange(gateway, sealed))
    assert answer.header(b"blindbox-padding") is None
    assert answer.body == b"".join(b'data: {"n": %d}\n\n' % n for n in range(3))


def test_a_plain_request_to_a_streaming_route_gets_all_of_it_at_once() -> None:
    gateway = make_gateway(whole_answer_bytes=100_000)
    answer = asyncio.run(exchange(gateway, seal(gateway.identity, path=b"/stream/3?gap=0.06", chunked=False)))
    assert answer.body.count(b"data:") == 3
    large = asyncio.run(
        exchange(gateway, seal(gateway.identity, path=b"/bytes/200000?pieces=9", chunked=False))
    )
    assert large.status == 500


def test_while_the_application_thinks_the_client_hears_that_it_lives() -> None:
    """A padded 102 every interval before the answer begins; then the answer, whole and in order."""
    gateway = make_gateway(heartbeat_seconds=0.05)
    sealed = seal(gateway.identity, path=b"/delay/0.6")
    began = time.monotonic()
    outer = asyncio.run(call(gateway, sealed.body))
    seconds = time.monotonic() - began
    sizes = chunks_of(outer.body)
    assert {size % 2048 for size in sizes} == {0}
    answer = sealed.open(outer.body)
    assert answer.json == {"delayed": 0.6}
    assert 3 <= len(answer.informational) <= seconds / 0.05
    assert {one.status for one in answer.informational} == {102}
    assert {name for one in answer.informational for name, _ in one.fields} == {b"blindbox-pad"}


def test_a_silent_stream_gives_signs_of_life_that_are_no_data() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await asyncio.sleep(1.0)
        await send({"type": "http.response.body", "body": b"last"})

    gateway = make_gateway(app, heartbeat_seconds=0.05, tick_seconds=0.01)
    sealed = seal(gateway.identity)
    outer = asyncio.run(call(gateway, sealed.body))
    assert len(outer.pieces) >= 5
    assert sealed.open(outer.body).body == b"firstlast"


def test_an_application_that_fails_after_a_sign_of_life_still_answers() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)
        raise RuntimeError

    gateway = make_gateway(app, heartbeat_seconds=0.03)
    answer = asyncio.run(exchange(gateway, seal(gateway.identity)))
    assert (answer.status, answer.code) == (500, "internal-error")
    assert answer.informational


def test_a_head_leaves_before_its_body_does() -> None:
    """The first token may take long; status and fields do not wait for it longer than a tick."""
    left = asyncio.Event()
    pieces: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await asyncio.wait_for(left.wait(), 60)
        assert len(pieces) == 1
        await send({"type": "http.response.body", "body": b"late"})

    def see(piece: bytes) -> None:
        pieces.append(piece)
        left.set()

    gateway = make_gateway(app, tick_seconds=0.01)
    sealed = seal(gateway.identity)
    outer = asyncio.run(call(gateway, sealed.body, on_piece=see))
    assert len(pieces) == 2
    assert sealed.open(outer.body).body == b"late"


def test_when_the_client_leaves_the_application_is_told() -> None:
    """A generation that streams stops; one that waits for `http.disconnect` gets it."""
    told = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        event = await receive()
        assert event == {"type": "http.disconnect"}
        assert await receive() == event
        told.set()

    gateway = make_gateway(app)

    async def ask() -> None:
        leave = asyncio.Event()
        waiting = asyncio.create_task(call(gateway, seal(gateway.identity).body, leave=leave))
        await asyncio.sleep(0.05)
        assert not told.is_set()
        leave.set()
        await asyncio.wait_for(told.wait(), 60)
        await waiting

    asyncio.run(ask())


def test_a_stream_stops_when_its_reader_hangs_up() -> None:
    """Over a real connection: a starlette stream ends soon after the socket is closed."""
    stopped = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import StreamingResponse

        async def forever() -> Any:
            try:
                while True:
                    yield b"x" * 100
                    await asyncio.sleep(0.01)
            finally:
                stopped.set()

        await StreamingResponse(forever())(scope, receive, send)

    with running(app) as enclave:
        sealed = seal(enclave.identity)
        answer = requests.post(
            enclave.origin + GATEWAY.decode(),
            sealed.body,
            headers={"content-type": sealed.media},
            stream=True,
        )
        assert answer.raw.read(600)
        assert not stopped.is_set()
        answer.close()
        assert stopped.wait(60)


def test_a_client_that_leaves_is_no_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """S-11: the stream ends, nothing more is sealed, and the log is not filled by whoever hangs up."""
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        from starlette.responses import StreamingResponse

        async def forever() -> Any:
            nonlocal sent
            while True:
                sent += 1
                yield b"x" * 100
                await asyncio.sleep(0.005)

        await StreamingResponse(forever())(scope, receive, send)

    gateway = make_gateway(app, tick_seconds=0.01)

    async def ask() -> Outer:
        leave = asyncio.Event()
        talking = asyncio.create_task(
            call(gateway, seal(gateway.identity).body, leave=leave, on_piece=lambda _: leave.set())
        )
        return await asyncio.wait_for(talking, 60)

    with caplog.at_level(logging.WARNING):
        outer = asyncio.run(ask())
    assert not outer.complete
    assert sent < 100
    assert not caplog.records


def test_the_applications_start_and_end_are_passed_on() -> None:
    """Lifespan events reach the application inside, and its state reaches its requests."""
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"]["model"] = "loaded"
            for kind in ("startup", "shutdown"):
                events.append((await receive())["type"])
                await send({"type": f"lifespan.{kind}.complete"})
            return
        await send(START)
        await send({"type": "http.response.body", "body": json.dumps(scope["state"]).encode()})

    with running(app) as enclave:
        sealed = seal(enclave.identity)
        answer = requests.post(
            enclave.origin + GATEWAY.decode(), sealed.body, headers={"content-type": sealed.media}
        )
        assert sealed.open(answer.content).json == {"model": "loaded"}
    assert events == ["lifespan.startup", "lifespan.shutdown"]


def test_many_at_once_each_get_their_own_answer() -> None:
    """C-31: 300 exchanges in flight; no answer opens with another's key, none is swapped."""
    gateway = make_gateway()

    async def one(number: int) -> tuple[Sealed, Opened]:
        sealed = seal(gateway.identity, b"POST", f"/anything/{number}".encode(), b"x" * number)
        return sealed, await exchange(gateway, sealed)

    async def ask() -> list[tuple[Sealed, Opened]]:
        return await asyncio.gather(*(one(number) for number in range(300)))

    for number, (sealed, answer) in enumerate(asyncio.run(ask())):
        assert answer.json["path"] == f"/anything/{number}"
        assert answer.header(b"blindbox-request-id") == sealed.request_id


def test_a_request_that_is_cut_after_its_head_is_answered_under_its_own_id() -> None:
    """The refusal names the request it refuses, so that the client knows whose answer it is."""
    gateway = make_gateway()
    sealed = seal(gateway.identity, b"POST", b"/upload", b"x" * 40000)
    outer = asyncio.run(call(gateway, sealed.body[:30000]))
    answer = sealed.open(outer.body)
    assert (answer.status, answer.code) == (400, "truncated-request")
    assert answer.header(b"blindbox-request-id") == sealed.request_id
