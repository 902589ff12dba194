"""
How the enclave asks in a Nitro Enclave and in Confidential Space, and the bounded question to such services.
The module answers through the caller's memory, the launcher on a real socket.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blindbox_attestation import cbor
from blindbox_attestation.binding import Bound
from enclave_app.quoting import QuoteUnavailable, find_quoter
from enclave_app.quoting.gcp import ConfidentialSpaceQuoter
from enclave_app.quoting.local_http import ask
from enclave_app.quoting.nitro import NitroQuoter, NsmDevice, read_document
from tests.kit.local_service import Answer, Asked, local_service
from tests.kit.machine import bare_machine
from tests.kit.nsm import FakeNsm

BOUND = Bound(digest=bytes(range(48)), nonce=b"n" * 32, key_config=b"keys")
CACHED = Bound(digest=bytes(48), nonce=b"", key_config=b"keys")
KEYS = hashlib.sha384(b"keys").digest()
TOKEN = ("POST", "/v1/token")


# --- Nitro ---


def joined(user_data: bytes | None, nonce: bytes | None, public_key: bytes | None) -> bytes:
    return b"document" + b"|".join(value or b"-" for value in (user_data, nonce, public_key)) + bytes(4000)


@pytest.fixture
def nsm(monkeypatch: pytest.MonkeyPatch) -> FakeNsm:
    module = FakeNsm(joined)
    module.behind_the_ioctl(monkeypatch)
    return module


def test_a_document_carries_the_binding_the_nonce_and_the_keys(nsm: FakeNsm, tmp_path: Path) -> None:
    device = tmp_path / "nsm"
    device.touch()
    quoter = find_quoter("auto", machine=bare_machine(nsm=device))
    assert quoter.platform == "nitro"
    assert quoter.quote(BOUND).evidence == joined(BOUND.digest, BOUND.nonce, KEYS)
    assert quoter.quote(CACHED).evidence == joined(CACHED.digest, None, KEYS)
    assert nsm.asked == [
        {"user_data": BOUND.digest, "nonce": BOUND.nonce, "public_key": KEYS},
        {"user_data": CACHED.digest, "nonce": None, "public_key": KEYS},
    ]


def test_the_question_is_the_one_that_the_module_knows() -> None:
    """Byte for byte, as serde_cbor writes Request::Attestation of aws-nitro-enclaves-nsm-api."""
    heard: list[bytes] = []

    class Listening:
        def __init__(self, _: Path) -> None:
            pass

        def ask(self, request: bytes) -> bytes:
            heard.append(request)
            return cbor.encode({"Attestation": {"document": b"d"}})

    NitroQuoter(open_module=Listening).quote(CACHED)
    assert heard == [
        bytes.fromhex("a1") + b"\x6bAttestation" + bytes.fromhex("a3")
        + b"\x69user_data" + bytes.fromhex("5830") + bytes(48)
        + b"\x65nonce" + bytes.fromhex("f6")
        + b"\x6apublic_key" + bytes.fromhex("5830") + KEYS
    ]  # fmt: skip


def test_a_device_that_is_no_security_module_is_told() -> None:
    quoter = NitroQuoter(Path("/dev/null"))
    quoter.check()
    with pytest.raises(QuoteUnavailable, match="Inappropriate ioctl"):
        quoter.quote(BOUND)
    with pytest.raises(QuoteUnavailable, match="No such file"):
        NitroQuoter(Path("/nonexistent")).quote(BOUND)


def test_a_module_that_says_it_wrote_more_than_there_is_room_is_not_believed(
    nsm: FakeNsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(_: object, __: int, raw: bytearray) -> int:
        raw[24:32] = (0x3001).to_bytes(8, "little")
        return 0

    monkeypatch.setattr(fcntl, "ioctl", lying)
    with pytest.raises(OSError, match="12289"):
        NsmDevice(Path("/dev/null")).ask(b"")


def test_an_error_of_the_module_is_told(nsm: FakeNsm) -> None:
    nsm.error = "InputTooLarge"
    with pytest.raises(QuoteUnavailable, match="InputTooLarge"):
        NitroQuoter(Path("/dev/null")).quote(BOUND)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xa1",
        cbor.encode({"Attestation": {"document": "a text"}}),
        cbor.encode({"Attestation": b"document"}),
        cbor.encode({"DescribeNSM": {}}),
        cbor.encode({"Attestation": {"document": b"d"}}) + b"\x00",
        cbor.encode({"Attestation": {"document": b"d"}})[:-1],
    ],
)
def test_an_answer_without_a_document_is_refused(answer: bytes) -> None:
    with pytest.raises(QuoteUnavailable, match="security module"):
        read_document(answer)


# --- Confidential Space ---


def test_a_token_is_asked_for_our_audience_with_the_binding_as_its_nonce(tmp_path: Path) -> None:
    path = tmp_path / "teeserver.sock"
    with local_service({TOKEN: lambda _: b"header.claims.signature\n"}, socket=path) as launcher:
        quoter = find_quoter("auto", audience="https://box.example", machine=bare_machine(launcher=path))
        assert quoter.platform == "gcp-confidential-space"
        assert quoter.quote(BOUND).evidence == b"header.claims.signature"
    (asked,) = launcher.asked
    assert json.loads(asked.body) == {
        "audience": "https://box.example",
        "token_type": "PKI",
        "nonces": [base64.urlsafe_b64encode(BOUND.digest).decode()],
    }
    assert asked.headers["content-type"] == "application/json"
    assert 10 <= len(json.loads(asked.body)["nonces"][0]) <= 74


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: b"no token", "no token"),
        (lambda _: b"a.b.c" * 10_000, "more than 32768"),
        (lambda _: (400, b"bad audience"), "400: b'bad audience'"),
    ],
)
def test_an_answer_of_the_launcher_that_is_no_token_is_refused(
    tmp_path: Path, answer: Answer, said: str
) -> None:
    path = tmp_path / "teeserver.sock"
    quoter = ConfidentialSpaceQuoter("blindbox", path)
    with local_service({TOKEN: answer}, socket=path), pytest.raises(QuoteUnavailable, match=said):
        quoter.quote(BOUND)
    with pytest.raises(QuoteUnavailable, match="Connection refused"):
        quoter.quote(BOUND)


def test_a_file_where_the_launchers_socket_should_be_is_no_launcher(tmp_path: Path) -> None:
    (tmp_path / "teeserver.sock").touch()
    with pytest.raises(QuoteUnavailable, match="no launcher"):
        find_quoter("auto", machine=bare_machine(launcher=tmp_path / "teeserver.sock"))


# --- the question itself ---


@contextlib.contextmanager
def saying(*pieces: bytes, gap: float = 0.0) -> Iterator[str]:
    """A service that says these bytes, whatever it is asked, with a pause before each."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                for piece in pieces:
                    time.sleep(gap)
                    connection.sendall(piece)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
        thread.join(60)


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([HEAD + b"content-length: 5\r\n\r\nabc"], "IncompleteRead|cut"),
        ([HEAD + b"content-length: 101\r\n\r\n" + bytes(101)], "more than 100"),
        ([HEAD + b"\r\n" + bytes(101)], "more than 100"),
        ([b"HTTP/1.1 301 Moved\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n"], "301"),
        ([b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n"], "more than 100"),
        ([b"SSH-2.0-x\r\n"], "SSH"),
        ([], "127"),
    ],
)
def test_an_answer_is_whole_small_and_a_200_or_refused(pieces: list[bytes], said: str) -> None:
    with saying(*pieces) as service, pytest.raises(QuoteUnavailable, match=said):
        ask(service, "GET", "/", seconds=60, most=100)


@pytest.mark.parametrize("start", [b"", HEAD, HEAD + b"content-length: 100\r\n\r\n", HEAD + b"\r\n"])
def test_a_service_that_drips_is_not_waited_for_longer_than_was_said(start: bytes) -> None:
    """In its head, in its body, with and without a length: each byte comes in time, all of them do not."""
    with saying(start, *[b"a"] * 1000, gap=0.1) as service:
        began = time.monotonic()
        with pytest.raises(QuoteUnavailable):
            ask(service, "GET", "/", seconds=0.5)
        assert time.monotonic() - began < 40  # and not the hundred that it goes on dripping


def test_no_proxy_is_used_and_only_what_is_needed_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    asked: list[Asked] = []
    before = set(threading.enumerate())

    def answer(one: Asked) -> bytes:
        asked.append(one)
        return b"here"

    with local_service({("GET", "/x"): answer}) as service:
        assert ask(str(service.address), "GET", "/x", most=4) == b"here"
    begun = set(threading.enumerate()) - before
    assert all(one.finished.is_set() for one in begun if isinstance(one, threading.Timer))
    assert set(asked[0].headers) == {"host", "accept-encoding"}
