"""What the network sees of a gateway: three routes, few constant answers, nothing of the application."""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from blindbox_attestation.binding import Bound
from blindbox_attestation.channel import ohttp
from blindbox_attestation.channel.hpke import KDF_HKDF_SHA256, X25519
from enclave_app.gateway import GATEWAY, Gateway, Limits
from enclave_app.quoting import Quote, QuoteUnavailable
from tests.kit.app import echo_gateway
from tests.kit.enclave import make_echo_app, make_identity, running
from tests.kit.peer import Outer, b64url, call, exchange, seal

ATTESTATION = b"/.well-known/blindbox/attestation"
PROBLEM = (
    b'{"type":"https://iana.org/assignments/http-problem-types#ohttp-key","title":"key identifier unknown"}'
)


class Counting:
    """An application that counts how often it is reached."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ran"})


@pytest.fixture
def app() -> Counting:
    return Counting()


@pytest.fixture
def gateway(app: Counting) -> Gateway:
    return Gateway(app, make_identity())


def seen(outer: Outer) -> tuple[int, tuple[tuple[bytes, bytes], ...], bytes]:
    assert outer.complete
    return outer.status, tuple(outer.headers), outer.body


PATHS = [
    "/test", "/inference", "/finetune", "/fine_tune", "/v1/files", "/v1/chat/completions", "/docs", "/redoc",
    "/openapi.json", "/metrics", "/health", "/anything", "/.well-known/ohttp-gateway/", "/.well-known/",
    "/.well-known/ohttp%2Dgateway", "/.well-known/blindbox/attestation/", "//", "/../",
    "/.well-known/../test",
]  # fmt: skip
METHODS = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "PROPFIND"]


def test_nothing_but_three_routes_exists_outside_the_seal(gateway: Gateway, app: Counting) -> None:
    """
    S-5: any other route and method has one constant answer; its body is not read, the application not
    reached.
    """

    async def unread() -> Any:
        raise AssertionError("the body was read")
        yield b""  # type: ignore[unreachable]

    async def walk() -> set[Any]:
        answers = set()
        for method, path in itertools.product(METHODS, PATHS):
            answers.add(
                seen(await call(gateway, method=method, path=path.encode(), media="application/json"))
            )
        for method in set(METHODS) - {"GET"}:
            answers.add(seen(await call(gateway, method=method, path=b"/")))
            answers.add(seen(await call(gateway, method=method, path=ATTESTATION)))
        for method in set(METHODS) - {"POST"}:
            answers.add(seen(await call(gateway, method=method, path=GATEWAY)))
        return answers

    (answer,) = asyncio.run(walk())
    assert answer[0] == 404
    assert answer[2] == b"not found"
    assert app.calls == 0


def test_the_body_of_a_request_that_is_not_for_us_never_reaches_the_application(
    gateway: Gateway, app: Counting
) -> None:
    """S-5: the answer to a plain POST of the house API is on its way before its body is looked at."""

    async def slow() -> Any:
        yield b'{"input_text": "secret"}'
        await asyncio.sleep(600)

    async def ask() -> Outer:
        return await asyncio.wait_for(call(gateway, slow(), path=b"/test", media="application/json"), 60)

    outer = asyncio.run(ask())
    assert (outer.status, outer.body) == (404, b"not found")
    assert (b"connection", b"close") in outer.headers
    assert app.calls == 0


@pytest.mark.parametrize("host", [b"", b"evil.example", b"enclave.example:80", b"localhost", b"a b"])
def test_host_and_origin_decide_nothing(gateway: Gateway, app: Counting, host: bytes) -> None:
    """S-16: no Host or Origin changes an answer, and no answer allows another origin's scripts to read it."""
    extra = [(b"origin", b"https://evil.example"), (b"access-control-request-method", b"POST")]

    async def ask() -> list[Outer]:
        sealed = seal(gateway.identity)
        answers = [
            await call(gateway, method="GET", path=b"/", media=None, host=host, headers=extra),
            await call(gateway, method="OPTIONS", path=GATEWAY, media=None, host=host, headers=extra),
            await call(gateway, method="GET", path=ATTESTATION, media=None, host=host, headers=extra),
            await call(gateway, sealed.body, host=host, headers=extra),
        ]
        assert sealed.open(answers[-1].body).body == b"ran"
        return answers

    answers = asyncio.run(ask())
    assert [answer.status for answer in answers] == [200, 404, 200, 200]
    assert not [
        name for answer in answers for name, _ in answer.headers if name.startswith(b"access-control-")
    ]
    assert app.calls == 1


def hostile(gateway: Gateway) -> list[tuple[str, bytes, dict[str, Any]]]:
    """Messages that must not open, with what is wrong about each."""
    rng = random.Random(3)
    good = seal(gateway.identity, b"POST", b"/anything", b"x" * 900).body
    other = make_identity()
    cases: list[tuple[str, bytes, dict[str, Any]]] = [
        (f"{n} random bytes", rng.randbytes(n), {}) for n in (0, 1, 6, 7, 8, 40, 1127, 1128, 4096, 65536)
    ]
    cases += [(f"cut at {n}", good[:n], {}) for n in range(0, len(good), 7)]
    for at in range(7):
        changed = bytearray(good)
        changed[at] ^= 1 << rng.randrange(8)
        cases.append((f"header byte {at}", bytes(changed), {}))
    for at in range(7, len(good), 97):
        changed = bytearray(good)
        changed[at] ^= 1 << rng.randrange(8)
        cases.append((f"byte {at}", bytes(changed), {}))
    foreign = next(c for c in ohttp.parse_key_configs(other.key_config) if c.kem == X25519)
    ours = next(c for c in ohttp.parse_key_configs(gateway.identity.key_config) if c.kem == X25519)
    lied = ohttp.KeyConfig(ours.key_id, X25519, foreign.public_key)
    cases.append(("another enclave's key under our key id", seal(other, config=lied).body, {}))
    low_order = ohttp.KeyConfig(ours.key_id, X25519, ours.public_key)
    sealed = seal(gateway.identity, config=low_order).body
    cases.append(("an all-zero share", sealed[:7] + bytes(32) + sealed[39:], {}))
    weak = ohttp.KeyConfig(ours.key_id, X25519, ours.public_key, ((KDF_HKDF_SHA256, 0x0003),))
    cases.append(("a suite that was not offered", good[:3] + b"\x00\x01\x00\x03" + good[7:], {}))
    assert weak.suites not in [c.suites for c in ohttp.parse_key_configs(gateway.identity.key_config)]
    cases.append(("bytes after the end", good + b"\x00", {}))
    cases.append(("of the wrong form", seal(gateway.identity, chunked=False).body, {}))
    cases.append(("encoded", seal(gateway.identity).body, {"headers": [(b"content-encoding", b"gzip")]}))
    cases.append(("of another media type", seal(gateway.identity).body, {"media": "application/json"}))
    cases.append(("of no media type", seal(gateway.identity).body, {"media": None}))
    return cases


def test_whatever_keeps_a_message_from_opening_the_answer_is_the_same(
    gateway: Gateway, app: Counting
) -> None:
    """
    S-3, S-6: one status, one set of headers, one body, for everything that is not opened. The app sees none
    of it.
    """
    cases = hostile(gateway)

    async def ask() -> dict[Any, list[str]]:
        answers: dict[Any, list[str]] = {}
        for what, body, options in cases:
            half = len(body) // 2
            for pieces in ([body], [body[:half], body[half:]]):
                answers.setdefault(seen(await call(gateway, pieces, **options)), []).append(what)
        return answers

    answers = asyncio.run(ask())
    assert len(cases) > 200
    assert list(answers) == [
        (
            400,
            (
                (b"content-type", b"application/problem+json"),
                (b"content-length", str(len(PROBLEM)).encode()),
                (b"cache-control", b"no-store"),
            ),
            PROBLEM,
        )
    ], {key: what[:3] for key, what in answers.items()}
    assert app.calls == 0


def test_the_constant_answer_comes_after_the_last_byte_whatever_is_wrong(gateway: Gateway) -> None:
    """
    S-3: no answer is early: a wrong key id is answered when the request has ended, as a wrong last tag is.
    """
    taken: list[int] = []

    async def pieces(body: bytes) -> Any:
        for at in range(0, len(body), 100):
            taken.append(at)
            await asyncio.sleep(0)
            yield body[at : at + 100]

    async def ask() -> list[int]:
        good = seal(gateway.identity, b"POST", b"/x", b"x" * 20000).body
        counts = []
        for body in (good[:-1] + bytes([good[-1] ^ 1]), bytes([good[0] ^ 1]) + good[1:], bytes(len(good))):
            taken.clear()
            outer = await call(gateway, pieces(body))
            assert outer.status in (200, 400)  # 200: opened, and refused inside for its last chunk
            counts.append(len(taken))
        return counts

    counts = asyncio.run(ask())
    assert counts[1] == counts[2] == max(counts)


def test_the_constant_answer_is_the_same_on_the_wire() -> None:
    """S-3: also with the server's own headers, and with the connection kept."""
    import requests

    with running() as enclave, requests.Session() as session:
        answers = set()
        good = seal(enclave.identity, b"POST", b"/anything", b"x" * 100).body
        for body in (
            b"",
            b"\x00" * 7,
            good[:-1],
            good[:-1] + bytes([good[-1] ^ 1]),
            bytes([good[0] ^ 1]) + good[1:],
            good * 2,
        ):
            response = session.post(
                enclave.origin + GATEWAY.decode(), data=body, headers={"content-type": ohttp.CHUNKED_REQUEST}
            )
            headers = [(name, value) for name, value in response.headers.items() if name.lower() != "date"]
            answers.add((response.status_code, tuple(headers), response.content))
        assert len(answers) == 1
        assert answers.pop()[0] == 400


def test_no_error_of_the_application_shows_outside(tmp_path: Path) -> None:
    """
    S-23: whatever the whole application answers (200, 400, 401, 404, 405, 409, 413), the network sees one
    status and one set of header names, and one size for all that is short.
    """
    whole = echo_gateway(tmp_path)
    token = (b"authorization", b"Bearer " + b"t" * 32)
    json_body = (b"content-type", b"application/json")
    asked: list[tuple[bytes, bytes, bytes, tuple[tuple[bytes, bytes], ...]]] = [
        (b"GET", b"/", b"", (token,)),
        (b"GET", b"/v1/models", b"", (token,)),
        (b"GET", b"/v1/models", b"", ()),
        (b"GET", b"/nothing", b"", (token,)),
        (b"PUT", b"/test", b"", (token,)),
        (b"POST", b"/test", b"{", (token, json_body)),
        (b"POST", b"/v1/completions", b'{"model": "other", "prompt": "x"}', (token, json_body)),
        (b"POST", b"/v1/completions", b'{"model": "echo", "prompt": ""}', (token, json_body)),
        (b"POST", b"/v1/chat/completions", b'{"model": "echo", "messages": []}', (token, json_body)),
        (b"POST", b"/v1/completions", b'{"model": "echo", "stream": 7}', (token, json_body)),
        (b"GET", b"/v1/files/file-none", b"", (token,)),
        (b"POST", b"/inference", b"\xff\xfe", (token,)),
    ]

    async def ask() -> tuple[set[Any], set[int]]:
        lifespan = asyncio.create_task(whole({"type": "lifespan"}, started.get, ended.put))
        await started.put({"type": "lifespan.startup"})
        assert (await ended.get())["type"] == "lifespan.startup.complete"
        outside, inside = set(), set()
        for method, path, body, fields in asked:
            sealed = seal(whole.identity, method, path, body, fields)
            outer = await call(whole, sealed.body)
            outside.add((outer.status, tuple(name for name, _ in outer.headers), len(outer.body)))
            inside.add(sealed.open(outer.body).status)
        await started.put({"type": "lifespan.shutdown"})
        await lifespan
        return outside, inside

    started: asyncio.Queue[Any] = asyncio.Queue()
    ended: asyncio.Queue[Any] = asyncio.Queue()
    outside, inside = asyncio.run(ask())
    assert {200, 400, 401, 404, 405} <= inside
    assert len(outside) == 1, outside


def test_the_outer_request_decides_nothing(gateway: Gateway) -> None:
    """S-4: a proxy that moves a sealed request to another host, or adds fields, changes nothing inside."""
    shown = Gateway(make_echo_app(), gateway.identity)
    sealed = [seal(gateway.identity, b"PUT", b"/anything/inner?q=1", b"body") for _ in range(3)]
    outer: list[dict[str, Any]] = [
        {},
        {
            "host": b"evil.example",
            "headers": [(b"x-forwarded-host", b"evil.example"), (b"authorization", b"Bearer x")],
        },
        {"query": b"q=2", "headers": [(b"x-http-method-override", b"DELETE"), (b"cookie", b"a=b")]},
    ]

    async def ask() -> list[Any]:
        return [(await exchange(shown, s, **o)).json for s, o in zip(sealed, outer, strict=True)]

    first, *others = asyncio.run(ask())
    assert first["method"] == "PUT"
    assert (first["path"], first["query"]) == ("/anything/inner", "q=1")
    assert first["headers"] == [["host", gateway.identity.authority]]
    assert others == [first, first]


@pytest.mark.parametrize("authority", [b"evil.example", b"", b"0" * 32, b"localhost:80"])
def test_a_request_for_another_enclave_is_refused_inside_the_seal(
    gateway: Gateway, app: Counting, authority: bytes
) -> None:
    """S-4: the inner authority is this boot's id, or a name in the settings."""
    answer = asyncio.run(exchange(gateway, seal(gateway.identity, authority=authority)))
    assert (answer.status, answer.code) == (421, "wrong-authority")
    assert app.calls == 0


def test_an_enclave_answers_to_the_names_in_its_settings() -> None:
    """S-4: and to them with any port, in any case; to nothing that merely ends like them."""
    app = Counting()
    gateway = Gateway(app, make_identity(), authorities=["falcon.example"])

    async def ask(authority: bytes) -> int:
        return (await exchange(gateway, seal(gateway.identity, authority=authority))).status

    assert asyncio.run(ask(b"falcon.example")) == 200
    assert asyncio.run(ask(b"Falcon.example:8080")) == 200
    assert asyncio.run(ask(b"evil-falcon.example")) == 421
    assert asyncio.run(ask(b"falcon.example.evil")) == 421


def test_too_long_a_body_is_refused_before_it_is_read(gateway: Gateway) -> None:
    """S-7: what the head announces is enough."""
    length = str(Limits().body_bytes + 1).encode()

    async def never() -> Any:
        await asyncio.sleep(600)
        yield b""

    async def ask(media: str, length: bytes) -> Outer:
        return await asyncio.wait_for(
            call(gateway, never(), media=media, headers=[(b"content-length", length)]), timeout=60
        )

    assert asyncio.run(ask(ohttp.CHUNKED_REQUEST, length)).status == 413
    assert asyncio.run(ask(ohttp.REQUEST, str(Limits().whole_bytes + 1).encode())).status == 413


def test_an_endless_body_ends_at_the_limit(app: Counting) -> None:
    """S-7: also when nothing was announced; outside the seal before it was opened, inside after."""
    gateway = Gateway(make_echo_app(), make_identity(), limits=Limits(body_bytes=1 << 20))
    given = 0

    async def endless(start: bytes, piece: bytes) -> Any:
        nonlocal given
        given = 0
        yield start
        while True:
            given += len(piece)
            await asyncio.sleep(0)
            yield piece

    junk = asyncio.run(call(gateway, endless(b"\x00" * 7, bytes(65536))))
    assert (junk.status, junk.body) == (413, b"the request is too large")

    config = ohttp.preferred(ohttp.parse_key_configs(gateway.identity.key_config))
    sealer = ohttp.RequestSealer(config)
    from blindbox_attestation.channel import bhttp
    from tests.kit.peer import inner_head, read_answer

    start = sealer.seal(bhttp.request_start(inner_head(gateway.identity, b"POST", b"/upload", ())))

    async def sealed_endless() -> Any:
        yield start
        while True:
            await asyncio.sleep(0)
            yield sealer.seal(bhttp.content(bytes(16000)))

    outer = asyncio.run(call(gateway, sealed_endless()))
    opener = sealer.response_opener()
    answer = read_answer([*opener.feed(outer.body), *opener.close()])
    assert (outer.status, answer.status, answer.code) == (200, 413, "request-too-large")


def test_a_body_that_does_not_arrive_in_time_is_not_waited_for(app: Counting) -> None:
    """
    S-8: the deadline is absolute, and moves only with bytes; before opening outside the seal, after inside.
    """
    limits = Limits(receipt_seconds=1.0, least_rate=1e6)
    gateway = Gateway(make_echo_app(), make_identity(), limits=limits)

    async def dripping(body: bytes) -> Any:
        for byte in body:
            yield bytes([byte])
            await asyncio.sleep(0.05)

    async def stalled(first: bytes) -> Any:
        yield first
        await asyncio.sleep(600)
        yield b""

    sealed = seal(gateway.identity, b"POST", b"/upload", b"x" * 40000)

    async def ask() -> tuple[Outer, Outer, float]:
        loop = asyncio.get_running_loop()
        start = loop.time()
        slow = await asyncio.wait_for(call(gateway, dripping(sealed.body[:2000])), 60)
        opened = await asyncio.wait_for(call(gateway, stalled(sealed.body[:20000])), 60)
        return slow, opened, loop.time() - start

    slow, opened, seconds = asyncio.run(ask())
    assert (slow.status, slow.body) == (408, b"the request took too long")
    answer = sealed.open(opened.body)
    assert (answer.status, answer.code) == (408, "request-too-slow")
    assert answer.header(b"blindbox-request-id") == sealed.request_id
    assert seconds < 60  # two deadlines, and a moment of lingering after each; the bytes would take longer


def test_requests_that_find_no_place_are_sent_away_with_a_time_to_come_back() -> None:
    """S-8: unopened requests are counted; those beyond the limit get 503 at once, and the healthy go on."""
    gateway = Gateway(make_echo_app(), make_identity(), limits=Limits(receiving=2, slots=1))

    async def stalled(release: asyncio.Event) -> Any:
        yield b"\x00"
        await release.wait()

    async def ask() -> None:
        release = asyncio.Event()
        waiting = [asyncio.create_task(call(gateway, stalled(release))) for _ in range(2)]
        while gateway._receiving < 2:
            await asyncio.sleep(0)
        refused = await call(gateway, seal(gateway.identity).body)
        assert (refused.status, dict(refused.headers)[b"retry-after"]) == (503, b"1")
        release.set()
        assert [(await one).status for one in waiting] == [400, 400]
        # The application has one place: whoever was opened hears so inside the seal.
        slow = asyncio.create_task(exchange(gateway, seal(gateway.identity, path=b"/delay/1.5")))
        while gateway._running < 1:
            await asyncio.sleep(0)
        busy = await exchange(gateway, again := seal(gateway.identity))
        assert (busy.status, busy.code, busy.header(b"retry-after")) == (503, "busy", b"1")
        assert (await slow).status == 200
        # What was sent away for want of a place has not been received: the same request id may come again.
        retried = seal(gateway.identity, request_id=again.request_id)
        assert (await exchange(gateway, retried)).status == 200

    asyncio.run(ask())


@pytest.mark.parametrize(
    "query",
    [b"nonce=", b"nonce=AAAA", b"nonce=" + b"A" * 42 + b"B", b"nonce=" + b"A" * 43 + b"=", b"n=1", b"x",
     b"nonce=" + b"A" * 43 + b"&nonce=" + b"A" * 43, b"nonce=" + b"+" * 43, b"nonce=" + b"A" * 44],
)  # fmt: skip
def test_a_nonce_has_one_spelling(gateway: Gateway, query: bytes) -> None:
    outer = asyncio.run(call(gateway, method="GET", path=ATTESTATION, query=query, media=None))
    assert outer.status == 400
    assert b"32 bytes" in outer.body


def test_a_document_is_served_fresh_and_cached(gateway: Gateway) -> None:
    async def ask(query: bytes) -> Outer:
        return await call(gateway, method="GET", path=ATTESTATION, query=query, media=None)

    fresh = [asyncio.run(ask(b"nonce=" + b64url(bytes([n]) * 32))) for n in range(2)]
    cached = [asyncio.run(ask(b"")) for _ in range(2)]
    assert {outer.status for outer in (*fresh, *cached)} == {200}
    assert dict(fresh[0].headers)[b"content-type"] == b"application/blindbox-attestation+json"
    assert fresh[0].body != fresh[1].body
    assert cached[0].body == cached[1].body


@pytest.mark.parametrize("error", [QuoteUnavailable, ValueError])
def test_a_machine_that_gives_no_evidence_is_a_503(error: type[Exception]) -> None:
    class Broken:
        platform = "sev-snp"

        def quote(self, bound: Bound) -> Quote:
            raise error("the firmware is silent")

    gateway = Gateway(Counting(), make_identity(Broken()))
    outer = asyncio.run(call(gateway, method="GET", path=ATTESTATION, media=None))
    assert (outer.status, outer.body) == (503, b"the machine gave no evidence")
    assert dict(outer.headers)[b"retry-after"] == b"5"
