"""What a box on the way can do to a sealed call: nothing but break it, and that is noticed."""

from __future__ import annotations

import gzip
import json
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

import blindbox.requests as requests
from blindbox import NoEvidence, SealedAdapter, SealingError, TruncatedResponse, UnsealedAnswer
from blindbox.errors import AttestationError, MalformedEvidence, UnboundKey, WrongAnswer
from blindbox_attestation.channel import ohttp, varint
from enclave_app import gateway
from tests.kit.enclave import make_identity, running
from tests.kit.peer import b64url, seal
from tests.kit.relay import Asked, Box, Passed, Relay, Reply, http_reply

EVIDENCE = "application/blindbox-attestation+json"
PROBLEM = (
    b'{"type":"https://iana.org/assignments/http-problem-types#ohttp-key","title":"key identifier unknown"}'
)


def read_on(response: requests.Response, seen: bytearray) -> None:
    for piece in response.iter_content(None):
        seen += piece


def only_post(reply: Callable[[Asked], Reply]) -> Callable[[Asked], Reply | None]:
    return lambda asked: reply(asked) if asked.method == "POST" else None


# ── evidence ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_that_the_evidence_does_not_speak_of_is_never_used(
    relay: Relay, session: requests.Session
) -> None:
    """C-3: a box serves the genuine document with a key configuration of its own."""
    attacker = ohttp.KeyConfig(1, 0x0020, bytes(range(32)))

    def swap(passed: Passed) -> Reply | None:
        document = json.loads(passed.body)
        document["transcript"]["key_config"] = b64encode(ohttp.encode_key_configs([attacker])).decode()
        return passed.reply(json.dumps(document).encode())

    relay.change = swap
    with pytest.raises(UnboundKey):
        session.post(relay.origin + "/echo", json={"input_text": "mine"})
    assert not relay.sealed()


def test_evidence_of_another_question_is_refused(relay: Relay, session: requests.Session) -> None:
    """C-3: yesterday's document, genuine then, answers no nonce of today."""
    old = relay.forward(Asked(b"", "GET", "/.well-known/blindbox/attestation?nonce=" + "A" * 43, (), b""))
    relay.change = lambda passed: old.reply()
    with pytest.raises(UnboundKey):
        session.get(relay.origin + "/echo")
    assert not relay.sealed()


def _rss() -> int:
    return int(psutil.Process().memory_info().rss)


def _endless(total: int) -> Iterator[bytes]:
    yield f"HTTP/1.1 200 OK\r\nContent-Type: {EVIDENCE}\r\nConnection: close\r\n\r\n".encode()
    block = b" " * (1 << 20)
    for _ in range(total >> 20):
        yield block


def _announced(total: int) -> Iterator[bytes]:
    yield f"HTTP/1.1 200 OK\r\nContent-Type: {EVIDENCE}\r\nContent-Length: {total}\r\n\r\n".encode()
    yield b"{" * (1 << 20)


def _chunked(total: int) -> Iterator[bytes]:
    yield f"HTTP/1.1 200 OK\r\nContent-Type: {EVIDENCE}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    yield b"%x\r\n" % total
    for _ in range(total >> 20):
        yield b" " * (1 << 20)


def _bomb(total: int) -> Iterator[bytes]:
    squeezed = gzip.compress(bytes(64 << 20), 9)
    yield (
        f"HTTP/1.1 200 OK\r\nContent-Type: {EVIDENCE}\r\nContent-Encoding: gzip\r\n"
        f"Content-Length: {len(squeezed)}\r\n\r\n"
    ).encode()
    yield squeezed


@pytest.mark.parametrize("hostile", [_endless, _announced, _chunked, _bomb])
def test_evidence_is_capped_before_it_is_read(
    hostile: Callable[[int], Iterator[bytes]], session: Any
) -> None:
    """C-18: 1 GiB of evidence in each framing, and a compressed bomb: refused after 256 KiB."""
    with Box(lambda asked: Reply(hostile(1 << 30))) as box:
        before = _rss()
        with pytest.raises(MalformedEvidence):
            session.get(box.origin + "/echo")
        assert _rss() - before < 24 << 20
        assert [asked.method for asked in box.asked] == ["GET"]


def test_a_busy_box_is_not_read_to_its_end_however_often_connecting_may_be_tried(policy: Any) -> None:
    """C-18: with `max_retries`, urllib3 would drain an answer that says Retry-After, also an endless one."""
    told = b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield told
        for _ in range(64):
            sent += 1 << 20
            yield b" " * (1 << 20)

    door = SealedAdapter(policy, max_retries=3)
    with Box(lambda asked: Reply(endless())) as box:
        with pytest.raises(NoEvidence, match="too busy"):
            door.prove(box.origin)
        assert len(box.asked) == 1
        assert sent < 32 << 20


@pytest.mark.parametrize(
    "reply",
    [
        http_reply(404, "text/plain", b"not here"),
        http_reply(500, EVIDENCE, b"{}"),
        http_reply(200, "text/html", b"<html>"),
        http_reply(302, EVIDENCE, b"", more="Location: http://127.0.0.1:9/\r\n"),
    ],
    ids=["404", "500", "html", "redirect"],
)
def test_what_shows_no_evidence_gets_nothing(reply: Reply, session: requests.Session) -> None:
    """C-38: an answer that is no document, a redirect among them, ends the matter."""
    with Box(lambda asked: reply) as box:
        with pytest.raises(NoEvidence) as caught:
            session.post(box.origin + "/echo", data=b"mine")
        assert isinstance(caught.value, AttestationError)
        assert not isinstance(caught.value, requests.RequestException)
        assert [asked.method for asked in box.asked] == ["GET"]


# ── answers that are not sealed ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("text/html", b"<h1>PLANTED</h1>"), ("application/json", b'{"text":"PLANTED"}'), ("text/plain", b"")],
    ids=["html", "json", "empty"],
)
def test_no_unsealed_answer_of_any_status_is_shown(
    content_type: str, body: bytes, relay: Relay, session: requests.Session
) -> None:
    """C-25: every status from 100 to 599, planted by a box; the body reaches nobody, not even in an error."""
    status = 0
    relay.before = only_post(
        lambda asked: Reply(
            [
                f"HTTP/1.1 {status} OK\r\nContent-Type: {content_type}\r\n".encode()
                + f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            ]
        )
    )
    for status in range(100, 600):
        with pytest.raises((UnsealedAnswer, requests.ConnectionError)) as caught:
            session.post(relay.origin + "/echo", data=b"mine")
        if status >= 101:
            assert isinstance(caught.value, UnsealedAnswer), status
            assert caught.value.status == status
            assert "PLANTED" not in str(caught.value)
        assert getattr(caught.value, "response", None) is None
    assert relay.proofs() == 1, "nothing but the key problem makes a client ask for another proof"


def test_an_unsealed_body_with_a_sealed_media_type_is_not_shown(
    relay: Relay, session: requests.Session
) -> None:
    """C-25: the label alone opens nothing."""
    for body in (b"", b"<h1>PLANTED</h1>", b"PLANTED" * 5000):
        relay.before = only_post(lambda asked, body=body: http_reply(200, ohttp.CHUNKED_RESPONSE, body))
        with pytest.raises(SealingError) as caught:
            session.post(relay.origin + "/echo", data=b"mine")
        assert "PLANTED" not in str(caught.value)


def test_busy_says_when_to_come_back(relay: Relay, session: requests.Session) -> None:
    relay.before = only_post(lambda asked: http_reply(503, "text/plain", b"", more="Retry-After: 7\r\n"))
    with pytest.raises(UnsealedAnswer, match="busy") as caught:
        session.get(relay.origin + "/echo")
    assert caught.value.retry_after == 7


def test_a_storm_of_key_problems_ends_after_one_new_proof(relay: Relay, session: requests.Session) -> None:
    """C-37: a box answers "unknown key" for ever: two requests, two proofs, then an error."""
    relay.before = only_post(lambda asked: http_reply(400, "application/problem+json", PROBLEM))
    with pytest.raises(UnsealedAnswer):
        session.get(relay.origin + "/echo")
    assert [asked.method for asked in relay.asked] == ["GET", "POST", "GET", "POST"]
    relay.before = None
    assert session.get(relay.origin + "/echo").ok


def test_a_key_problem_that_drips_in_is_not_waited_for(
    relay: Relay, session: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C-37: each byte comes in time, and there are many."""
    monkeypatch.setattr("blindbox.adapter.EVIDENCE_LIMITS", requests.Timeouts(in_all=2.0))

    def drip() -> Iterator[bytes]:
        yield b"HTTP/1.1 400 Bad\r\nContent-Type: application/problem+json\r\nConnection: close\r\n\r\n"
        for _ in range(2000):
            time.sleep(0.05)
            yield b" "

    relay.before = only_post(lambda asked: Reply(drip()))
    began = time.monotonic()
    with pytest.raises(UnsealedAnswer):
        session.get(relay.origin + "/echo")
    assert time.monotonic() - began < 60


def test_a_forged_key_problem_does_not_run_a_call_twice(
    relay: Relay, session: requests.Session, app: Any
) -> None:
    """C-37: the box lets the call through and replaces its answer; the enclave knows the request id again."""
    forged = []

    def forge(passed: Passed) -> Reply | None:
        if passed.asked.method == "POST" and not forged:
            forged.append(passed)
            return http_reply(400, "application/problem+json", PROBLEM)
        return None

    relay.change = forge
    with pytest.raises(requests.OutcomeUnknown):
        session.post(relay.origin + "/run/forged")
    assert app.runs["forged"] == 1


def test_a_call_is_not_run_twice_by_an_enclave_that_was_made_to_forget_it(
    session: requests.Session, app: Any
) -> None:
    """C-37, S-1: before it forges the answer, the box wears out every key that remembers the request id."""
    identity = make_identity(seen_per_key=4)
    forged: list[Passed] = []

    def forge(passed: Passed) -> Reply | None:
        if passed.asked.method == "POST" and not forged:
            forged.append(passed)
            boot, generations = identity.boot_id, {identity.key_config}
            while len(generations) < 4:
                own = replace(passed.asked, body=seal(identity, request_id=b"", path=b"/echo").body)
                assert relay.forward(own).status == 200
                generations.add(identity.key_config)
            assert identity.boot_id == boot
            return http_reply(400, "application/problem+json", PROBLEM)
        return None

    with running(app.asgi, identity=identity) as enclave, Relay(enclave.origin, change=forge) as relay:
        with pytest.raises(requests.OutcomeUnknown):
            session.post(relay.origin + "/run/forgotten")
        assert app.runs["forgotten"] == 1
        assert session.post(relay.origin + "/run/forgotten").json() == {"runs": 2}


@pytest.mark.parametrize("extra", [b" ", b"x" * 5000])
def test_only_the_exact_problem_is_acted_on(extra: bytes, relay: Relay, session: requests.Session) -> None:
    """C-25: a longer or unreadable problem is an unsealed answer like any other."""
    relay.before = only_post(lambda asked: http_reply(400, "application/problem+json", b"[" + extra))
    with pytest.raises(UnsealedAnswer):
        session.get(relay.origin + "/echo")
    assert relay.proofs() == 1


# ── answers that are sealed, and meddled with ─────────────────────────────────────────────────────────────


def test_answers_swapped_between_two_calls_open_nowhere(relay: Relay, session: requests.Session) -> None:
    """C-26: two calls at once, each gets the other's genuine answer."""
    session.get(relay.origin + "/echo")  # proven
    meeting = threading.Barrier(2)
    answers: dict[int, Passed] = {}

    def swap(passed: Passed) -> Reply | None:
        place = meeting.wait(60)
        answers[place] = passed
        meeting.wait(60)
        return answers[1 - place].reply()

    relay.change = swap
    caught: list[BaseException] = []

    def ask(name: str) -> None:
        try:
            session.post(relay.origin + f"/echo/{name}", data=name)
        except SealingError as error:
            caught.append(error)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caught) == 2


@pytest.mark.parametrize("told", ["another", "none", "ours and another"])
def test_a_well_sealed_answer_to_another_request_is_refused(
    told: str, relay: Relay, session: requests.Session, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C-26: an enclave that mixes up its answers, or a second id beside ours."""
    honest, other = gateway._inner_scope, (b"blindbox-request-id", b64url(bytes(16)))

    def mixed_up(head: Any, outer: Any) -> Any:
        inner = honest(head, outer)
        assert inner is not None
        wrong = {"another": (other,), "none": (), "ours and another": (*inner.echoed, other)}
        return replace(inner, echoed=wrong[told])

    assert session.get(relay.origin + "/echo").ok
    monkeypatch.setattr(gateway, "_inner_scope", mixed_up)
    for stream in (False, True):
        with pytest.raises(WrongAnswer):
            session.post(relay.origin + f"/run/mixed-{told}-{stream}", stream=stream)
        assert app.runs[f"mixed-{told}-{stream}"] == 1


def test_an_earlier_answer_does_not_open_again(relay: Relay, session: requests.Session) -> None:
    """C-27: the answer to the same question a moment ago."""
    session.post(relay.origin + "/echo", data=b"same")
    first = relay.sealed()[0]
    relay.change = lambda passed: first.reply()
    with pytest.raises(SealingError):
        session.post(relay.origin + "/echo", data=b"same")


def test_an_answer_cut_at_any_byte_is_no_answer(relay: Relay, session: requests.Session) -> None:
    """C-28: cut cleanly at every byte; who does not stream sees nothing."""
    session.get(relay.origin + "/status/200")
    size = len(relay.sealed()[0].body)
    cut = 0
    relay.change = lambda passed: passed.reply(cut=cut)
    for cut in range(size):  # noqa: B007 - the relay reads it
        with pytest.raises(TruncatedResponse) as caught:
            session.get(relay.origin + "/status/200")
        assert isinstance(caught.value, requests.exceptions.ChunkedEncodingError)
        assert "sealed 200" not in str(caught.value)
    cut = size
    assert session.get(relay.origin + "/status/200").text == "sealed 200"


def _boundaries(sealed: bytes) -> list[int]:
    """Where the chunks of a sealed answer begin, after the response nonce."""
    position, found = 32, []
    while True:
        found.append(position)
        read = varint.read(sealed, position)
        assert read is not None
        size, start = read
        if size == 0:
            return found
        position = start + size


def test_a_stream_cut_anywhere_ends_with_an_error_and_not_before(
    relay: Relay, session: requests.Session
) -> None:
    """C-28: `for piece in iter_content` raises before the loop would end, at chunk boundaries too."""
    url = relay.origin + "/big?n=200000"
    truth = session.get(url).content
    sealed = relay.sealed()[-1].body
    edges = _boundaries(sealed)
    cut = 0
    relay.change = lambda passed: passed.reply(cut=cut)
    for cut in sorted(
        {edge + more for edge in edges for more in (-1, 0, 1)} | {len(sealed) - 1, len(sealed) - 17}
    ):
        seen = bytearray()
        with pytest.raises(TruncatedResponse):
            read_on(session.get(url, stream=True), seen)
        assert truth.startswith(seen)
        assert len(seen) < len(truth) or cut > edges[-1] - 1


def test_nothing_of_an_altered_chunk_is_handed_on(relay: Relay, session: requests.Session) -> None:
    """C-33: chunk k is altered; what was seen is a beginning of the truth, from chunks before k."""
    url = relay.origin + "/big?n=200000"
    truth = session.get(url).content
    edges = _boundaries(relay.sealed()[-1].body)
    for k, edge in enumerate(edges):

        def alter(passed: Passed, edge: int = edge) -> Reply:
            body = bytearray(passed.body)
            body[edge + 9] ^= 1
            return passed.reply(bytes(body))

        relay.change = alter
        seen = bytearray()
        with pytest.raises(SealingError):
            read_on(session.get(url, stream=True), seen)
        assert truth.startswith(seen)
        assert len(seen) <= k * 16384


def test_json_is_not_read_from_half_an_answer(relay: Relay, session: requests.Session) -> None:
    """C-33: `.json()` of a streamed answer waits for its authenticated end."""
    session.get(relay.origin + "/echo")
    relay.change = lambda passed: passed.reply(cut=len(passed.body) - 1)
    with pytest.raises(TruncatedResponse):
        session.get(relay.origin + "/echo", stream=True).json()


def test_bytes_after_the_end_are_refused(relay: Relay, session: requests.Session) -> None:
    """C-28: an answer that goes on after its authenticated end has none."""
    relay.change = lambda passed: (
        passed.reply(passed.body + b"\x00") if passed.asked.method == "POST" else None
    )
    with pytest.raises(SealingError):
        session.get(relay.origin + "/status/200")


def test_a_request_for_one_enclave_opens_at_no_other(
    app: Any, session: requests.Session, policy: Any
) -> None:
    """C-36: the same program, started again, holds other keys; a replayed request means nothing to it."""
    with running(app.asgi) as first, running(app.asgi) as second, Relay(first.origin) as relay:
        session.post(relay.origin + "/run/moved")
        kept = relay.sealed()[0].asked
        relay.target = second.origin
        answer = relay.forward(kept)
        assert answer.status == 400
        assert answer.body == PROBLEM
        assert app.runs["moved"] == 1


def test_a_lie_about_the_tenant_key_cannot_be_planted_in_the_document(
    relay: Relay, session: requests.Session
) -> None:
    """C-3: every field of the transcript is covered: change any and nothing is sent."""
    for name in ("boot_id", "config_digest", "not_after", "nonce", "receipt_key"):

        def change(passed: Passed, name: str = name) -> Reply:
            document = json.loads(passed.body)
            value = document["transcript"][name]
            if isinstance(value, int):
                document["transcript"][name] = value + 1
            else:
                raw = b64decode(value)
                document["transcript"][name] = b64encode(bytes([raw[0] ^ 1]) + raw[1:]).decode()
            return passed.reply(json.dumps(document).encode())

        relay.change = change
        with pytest.raises(AttestationError):
            session.get(relay.origin + "/echo")
    assert not relay.sealed()
