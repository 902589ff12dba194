"""What somebody on the wire sees of a call: one constant request, its time, and its padded size."""

from __future__ import annotations

import ssl
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import blindbox.requests as requests
from blindbox_attestation.channel import varint
from tests.kit.enclave import RunningEnclave
from tests.kit.relay import Asked, Relay, Tunnel

CANARY = "canary-7f3a91"


def posts(relay: Relay) -> list[Asked]:
    return [asked for asked in relay.asked if asked.method == "POST"]


def heard_anywhere(relay: Relay, word: str) -> bool:
    """In what went up and in what came back, plainly or in base64."""
    from base64 import b64encode

    bytes_seen = relay.heard + b"".join(passed.body for passed in relay.passed)
    return word.encode() in bytes_seen or b64encode(word.encode())[:-4] in bytes_seen


@pytest.mark.parametrize("verb", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_of_a_call_is_in_the_clear(verb: str, relay: Relay, session: requests.Session) -> None:
    """C-42: canaries in path, query, headers, cookies, authorization, body, type and file name."""
    session.request(
        verb,
        f"{relay.origin}/echo/{CANARY}-path",
        params={CANARY: CANARY},
        headers={
            f"X-{CANARY}": CANARY,
            "User-Agent": CANARY,
            "Content-Language": CANARY,
            "Host": f"{CANARY}.example",
        },
        cookies={CANARY: CANARY},
        auth=(CANARY, CANARY),
        data={CANARY: CANARY},
        files={CANARY: (f"{CANARY}.txt", CANARY, f"text/{CANARY}")},
    )
    assert posts(relay)
    assert not heard_anywhere(relay, CANARY)


def test_the_outer_request_is_always_the_same(relay: Relay, session: requests.Session) -> None:
    """C-42: method, path, header names and their order do not depend on the call; no version is told."""
    for verb, body in (("GET", None), ("DELETE", b"x"), ("POST", b"y" * 5000), ("OPTIONS", None)):
        session.request(verb, relay.origin + "/echo", data=body, headers={"X-More": "1"}, timeout=7)
    shapes = {
        (
            asked.method,
            asked.target,
            tuple((name, value) for name, value in asked.headers if name != "Content-Length"),
        )
        for asked in posts(relay)
    }
    host = relay.origin.removeprefix("http://")
    fixed = (
        ("Host", host),
        ("Accept-Encoding", "identity"),
        ("Content-Type", "message/ohttp-chunked-req"),
        ("Incremental", "?1"),
    )
    assert shapes == {("POST", "/.well-known/ohttp-gateway", fixed)}
    assert [name for name, _ in posts(relay)[0].headers][-1] == "Content-Length"
    session.post(relay.origin + "/echo", data=iter([b"streamed"]))
    assert posts(relay)[-1].headers == (*fixed, ("Transfer-Encoding", "chunked"))


def test_the_request_for_evidence_says_nothing_either(relay: Relay, session: requests.Session) -> None:
    """C-42: its path is fixed, its only parameter is random."""
    session.get(relay.origin + f"/echo/{CANARY}", headers={"X-Canary": CANARY})
    asked = relay.asked[0]
    path, _, nonce = asked.target.partition("?nonce=")
    assert (asked.method, path, len(nonce)) == ("GET", "/.well-known/blindbox/attestation", 43)
    assert [name for name, _ in asked.headers] == ["Host", "Accept-Encoding", "Accept"]


# ── proxies, the environment ──────────────────────────────────────────────────────────────────────────────


def test_a_proxy_from_the_environment_carries_ciphertext(
    enclave: RunningEnclave, session: requests.Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """C-40: HTTP_PROXY is used, .netrc and auth stay inside the seal; the proxy learns the origin."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login {CANARY} password {CANARY}\n")
    netrc.chmod(0o600)
    with Relay(enclave.origin) as proxy:
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setenv("HTTP_PROXY", proxy.origin.replace("//", "//proxyuser:proxypass@"))
        monkeypatch.setenv("http_proxy", proxy.origin.replace("//", "//proxyuser:proxypass@"))
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent/" + CANARY)
        response = session.post(enclave.origin + f"/echo/{CANARY}", json={"input_text": CANARY})
        inside = dict(response.json()["headers"])
        assert inside["authorization"].startswith("Basic ")
        assert "proxy-authorization" not in inside
        assert [asked.target for asked in proxy.asked][-1] == enclave.origin + "/.well-known/ohttp-gateway"
        assert all(asked.header("proxy-authorization") for asked in proxy.asked)
        assert not any(asked.header("authorization") for asked in proxy.asked)
        assert not heard_anywhere(proxy, CANARY)


def test_trust_env_false_uses_neither_proxy_nor_netrc(
    enclave: RunningEnclave, session: requests.Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """C-40."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    session.trust_env = False
    inside = dict(session.get(enclave.origin + "/echo").json()["headers"])
    assert inside["authorization"].startswith("Bearer ")


def test_a_connect_proxy_sees_one_line(
    enclave: RunningEnclave, session: requests.Session, tls: tuple[ssl.SSLContext, str]
) -> None:
    """C-40, C-41: proxies= with https: outer TLS is checked by verify=; what is in it is sealed as ever."""
    context, certificate = tls
    with Relay(enclave.origin, tls=context) as relay, Tunnel() as tunnel:
        with pytest.raises(requests.exceptions.SSLError):
            session.get(relay.origin + "/echo", proxies={"https": tunnel.origin})
        response = session.post(
            relay.origin + f"/echo/{CANARY}",
            auth=(CANARY, CANARY),
            proxies={"https": tunnel.origin},
            verify=certificate,
        )
        assert response.ok
        assert not heard_anywhere(relay, CANARY)
        for told in tunnel.told:
            assert told.startswith(b"CONNECT 127.0.0.1:%d HTTP/1." % relay.port)
            assert CANARY.encode() not in told
            assert b"authorization" not in told.lower()


# ── sizes ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_short_requests_and_answers_have_one_length(relay: Relay, session: requests.Session) -> None:
    """C-43: a histogram of what a prompt's length shows: nothing, within a step."""
    for size in range(0, 400, 13):
        session.post(relay.origin + "/run/sizes", data=b"p" * size, headers={"X-Pad": "h" * (size % 17)})
    assert len(Counter(len(asked.body) for asked in posts(relay))) == 1
    assert len(Counter(len(passed.body) for passed in relay.sealed())) == 1


def test_long_requests_have_few_lengths(relay: Relay, session: requests.Session) -> None:
    """C-43: eight steps from one power of two to the next, whether in memory or streamed."""
    known, streamed = Counter[int](), Counter[int]()
    for size in range(70_000, 130_000, 1_500):
        session.post(relay.origin + "/digest", data=b"p" * size)
        known[len(posts(relay)[-1].body)] += 1
        session.post(relay.origin + "/digest", data=iter([b"p" * (size // 2)] * 2))
        streamed[len(posts(relay)[-1].body)] += 1
    assert len(known) <= 9
    assert len(streamed) <= 9


def test_the_chunks_of_a_streamed_request_do_not_show_its_pieces(
    relay: Relay, session: requests.Session
) -> None:
    """C-43: however a generator is cut, what is sent is the same."""
    data = b"0123456789" * 5000
    shapes = set()
    for step in (1_000, 7_777, 50_000):
        session.post(
            relay.origin + "/digest", data=(data[at : at + step] for at in range(0, len(data), step))
        )
        body = posts(relay)[-1].body
        position, lengths = 7 + 1120, []
        while (found := varint.read(body, position)) is not None and found[0]:
            lengths.append(found[0])
            position = found[1] + found[0]
        shapes.add(tuple(lengths))
    assert len({len(asked.body) for asked in posts(relay)}) == 1
    assert shapes == {(16400,) * len(next(iter(shapes)))}


def test_streamed_tokens_do_not_show_their_lengths(relay: Relay, session: requests.Session) -> None:
    """C-43: every sealed chunk of a streamed answer is a multiple of 2048 bytes."""
    answer = session.get(relay.origin + "/events?n=12&gap=0.06", stream=True)
    assert answer.content.count(b"data") == 12
    body = relay.sealed()[-1].body
    position, lengths = 32, Counter[int]()
    while (found := varint.read(body, position)) is not None and found[0]:
        lengths[found[0] % 2048] += 1
        position = found[1] + found[0]
    assert set(lengths) == {0}


def test_no_encapsulated_key_is_seen_twice(relay: Relay, session: requests.Session, policy: Any) -> None:
    """C-45: each request is sealed to a secret of its own."""
    for _ in range(50):
        session.get(relay.origin + "/echo")
        requests.get(relay.origin + "/echo", policy=policy)
    assert len({asked.body[: 7 + 1120] for asked in posts(relay)}) == len(posts(relay)) == 100
