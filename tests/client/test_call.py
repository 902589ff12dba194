"""A call that another thread may end: it is ended wherever it is, and no other call is."""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import requests as plain

import blindbox.requests as requests
from blindbox import SealedAdapter
from blindbox.call import Call, GivenUp
from blindbox.later import Later
from tests.kit.enclave import RunningEnclave, running
from tests.kit.generating import Generating
from tests.kit.relay import Asked, Relay, Reply


@pytest.fixture
def door(policy: Any) -> Iterator[SealedAdapter]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = SealedAdapter(policy)
    yield one
    one.close()


def prepared(url: str, method: str = "POST") -> plain.PreparedRequest:
    return plain.Request(method, url, data=b"x" if method == "POST" else None).prepare()


def silent(asked: Asked) -> Reply | None:
    def nothing() -> Iterator[bytes]:
        time.sleep(200)
        yield b""

    return Reply(nothing()) if asked.method == "POST" else None


@pytest.mark.parametrize("sealed_in", ["http", "https"])
def test_who_waits_for_an_answer_is_freed_when_the_call_is_given_up(
    sealed_in: str, enclave: RunningEnclave, door: SealedAdapter, tls: Any
) -> None:
    """Also where TLS is around the sealed messages, and the thread is inside of it."""
    context, certificate = tls
    with Relay(enclave.origin, tls=context if sealed_in == "https" else None) as relay:
        door.prove(relay.origin, verify=certificate)
        call = Call()

        def then_give_up(asked: Asked) -> Reply | None:
            if asked.method == "POST":
                threading.Timer(0.3, call.give_up).start()
            return silent(asked)

        relay.before = then_give_up
        began = time.monotonic()
        with pytest.raises(requests.RequestException):
            door.send(prepared(f"{relay.origin}/echo"), verify=certificate, call=call)
        assert time.monotonic() - began < 60
        assert call.sent
        relay.before = None
        assert door.send(prepared(f"{relay.origin}/echo"), verify=certificate).ok


def test_a_call_that_was_given_up_before_it_began_is_not_sent(
    enclave: RunningEnclave, door: SealedAdapter, app: Any
) -> None:
    call = Call()
    call.give_up()
    with pytest.raises(GivenUp):
        door.send(prepared(f"{enclave.origin}/run/never"), call=call)
    assert not call.sent
    assert app.runs["never"] == 0


def test_giving_up_late_does_not_hit_who_has_the_connection_now(door: SealedAdapter) -> None:
    generating = Generating()
    with running(generating.asgi) as enclave:
        generating.go_on.set()
        first = Call()
        whole = door.send(prepared(f"{enclave.origin}/gated", "GET"), call=first)
        assert whole.content == b"firstsecond"
        used = first._connection
        generating.go_on.clear()
        second = Call()
        answer = door.send(prepared(f"{enclave.origin}/gated", "GET"), stream=True, call=second)
        assert second._connection is used  # it came back from the pool
        first.give_up()
        generating.go_on.set()
        assert answer.content == b"firstsecond"


def test_a_connection_that_was_given_up_is_made_anew(enclave: RunningEnclave, door: SealedAdapter) -> None:
    first = Call()
    assert door.send(prepared(f"{enclave.origin}/echo"), call=first).ok
    first.give_up()  # it lies in the pool, and is still the first call's
    assert door.send(prepared(f"{enclave.origin}/echo"), call=Call()).ok


def test_what_was_never_sent_is_known_to_be_so(door: SealedAdapter, app: Any) -> None:
    with running(app.asgi) as enclave:
        door.prove(enclave.origin)
    call = Call()
    with pytest.raises(requests.ConnectionError):
        door.send(prepared(f"{enclave.origin}/echo"), call=call)
    assert not call.sent


def test_a_proof_that_others_wait_for_is_not_given_up_with_the_call(
    enclave: RunningEnclave, door: SealedAdapter
) -> None:
    """The call is; the proof goes on, for it is everybody's."""
    asked_for, go_on = threading.Event(), threading.Event()

    def hold(asked: Asked) -> None:
        asked_for.set()
        assert go_on.wait(60)

    with Relay(enclave.origin) as relay:
        relay.before = hold  # type: ignore[assignment]
        call, errors = Call(), []

        def ask() -> None:
            try:
                door.send(prepared(f"{relay.origin}/echo"), call=call)
            except GivenUp as error:
                errors.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        assert asked_for.wait(60)
        call.give_up()
        relay.before = None
        go_on.set()
        asking.join(60)
        assert len(errors) == 1
        assert not relay.sealed()
        assert relay.origin in door.keys.latest()


def test_limits_are_kept_in_the_order_of_their_time_and_can_be_called_off() -> None:
    later, told = Later(), []
    done = threading.Event()
    with later.unless_left(None, lambda: told.append("never")) as late:
        assert not late()
    with (
        later.unless_left(300, lambda: told.append("too late")),
        later.unless_left(1.8, done.set) as second,
        later.unless_left(0.1, lambda: told.append("first")) as first,
    ):
        with later.unless_left(1.5, lambda: told.append("called off")) as off:
            assert not off()
        assert done.wait(60)
        assert first()
        assert second()
        assert told == ["first"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_limits_are_kept_in_a_forked_child_too() -> None:
    later = Later()
    with later.unless_left(300, lambda: None):
        child = os.fork()
        if not child:
            done = threading.Event()
            with later.unless_left(0.05, done.set):
                os._exit(0 if done.wait(60) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_limit_in_all_is_none(enclave: RunningEnclave, policy: Any) -> None:
    """A timeout that the caller gives means what it means in `requests`."""
    assert requests.get(f"{enclave.origin}/slow?s=0.1", policy=policy, timeout=60).text == "at last"
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(requests.Timeout):
        requests.get(f"http://127.0.0.1:{deaf.getsockname()[1]}/", policy=policy, timeout=(1, 0.2))
