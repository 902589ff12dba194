"""No secret of a call is in anything the SDK says: errors, causes, representations, logs, warnings."""

from __future__ import annotations

import gc
import http.client
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import pytest

import blindbox.requests as requests
from blindbox.tenant import TokenStore
from tests.kit.enclave import RunningEnclave, running
from tests.kit.relay import Asked, Box, Relay, Reply, http_reply

CANARY = "canary-c0ffee"
PROBLEM = (
    b'{"type":"https://iana.org/assignments/http-problem-types#ohttp-key","title":"key identifier unknown"}'
)


@contextmanager
def everything_said() -> Iterator[io.StringIO]:
    """What is logged at any level by anybody, printed by http.client's debug mode, or warned of."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    loud = {
        logging.getLogger(name): logging.getLogger(name).level for name in ("urllib3", "requests", "blindbox")
    }
    for logger in loud:
        logger.setLevel(logging.DEBUG)
    before = http.client.HTTPConnection.debuglevel
    http.client.HTTPConnection.debuglevel = 1
    try:
        with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield said
            said.write("".join(str(one.message) for one in warned))
    finally:
        http.client.HTTPConnection.debuglevel = before
        for logger, quiet in loud.items():
            logger.setLevel(quiet)
        root.removeHandler(handler)
        root.setLevel(level)


def told_by(error: BaseException) -> str:
    """Everything that a crash reporter without access to local variables could show."""
    parts = ["".join(traceback.format_exception(error))]
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        parts += [repr(one), str(one), repr(getattr(one, "args", ""))]
        if isinstance(one, BaseException):
            waiting += [one.__cause__, one.__context__, *one.args]
            asked = getattr(one, "request", None)
            if asked is not None:
                parts.append(repr(vars(asked)))
    return "\n".join(parts)


def ask(session: requests.Session, origin: str, **keywords: Any) -> requests.Response:
    return session.post(
        f"{origin}/echo/{CANARY}",
        params={"q": CANARY},
        headers={"X-Secret": CANARY},
        cookies={"c": CANARY},
        json={"input_text": CANARY},
        **keywords,
    )


def post(reply: Callable[[Asked], Reply]) -> Callable[[Relay], None]:
    def prepare(relay: Relay) -> None:
        relay.before = lambda asked: reply(asked) if asked.method == "POST" else None

    return prepare


def change(changed: Callable[[Any], Reply | None]) -> Callable[[Relay], None]:
    def prepare(relay: Relay) -> None:
        relay.change = lambda passed: changed(passed) if passed.asked.method == "POST" else None

    return prepare


def lie_about_evidence(relay: Relay) -> None:
    relay.change = lambda passed: passed.reply(b"{}") if passed.asked.method == "GET" else None


WAYS: dict[str, Callable[[Relay], None]] = {
    "unsealed": post(lambda asked: http_reply(500, "text/plain", b"x")),
    "busy": post(lambda asked: http_reply(503, "text/plain", b"x")),
    "storm": post(lambda asked: http_reply(400, "application/problem+json", PROBLEM)),
    "hung up": post(lambda asked: Reply([])),
    "garbage": post(lambda asked: Reply([b"garbage\r\n\r\n"])),
    "cut": change(lambda passed: passed.reply(cut=100)),
    "empty": change(lambda passed: passed.reply(cut=0)),
    "altered": change(lambda passed: passed.reply(passed.body[:60] + b"!" + passed.body[61:])),
    "trailing": change(lambda passed: passed.reply(passed.body + b"!")),
    "short by length": change(
        lambda passed: Reply(
            [
                b"HTTP/1.1 200 OK\r\nContent-Type: message/ohttp-chunked-res\r\nContent-Length: 9999\r\n\r\n"
                + passed.body
            ]
        )
    ),
    "lost after running": change(lambda passed: http_reply(400, "application/problem+json", PROBLEM)),
    "no evidence": lie_about_evidence,
}


@pytest.mark.parametrize("way", list(WAYS))
def test_no_error_holds_a_secret(way: str, enclave: RunningEnclave, session: requests.Session) -> None:
    """C-44: on every way a call can fail."""
    token = TokenStore().token(enclave.origin)
    with Relay(enclave.origin) as relay, everything_said() as said:
        WAYS[way](relay)
        with pytest.raises((requests.RequestException, requests.BlindBoxError)) as caught:
            ask(session, relay.origin)
    told = said.getvalue() + told_by(caught.value)
    assert CANARY not in told
    assert token not in told
    assert TokenStore().token(relay.origin) not in told


def test_no_error_of_the_network_or_the_caller_holds_a_secret(
    enclave: RunningEnclave, session: requests.Session, app: Any
) -> None:
    """C-44: timeouts, refused connections, restarts, foreign redirects, missing policies."""
    told = []

    def failing(call: Callable[[], Any]) -> None:
        with (
            everything_said() as said,
            pytest.raises((requests.RequestException, requests.BlindBoxError)) as caught,
        ):
            call()
        told.append(said.getvalue() + told_by(caught.value))

    failing(lambda: ask(session, "http://127.0.0.1:9"))
    failing(lambda: ask(session, "http://127.0.0.1:9", proxies={"http": "http://127.0.0.1:9"}))
    failing(lambda: ask(requests.Session(), enclave.origin))
    failing(lambda: session.post(enclave.origin + f"/slow?s=2&q={CANARY}", data=CANARY, timeout=0.3))
    failing(lambda: session.get(enclave.origin + f"/go?to=http://{CANARY}.example/{CANARY}"))
    with running(app.asgi) as first, running(app.asgi) as second, Relay(first.origin) as relay:
        ask(session, relay.origin)
        relay.target = second.origin
        failing(lambda: ask(session, relay.origin))
    with Box(
        lambda asked: http_reply(302, "text/plain", b"", more="Location: http://127.0.0.1:9/\r\n")
    ) as box:
        failing(lambda: ask(session, box.origin))
    for text in told:
        # A foreign redirect keeps the genuine response for who asks for it; nothing prints it.
        assert CANARY not in text


def test_nothing_that_is_represented_holds_a_secret(
    enclave: RunningEnclave, session: requests.Session
) -> None:
    """C-44: repr of every object of ours that took part, and of everything alive that is ours."""
    with everything_said() as said:
        response = ask(session, enclave.origin)
    shown = [said.getvalue(), repr(session), repr(response), repr(response.blindbox), repr(response.raw)]  # type: ignore[attr-defined]
    token = TokenStore().token(enclave.origin)
    for thing in gc.get_objects():
        if str(type(thing).__module__).startswith(("blindbox.", "blindbox_attestation.")) and not isinstance(
            thing, type
        ):
            if type(thing).__name__ in {"RequestHead", "ResponseHead"}:
                continue  # the messages themselves
            shown.append(repr(thing))
    text = "\n".join(shown)
    assert CANARY not in text
    assert token not in text
