"""`import blindbox.requests as requests`: what people know, inside the seal."""

from __future__ import annotations

import hashlib
import io
import shutil
import socket
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests as plain

import blindbox.requests as requests
from blindbox import (
    ForeignRedirect,
    InvalidPolicy,
    NoPolicy,
    Proof,
    SealedAdapter,
    SealingError,
    UnsafeSimulatedPolicy,
)
from blindbox.errors import UnboundKey
from enclave_app.gateway import Limits
from tests.kit.enclave import RunningEnclave, running
from tests.kit.relay import Box, Passed, Relay, Reply, http_reply


def headers_of(response: requests.Response) -> dict[str, str]:
    return dict(response.json()["headers"])


def body_of(response: requests.Response) -> bytes:
    return b64decode(response.json()["body"])


# ── the interface ─────────────────────────────────────────────────────────────────────────────────────────


def test_every_public_name_of_requests_is_here() -> None:
    missing = [name for name in plain.__all__ if not hasattr(requests, name)]
    assert not missing
    for name in (
        "adapters",
        "auth",
        "cookies",
        "exceptions",
        "structures",
        "status_codes",
        "models",
        "compat",
    ):
        assert getattr(requests, name) is getattr(plain, name)
    assert requests.Response is plain.Response
    assert requests.exceptions.Timeout is plain.Timeout


def test_submodules_can_be_imported_from() -> None:
    code = (
        "from blindbox.requests.exceptions import Timeout, ConnectionError\n"
        "from blindbox.requests.auth import HTTPBasicAuth\n"
        "import blindbox.requests.adapters\n"
        "from blindbox.requests.sessions import Session\n"
        "import blindbox.requests.api, blindbox.requests as r, requests\n"
        "assert Session is r.Session and r.api.get is r.get and r.sessions.session is r.session\n"
        "assert requests.Session is not r.Session and requests.get is not r.get\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_requests_itself_is_not_patched() -> None:
    assert plain.Session.__module__ == "requests.sessions"
    assert plain.get.__module__ == "requests.api"
    assert not isinstance(plain.Session().get_adapter("http://a"), SealedAdapter)


def test_importing_blindbox_is_quick_and_light() -> None:
    code = (
        "import time; begun = time.process_time(); import blindbox; spent = time.process_time() - begun\n"
        "import sys; assert spent < 3, spent\n"
        "import blindbox.requests\n"
        "heavy = {'torch', 'transformers', 'numpy', 'fastapi', 'uvicorn', 'starlette'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


# ── keywords ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ["get", "options", "post", "put", "patch", "delete"])
def test_every_verb_arrives_as_it_was_said(
    verb: str, enclave: RunningEnclave, session: requests.Session
) -> None:
    response = getattr(session, verb)(enclave.origin + "/echo/a%20b?x=1", params={"y": ["2", "3"]})
    said = response.json()
    assert (said["method"], said["path"], said["query"]) == (verb.upper(), "/echo/a b", "x=1&y=2&y=3")


def test_head_has_headers_and_no_body(enclave: RunningEnclave, session: requests.Session) -> None:
    response = session.head(enclave.origin + "/echo")
    assert response.status_code == 200
    assert response.content == b""


def test_bodies_of_every_kind_arrive(
    enclave: RunningEnclave, session: requests.Session, tmp_path: Path
) -> None:
    url = enclave.origin + "/echo"
    assert session.post(url, json={"a": "ü"}).json()["body"]
    assert body_of(session.post(url, json={"a": "ü"})) == b'{"a": "\\u00fc"}'
    assert body_of(session.post(url, data={"a": ["1", "2"]})) == b"a=1&a=2"
    assert body_of(session.post(url, data="täxt".encode())) == "täxt".encode()
    assert body_of(session.post(url, data=io.BytesIO(b"file-like"))) == b"file-like"
    assert body_of(session.post(url, data=iter([b"one ", b"", b"two"]))) == b"one two"
    multipart = session.post(url, data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", b"{}")})
    assert b'filename="rows.jsonl"' in body_of(multipart)
    assert headers_of(multipart)["content-type"].startswith("multipart/form-data; boundary=")


@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 3_000_000])
def test_files_and_generators_of_any_size_arrive_whole(
    size: int, enclave: RunningEnclave, session: requests.Session, tmp_path: Path
) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    data = data[:size]
    path = tmp_path / "rows"
    path.write_bytes(data)
    told = {"sha256": hashlib.sha256(data).hexdigest(), "size": size}
    with path.open("rb") as file:
        assert session.post(enclave.origin + "/digest", data=file).json() == told
    pieces = (data[at : at + 7001] for at in range(0, size, 7001))
    assert session.post(enclave.origin + "/digest", data=pieces).json() == told
    assert session.post(enclave.origin + "/digest", data=data).json() == told


def test_a_large_body_in_memory_is_sealed_as_it_is_sent(
    enclave: RunningEnclave, session: requests.Session
) -> None:
    data = b"0123456789abcdef" * (10 << 16)
    said = session.post(enclave.origin + "/digest", data=data).json()
    assert said == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def test_headers_auth_and_cookies_travel_inside(enclave: RunningEnclave, session: requests.Session) -> None:
    session.headers["X-Session"] = "s"
    response = session.get(
        enclave.origin + "/echo", headers={"X-Call": "c"}, cookies={"k": "v"}, auth=("user", "secret")
    )
    inside = headers_of(response)
    assert (inside["x-session"], inside["x-call"], inside["cookie"]) == ("s", "c", "k=v")
    assert inside["authorization"] == "Basic dXNlcjpzZWNyZXQ="


def test_cookies_are_kept_by_a_session_and_by_nothing_else(
    enclave: RunningEnclave, session: requests.Session
) -> None:
    response = session.get(enclave.origin + "/cookies/set?flavour=plain")
    assert response.cookies["flavour"] == "plain"
    assert headers_of(session.get(enclave.origin + "/echo"))["cookie"] == "flavour=plain"


def test_module_verbs_share_a_proof_and_connections_but_no_cookies(
    enclave: RunningEnclave, policy: Any
) -> None:
    with Relay(enclave.origin) as relay:
        assert requests.get(relay.origin + "/cookies/set?a=b", policy=policy).cookies["a"] == "b"
        for verb in (
            requests.get,
            requests.post,
            requests.put,
            requests.patch,
            requests.delete,
            requests.options,
        ):
            assert "cookie" not in headers_of(verb(relay.origin + "/echo", policy=policy))
        assert requests.head(relay.origin + "/echo", policy=policy).status_code == 200
        assert requests.request("get", relay.origin + "/echo", policy=policy).ok
        assert relay.proofs() == 1
        assert relay.connections == 1


def test_response_hooks_see_opened_answers(enclave: RunningEnclave, session: requests.Session) -> None:
    seen = []
    session.get(
        enclave.origin + "/status/201",
        hooks={"response": lambda r, *a, **k: seen.append((r.status_code, r.text))},
    )
    assert seen == [(201, "sealed 201")]


def test_digest_authentication_goes_through_the_same_door(
    enclave: RunningEnclave, session: requests.Session
) -> None:
    response = session.get(enclave.origin + "/echo", auth=requests.auth.HTTPDigestAuth("user", "secret"))
    assert response.status_code == 200


def test_content_codings_are_undone_and_none_is_asked_for(
    enclave: RunningEnclave, session: requests.Session
) -> None:
    assert session.get(enclave.origin + "/gzip").content == b"squeezed " * 1000
    streamed = session.get(enclave.origin + "/gzip", stream=True)
    assert b"".join(streamed.iter_content(100)) == b"squeezed " * 1000
    assert headers_of(session.get(enclave.origin + "/echo"))["accept-encoding"] == "identity"


def test_raw_is_decoded_where_the_caller_says_so(enclave: RunningEnclave, session: requests.Session) -> None:
    """`raw.decode_content = True` before `shutil.copyfileobj` is how many save a download."""
    as_sent = session.get(enclave.origin + "/gzip", stream=True).raw
    assert as_sent.read(2) == b"\x1f\x8b"
    raw = session.get(enclave.origin + "/gzip", stream=True).raw
    raw.decode_content = True
    saved = io.BytesIO()
    shutil.copyfileobj(raw, saved)
    assert saved.getvalue() == b"squeezed " * 1000
    assert session.get(enclave.origin + "/gzip").content == b"squeezed " * 1000


@pytest.mark.parametrize("status", [200, 204, 299, 400, 404, 418, 500, 503, 599])
def test_sealed_answers_of_any_status_are_ordinary_responses(
    status: int, enclave: RunningEnclave, session: requests.Session
) -> None:
    response = session.get(enclave.origin + f"/status/{status}")
    assert response.status_code == status
    assert response.ok == (status < 400)


def test_an_answer_larger_than_the_limit_is_refused_unless_streamed(
    enclave: RunningEnclave, policy: Any
) -> None:
    with requests.Session(policy=policy, max_response_bytes=100_000) as session:
        assert len(session.get(enclave.origin + "/big?n=100000").content) == 100_000
        with pytest.raises(requests.ResponseTooLarge, match="stream=True"):
            session.get(enclave.origin + "/big?n=100001")
        streamed = session.get(enclave.origin + "/big?n=300000", stream=True)
        assert sum(map(len, streamed.iter_content(10_000))) == 300_000


# ── streaming ─────────────────────────────────────────────────────────────────────────────────────────────


def test_lines_come_as_the_enclave_makes_them(enclave: RunningEnclave, session: requests.Session) -> None:
    begun = time.monotonic()
    came = []
    with session.get(enclave.origin + "/events?n=4&gap=0.5", stream=True) as response:
        for line in response.iter_lines():
            if line:
                came.append((line, time.monotonic() - begun))
    assert [line for line, _ in came] == [b"data: 0", b"data: 1", b"data: 2", b"data: 3"]
    assert came[-1][1] - came[0][1] > 0.5  # three times that were between them when they were made


def test_raw_reads_like_a_file(enclave: RunningEnclave, session: requests.Session) -> None:
    raw = session.get(enclave.origin + "/big?n=100000", stream=True).raw
    assert raw.read(10) == bytes(10)
    into = bytearray(70_000)
    assert raw.readinto(into) == 70_000
    assert into[65_520:65_530] == bytes(6) + bytes([1]) * 4
    assert len(raw.read()) == 100_000 - 70_010
    assert raw.read() == b""


def test_leaving_a_stream_early_ends_the_connection(enclave: RunningEnclave, policy: Any) -> None:
    with requests.Session(policy=policy) as session:
        with session.get(enclave.origin + "/events?n=1000&gap=0.05", stream=True) as response:
            assert next(response.iter_lines()) == b"data: 0"
        assert session.get(enclave.origin + "/echo").ok


def test_a_callers_timeout_is_kept(enclave: RunningEnclave, session: requests.Session) -> None:
    begun = time.monotonic()
    with pytest.raises(requests.ReadTimeout):
        session.get(enclave.origin + "/slow?s=120", timeout=0.4)
    assert time.monotonic() - begun < 60
    with pytest.raises(ValueError, match="timeout"):
        session.get(enclave.origin + "/echo", timeout=(1, 2, 3))
    assert session.get(enclave.origin + "/slow?s=0.2", timeout=None).text == "at last"


def test_signs_of_life_keep_a_long_computation_going_but_are_no_answer(app: Any, policy: Any) -> None:
    """Our limit between bytes allows for computing; a limit of the caller's is the caller's."""
    with running(app.asgi, limits=Limits(heartbeat_seconds=0.1)) as enclave:
        url = enclave.origin + "/slow?s=3"
        patient = requests.Timeouts(between_bytes=1.5)
        assert requests.get(url, policy=policy, timeout=patient).text == "at last"
        with pytest.raises(requests.ReadTimeout):
            requests.get(url, policy=policy, timeout=0.7)
        with pytest.raises(requests.ReadTimeout):
            requests.get(url, policy=policy, timeout=requests.Timeouts(in_all=0.5))


# ── redirects and other origins ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "to", ["/echo?a=b", "http://AUTHORITY/echo?a=b", "https://AUTHORITY/echo?a=b", "ORIGIN/echo?a=b"]
)
def test_redirects_inside_the_origin_are_followed(
    to: str, enclave: RunningEnclave, session: requests.Session
) -> None:
    """C-38: relative, by the boot id the enclave is called by inside, or by the origin's own name."""
    response = session.get(enclave.origin + "/go", params={"to": to.replace("ORIGIN", enclave.origin)})
    assert response.url == enclave.origin.replace("127.0.0.1", "127.0.0.1") + "/echo?a=b"
    assert [r.status_code for r in response.history] == [302]
    assert response.json()["query"] == "a=b"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "to",
    [
        "http://{trap}/x",
        "//{trap}/x",
        "https://{trap}/x",
        "http://{trap}\\@AUTHORITY/x",
        # One parser ends the host at the backslash; quoted, as requests does later, it is a user name.
        "ORIGIN\\@{trap}/x",
        "http://AUTHORITY\\@{trap}/x",
        "http://[{trap}",
    ],
)
def test_redirects_elsewhere_are_refused(
    status: int, to: str, enclave: RunningEnclave, session: requests.Session
) -> None:
    """C-38: a sealed redirect to another host, of every kind: an error, and not a byte to that host."""
    with Box(lambda asked: http_reply(200, "text/plain", b"trapped")) as trap:
        where = to.replace("{trap}", f"127.0.0.1:{trap.port}").replace("ORIGIN", enclave.origin)
        with pytest.raises((ForeignRedirect, requests.exceptions.InvalidURL)) as caught:
            session.post(enclave.origin + "/go", params={"to": where, "status": status}, data=b"mine")
        assert isinstance(caught.value, requests.RequestException)
        left = session.get(
            enclave.origin + "/go", params={"to": where, "status": status}, allow_redirects=False
        )
        assert left.status_code == status
        assert left.next is None
        assert trap.connections == 0


def test_a_change_of_scheme_is_another_origin(enclave: RunningEnclave, session: requests.Session) -> None:
    """C-38: the same host under https:// has not proved anything yet."""
    with pytest.raises(ForeignRedirect):
        session.get(enclave.origin + "/go", params={"to": enclave.origin.replace("http:", "https:")})


def test_an_empty_location_leads_nowhere(enclave: RunningEnclave, session: requests.Session) -> None:
    """As in `requests`: the redirect itself is the answer, not a way around in circles."""
    response = session.get(enclave.origin + "/go", params={"to": ""})
    assert (response.status_code, response.history, response.next) == (302, [], None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_outside_the_seal_are_never_followed(
    status: int, enclave: RunningEnclave, session: requests.Session
) -> None:
    """C-38: a box answers the sealed call with a redirect; its target is never contacted."""
    with Relay(enclave.origin) as relay, Box(lambda asked: http_reply(200, "text/plain", b"trapped")) as trap:
        relay.before = lambda asked: (
            http_reply(status, "text/html", b"", more=f"Location: {trap.origin}/\r\n")
            if asked.method == "POST"
            else None
        )
        with pytest.raises(requests.UnsealedAnswer):
            session.get(relay.origin + "/echo")
        assert trap.connections == 0


def test_an_absolute_url_elsewhere_gets_not_a_byte(enclave: RunningEnclave, policy: Any) -> None:
    """C-39: a session bound to an origin, asked for another host that has no policy of its own."""
    with Box(lambda asked: http_reply(200, "text/plain", b"trapped")) as trap:
        with requests.Session(policy=policy, origin=enclave.origin) as session:
            assert session.get(enclave.origin + "/echo").ok
            with pytest.raises(NoPolicy):
                session.post(trap.origin + "/echo", json={"input_text": "mine"})
        with requests.SecureSession(enclave.origin, policy=policy) as secure:
            assert secure.post("/echo", json={}).ok
            with pytest.raises(NoPolicy):
                secure.post(trap.origin + "/echo", json={"input_text": "mine"})
        assert trap.connections == 0


def test_a_user_name_in_the_url_cannot_change_where_it_goes(
    enclave: RunningEnclave, session: requests.Session
) -> None:
    """C-39: what stands before the @ is for the application inside, as in `requests`."""
    response = session.get(enclave.origin.replace("//", "//user:secret@") + "/echo")
    assert headers_of(response)["authorization"] == "Basic dXNlcjpzZWNyZXQ="


# ── what cannot turn attestation off ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def liar(enclave: RunningEnclave) -> Iterator[Relay]:
    """A box that serves evidence about another key."""

    def lie(passed: Passed) -> Reply | None:
        return passed.reply(
            passed.body.replace(b'"boot_id":"', b'"boot_id":"AAAA').replace(
                b'"boot_id": "', b'"boot_id": "AAAA'
            )
        )

    with Relay(enclave.origin, change=lie) as one:
        yield one


@pytest.mark.parametrize(
    "keywords", [{"verify": False}, {"verify": "/nonexistent"}, {"cert": None}, {"proxies": {}}]
)
def test_verify_and_cert_speak_only_of_outer_tls(
    keywords: dict[str, Any], liar: Relay, session: requests.Session
) -> None:
    """C-41: with verify=False a machine must prove itself as ever."""
    session.verify = False
    with pytest.raises(requests.AttestationError):
        session.post(liar.origin + "/echo", data=b"mine", **keywords)
    assert not liar.sealed()


@pytest.mark.parametrize(
    "prefix", ["http://", "https://", "http://127.0.0.1", "HTTP://x", "http", "h", "", "https://a/b"]
)
def test_mounting_another_adapter_over_http_raises(prefix: str, session: requests.Session) -> None:
    """C-41: nor can one be slipped in beneath."""
    with pytest.raises(SealingError, match="unsealed"):
        session.mount(prefix, plain.adapters.HTTPAdapter())
    session.adapters["http://127.0.0.1"] = plain.adapters.HTTPAdapter()
    session.adapters.move_to_end("http://127.0.0.1", last=False)  # type: ignore[attr-defined]
    with pytest.raises(SealingError, match="unsealed"):
        session.get("http://127.0.0.1/")


def test_other_schemes_and_sealed_adapters_can_be_mounted(session: requests.Session, policy: Any) -> None:
    session.mount("mock://", plain.adapters.HTTPAdapter())
    mine = SealedAdapter(policy, max_retries=2)
    session.mount("http://", mine)
    assert session.get_adapter("http://a") is mine


def test_leaving_a_session_closes_each_adapter_once(policy: Any) -> None:
    """As in `requests`, although the one door is mounted for http:// and for https://."""

    class Counting(SealedAdapter):
        closed = 0

        def close(self) -> None:
            self.closed += 1
            super().close()

    mine, own = Counting(policy), Counting(policy)
    with requests.Session(policy) as session:
        session.mount("http://", mine)
        session.mount("https://", mine)
    with requests.Session(adapter=own):
        pass
    assert (mine.closed, own.closed) == (1, 0)  # whoever brings an adapter closes it, unless it was mounted


def test_a_malformed_outer_head_is_the_invalid_header_of_requests(session: requests.Session) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\nContent-Length: 32\r\n\r\n"
    with Box(lambda asked: Reply([head])) as box, pytest.raises(requests.exceptions.InvalidHeader):
        session.get(box.origin + "/")


def test_a_hook_or_a_prepared_request_opens_no_way_around(liar: Relay, session: requests.Session) -> None:
    """C-41: `send` of a prepared request, and every hook, come after the proof."""
    called = []
    session.hooks["response"].append(lambda r, *a, **k: called.append(r))
    prepared = session.prepare_request(requests.Request("POST", liar.origin + "/echo", data=b"mine"))
    with pytest.raises(requests.AttestationError):
        session.send(prepared, verify=False)
    assert not called
    assert not liar.sealed()


def test_the_lie_is_a_lie(liar: Relay, session: requests.Session) -> None:
    with pytest.raises((UnboundKey, requests.AttestationError)):
        session.get(liar.origin + "/echo")


# ── what an answer tells about its machine ────────────────────────────────────────────────────────────────


def test_every_response_tells_who_answered_and_that_it_is_simulated(
    enclave: RunningEnclave, session: requests.Session
) -> None:
    response = session.get(enclave.origin + "/go?to=/echo")
    for one in (response, *response.history):
        proof = one.blindbox  # type: ignore[attr-defined]
        assert isinstance(proof, Proof)
        assert proof.simulated
        assert proof.platform == "simulated"
        assert proof.origin == enclave.origin
        assert len(proof.measurement) == 96
        assert proof.verified_at < proof.not_after
        assert "SIMULATED" in repr(proof)
        assert proof.measurement in repr(proof)
        with pytest.raises(AttributeError):
            proof.simulated = False
    assert "SIMULATED" in repr(session)


def test_a_session_that_takes_simulated_evidence_warns() -> None:
    from blindbox import UnsafeSimulatedPolicy, UnsafeSimulationWarning

    with pytest.warns(UnsafeSimulationWarning):
        policy = UnsafeSimulatedPolicy()
    with pytest.warns(UnsafeSimulationWarning):
        requests.Session(policy=policy)


@pytest.mark.parametrize("wrong", [{"version": 1}, UnsafeSimulatedPolicy, b"{}"])
def test_a_policy_of_the_wrong_type_is_told_kindly(wrong: Any) -> None:
    with pytest.raises(InvalidPolicy, match="policy= is"):
        requests.get("http://127.0.0.1:9/", policy=wrong)


def test_a_given_timeout_bounds_the_proof_too(policy: Any) -> None:
    """C-48: a machine that accepts the connection and never proves itself is not waited for."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(requests.exceptions.Timeout):
            requests.get(f"http://127.0.0.1:{silent.getsockname()[1]}/", policy=policy, timeout=0.5)
        assert time.monotonic() - began < 60
