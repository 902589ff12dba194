"""Sessions over time, in threads, across restarts of the enclave and forks of the client."""

from __future__ import annotations

import copy
import faulthandler
import logging
import os
import pickle
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import blindbox.requests as requests
from blindbox import OutcomeUnknown, SealedAdapter
from blindbox.session_key import SessionKeys
from tests.kit.enclave import running
from tests.kit.relay import Passed, Relay, Reply
from tests.kit.simulated import unsafe


def session_with(policy: Any = None, **options: Any) -> requests.Session:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return requests.Session(adapter=SealedAdapter(policy or unsafe(), **options))


# ── time ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_proof_is_used_until_its_age_and_then_made_again(relay: Relay) -> None:
    ahead, later = timedelta(0), 0.0
    keys = SessionKeys(now=lambda: datetime.now(UTC) + ahead, tick=lambda: time.monotonic() + later)
    session = session_with(unsafe(max_age=timedelta(minutes=10)), keys=keys)
    for _ in range(3):
        session.get(relay.origin + "/echo")
    assert relay.proofs() == 1
    later = 599.0
    session.get(relay.origin + "/echo")
    assert relay.proofs() == 1
    later = 601.0  # by the clock that nobody can set back; the other one stands still
    session.get(relay.origin + "/echo")
    assert relay.proofs() == 2
    ahead = timedelta(seconds=601)  # and the other way round, as after a sleep of this machine
    session.get(relay.origin + "/echo")
    assert relay.proofs() == 3


def test_a_key_is_not_used_after_the_end_that_was_proved(relay: Relay) -> None:
    """C-1: however long the policy lets a proof be relied on."""
    ahead = timedelta(0)
    keys = SessionKeys(now=lambda: datetime.now(UTC) + ahead, tick=lambda: 0.0)
    session = session_with(unsafe(max_age=timedelta(hours=24)), keys=keys)
    end = session.get(relay.origin + "/echo").blindbox.not_after  # type: ignore[attr-defined]
    ahead = end - datetime.now(UTC) - timedelta(seconds=30)
    session.get(relay.origin + "/echo")
    assert relay.proofs() == 1
    ahead = end - datetime.now(UTC) + timedelta(seconds=1)
    session.get(relay.origin + "/echo")
    assert relay.proofs() == 2


def test_a_max_age_of_zero_asks_at_every_call(relay: Relay) -> None:
    session = session_with(unsafe(max_age=timedelta(0)))
    for _ in range(3):
        session.get(relay.origin + "/echo")
    assert relay.proofs() == 3


def test_policies_do_not_share_proofs(relay: Relay) -> None:
    session = session_with()
    session.get(relay.origin + "/echo")
    session.get(relay.origin + "/echo", policy=unsafe(max_age=timedelta(minutes=9)))
    session.get(relay.origin + "/echo")
    assert relay.proofs() == 2


def test_cached_evidence_is_asked_for_only_if_the_policy_says_so(relay: Relay) -> None:
    session_with(unsafe(accept_cached=True)).get(relay.origin + "/echo")
    session_with().get(relay.origin + "/echo")
    assert [("nonce" in asked.target) for asked in relay.asked if asked.method == "GET"] == [False, True]


# ── restarts ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_restart_is_proved_anew_and_an_unsafe_call_is_not_repeated(app: Any) -> None:
    """C-36: POST after a restart: the outcome is unknown, it is said so, and the next call works."""
    with running(app.asgi) as first, running(app.asgi) as second, Relay(first.origin) as relay:
        session = session_with()
        assert session.post(relay.origin + "/run/restart").json() == {"runs": 1}
        relay.target = second.origin
        with pytest.raises(OutcomeUnknown, match="restarted"):
            session.post(relay.origin + "/run/restart")
        assert app.runs["restart"] == 1
        assert session.post(relay.origin + "/run/restart").json() == {"runs": 2}
        assert relay.proofs() == 2


@pytest.mark.parametrize("verb", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_idempotent_calls_pass_over_a_restart(verb: str, app: Any) -> None:
    """C-36: what may run twice is sent again, once, to the machine that has proved itself now."""
    with running(app.asgi) as first, running(app.asgi) as second, Relay(first.origin) as relay:
        session = session_with()
        before = session.get(relay.origin + "/echo").blindbox.boot_id  # type: ignore[attr-defined]
        relay.target = second.origin
        response = session.request(verb, relay.origin + "/echo")
        assert response.ok
        assert response.blindbox.boot_id != before  # type: ignore[attr-defined]
        assert relay.proofs() == 2


def test_a_post_with_an_idempotency_key_passes_over_a_restart(app: Any) -> None:
    """C-36."""
    with running(app.asgi) as first, running(app.asgi) as second, Relay(first.origin) as relay:
        session = session_with()
        session.get(relay.origin + "/echo")
        relay.target = second.origin
        assert session.post(relay.origin + "/echo", data=b"x", headers={"idempotency-key": "k1"}).ok


def test_a_restart_in_the_middle_of_a_stream_is_an_error_and_no_silent_resumption(app: Any) -> None:
    """C-36: the stream breaks off with an error; the next call proves the restarted machine."""
    with running(app.asgi) as first, running(app.asgi) as second, Relay(first.origin) as relay:
        session = session_with()
        session.get(relay.origin + "/echo")
        relay.change = lambda passed: passed.reply(cut=len(passed.body) // 2)
        seen: list[int] = []
        pieces = session.get(relay.origin + "/big?n=100000", stream=True).iter_content(None)
        with pytest.raises(requests.TruncatedResponse):
            seen.extend(len(piece) for piece in pieces)
        assert sum(seen) < 100_000
        relay.change, relay.target = None, second.origin
        assert session.get(relay.origin + "/echo").ok
        assert relay.proofs() == 2


def test_a_file_is_read_again_from_where_it_began_and_a_generator_is_not(app: Any) -> None:
    """C-36: what cannot be read twice is not sent by halves."""
    import io

    for body, works in ((io.BytesIO(b"skip" + b"rows" * 9000), True), (iter([b"rows"] * 9000), False)):
        with running(app.asgi) as first, running(app.asgi) as second, Relay(first.origin) as relay:
            session = session_with()
            session.get(relay.origin + "/echo")
            relay.target = second.origin
            if works:
                body.seek(4)  # type: ignore[union-attr]
                told = session.put(relay.origin + "/echo", data=body)
                assert told.ok
            else:
                with pytest.raises(OutcomeUnknown, match="only once"):
                    session.put(relay.origin + "/echo", data=body)


def test_evidence_that_is_no_longer_live_is_renewed_without_the_caller_noticing(
    relay: Relay, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C-37: a sealed 421 stale-evidence says that the call did not run: proved again, sent again, once."""
    from blindbox import question

    session = session_with()
    session.get(relay.origin + "/echo")
    honest = question.b64url
    stale = [True]

    def forget(data: bytes) -> bytes:
        if len(data) == 48 and stale:
            stale.clear()
            return honest(bytes(48))
        return honest(data)

    monkeypatch.setattr(question, "b64url", forget)
    assert session.post(relay.origin + "/run/stale").json() == {"runs": 1}
    assert relay.proofs() == 2


# ── threads ───────────────────────────────────────────────────────────────────────────────────────────────


def test_in_64_threads_every_answer_belongs_to_its_question(relay: Relay) -> None:
    """C-45: one session, 64 threads that begin at once: one proof, and no answer goes astray."""
    session = session_with()
    start = threading.Barrier(64)

    def ask(number: int) -> bool:
        start.wait(120)
        return all(
            session.post(f"{relay.origin}/echo/{number}-{turn}", data=str(number)).json()["path"]
            == f"/echo/{number}-{turn}"
            for turn in range(4)
        )

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(ask, range(64)))
    assert relay.proofs() == 1
    sealed = [asked.body[: 7 + 1120] for asked in relay.asked if asked.method == "POST"]
    assert len(set(sealed)) == len(sealed) == 64 * 4


def test_threads_that_wait_for_a_proof_share_its_failure(relay: Relay) -> None:
    """C-45: nobody waits for ever, and the next call asks anew."""
    lies = [True]

    def lie(passed: Passed) -> Reply | None:
        time.sleep(0.2)
        return passed.reply(b"{}") if lies and passed.asked.method == "GET" else None

    relay.change = lie
    session = session_with()

    def ask(_: int) -> str:
        try:
            session.get(relay.origin + "/echo")
        except requests.AttestationError as error:
            return error.code
        return "answered"

    with ThreadPoolExecutor(16) as pool:
        assert "answered" not in set(pool.map(ask, range(16)))
    assert relay.proofs() < 16
    lies.clear()
    assert session.get(relay.origin + "/echo").ok


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def quiet() -> Iterator[None]:
    """Nothing is logged: pytest logs into files, whose locks another thread may hold while we fork."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def in_child(work: Any) -> str:
    """Fork, run `work` in the child, and return what it says."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(120, exit=True, file=writing)  # a child that hangs says where
        try:
            told = str(work())
        except BaseException:
            told = traceback.format_exc()
        os.write(writing, told.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told


@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_proves_anew_and_uses_no_socket_of_its_parent(relay: Relay) -> None:
    """C-46: forked while threads are calling; every encapsulated key stays unique."""
    session = session_with()
    url = relay.origin + "/echo/"
    session.get(url + "parent")
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            session.get(url + "thread")

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            time.sleep(0.013 * number)
            told = in_child(lambda number=number: session.get(f"{url}child-{number}").json()["path"])
            assert told == f"/echo/child-{number}"
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert session.get(url + "parent").json()["path"] == "/echo/parent"
    assert relay.proofs() == 1 + 5
    sealed = [asked.body[: 7 + 1120] for asked in relay.asked if asked.method == "POST"]
    assert len(set(sealed)) == len(sealed)


@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_cannot_read_on_in_its_parents_answer(relay: Relay) -> None:
    """C-46."""
    session = session_with()
    response = session.get(relay.origin + "/big?n=300000", stream=True)
    told = in_child(lambda: response.content)
    assert "RuntimeError" in told
    assert len(response.content) == 300_000


@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_born_in_the_middle_of_a_request_seals_no_more_of_it() -> None:
    """C-46: parent and child would seal different bytes under one key and nonce."""
    from blindbox import question
    from blindbox_attestation.channel import bhttp, hpke, ohttp

    key = hpke.PrivateKey.generate(hpke.X25519)
    sealer = ohttp.RequestSealer(ohttp.KeyConfig(1, key.kem, key.public_bytes))
    head = bhttp.RequestHead(b"POST", b"https", b"a", b"/")
    sealed = question.sealed(sealer, head, (letter * 20_000 for letter in (b"A", b"B", b"C")))
    assert not isinstance(sealed, bytes)
    begun = next(sealed)
    assert "RuntimeError" in in_child(lambda: next(sealed))
    opener = ohttp.RequestOpener({1: key}, chunked=True)
    opened = b"".join([*opener.feed(begun + b"".join(sealed)), *opener.close()])
    assert [opened.count(letter) for letter in (b"A", b"B", b"C")] == [20_000] * 3


def test_sessions_and_adapters_are_neither_pickled_nor_copied() -> None:
    """C-46."""
    session = session_with()
    for thing in (session, session.get_adapter("http://a")):
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="copied or pickled"):
                attempt(thing)


def test_a_response_can_be_pickled_as_in_requests(relay: Relay) -> None:
    response = session_with().get(relay.origin + "/status/200")
    assert pickle.loads(pickle.dumps(response)).text == "sealed 200"
