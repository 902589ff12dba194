"""`blindbox.uploading` against the whole enclave: files of every size, over lines that break."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from blindbox import AttestationError, uploading
from blindbox.api import Api
from blindbox.errors import Refused
from blindbox.uploading import Form, upload
from tests.kit.app import whole_app
from tests.kit.enclave import RunningEnclave
from tests.kit.peak import Peak
from tests.kit.relay import Asked, Passed, Relay, Reply, http_reply
from tests.kit.simulated import unsafe

PIECE = 64 << 10


def rows(size: int, name: str = "x") -> bytes:
    line = f'{{"text": "{name * 100}"}}\n'.encode()
    return (line * (size // len(line) + 1))[:size]


def distinct(parts: int) -> bytes:
    """So many parts, each of which has other contents."""
    return b"".join(rows(PIECE, f"part {number}") for number in range(parts))


@pytest.fixture
def enclave() -> Iterator[RunningEnclave]:
    with whole_app(max_upload_bytes=64 << 20) as one:
        yield one


def api_of(origin: str) -> Api:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Api(origin, unsafe(), sleep=lambda _: None)


@pytest.fixture
def api(enclave: RunningEnclave) -> Iterator[Api]:
    one = api_of(enclave.origin)
    yield one
    one.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which a test is quick."""
    monkeypatch.setattr(uploading, "WHOLE", PIECE)
    monkeypatch.setattr(uploading, "PART", PIECE)


def content(api: Api, name: str) -> bytes:
    return bytes(api.open("GET", f"/v1/files/{name}/content").content)


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 5 * PIECE + 7])
@pytest.mark.usefixtures("small")
def test_a_file_arrives_whole_in_one_call_or_in_parts(api: Api, size: int) -> None:
    data = rows(size)
    seen: list[tuple[int, int]] = []
    name = upload(api, io.BytesIO(data), "Zürich „rows“.jsonl", on_progress=lambda *at: seen.append(at))
    told = api.ask("GET", f"/v1/files/{name}")
    assert (told["bytes"], told["sha256"]) == (size, hashlib.sha256(data).hexdigest())
    assert told["filename"] == "Zürich „rows“.jsonl"
    assert content(api, name) == data
    assert seen[-1] == (size, size)
    assert [at for at, _ in seen] == sorted(at for at, _ in seen)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [PIECE, 2 * PIECE])
def test_purpose_and_end_are_passed_on(api: Api, size: int) -> None:
    name = upload(api, io.BytesIO(rows(size)), "r.jsonl", purpose="evals", expires_after=7200)
    told = api.ask("GET", f"/v1/files/{name}")
    assert (told["purpose"], told["expires_at"] - told["created_at"]) == ("evals", 7200)


def broken(passed: Passed) -> Reply:
    """The enclave did it, and its answer is lost."""
    return Reply([])


def busy(passed: Passed) -> Reply:
    return http_reply(503, "text/plain", b"busy")


class Breaking:
    """Loses the answers to sealed calls of these numbers; or the calls themselves."""

    def __init__(self, relay: Relay, numbers: set[int], how: Callable[[Passed], Reply] | None) -> None:
        self.count = 0
        self.broke = 0
        self._numbers = numbers
        self._how = how
        if how is None:
            relay.before = self.before
        else:
            relay.change = self.change

    def _now(self, asked: Asked) -> bool:
        if asked.method != "POST":
            return False
        self.count += 1
        self.broke += self.count in self._numbers
        return self.count in self._numbers

    def before(self, asked: Asked) -> Reply | None:
        return Reply([]) if self._now(asked) else None

    def change(self, passed: Passed) -> Reply | None:
        assert self._how is not None
        return self._how(passed) if self._now(passed.asked) else None


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("how", [None, broken, busy])
@pytest.mark.parametrize("parts", [1, 4])
def test_a_line_that_breaks_at_every_third_call_makes_one_file(
    enclave: RunningEnclave, parts: int, how: Callable[[Passed], Reply] | None
) -> None:
    """C-34: whether the call was lost or only its answer: what is there is asked, and not sent again."""
    data = distinct(parts)
    with Relay(enclave.origin) as relay:
        api = api_of(relay.origin)
        api.ask("GET", "/v1/files")  # the machine has proved itself
        breaking = Breaking(relay, set(range(1, 60, 3)), how)
        name = upload(api, io.BytesIO(data), "r.jsonl")
        relay.before = relay.change = None
        assert breaking.broke >= parts
        assert content(api, name) == data
        assert len(api.ask("GET", "/v1/files")["data"]) == 1
        api.close()


@pytest.mark.usefixtures("small")
def test_a_program_that_was_stopped_goes_on_where_it_was(enclave: RunningEnclave) -> None:
    data = distinct(6)
    with Relay(enclave.origin) as relay:
        api = api_of(relay.origin)

        def stop(sent: int, _: int) -> None:
            if sent >= 4 * PIECE:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            upload(api, io.BytesIO(data), "r.jsonl", on_progress=stop)
        api.close()
        (begun,) = api_of(relay.origin).ask("GET", "/v1/uploads")["data"]
        there = api_of(relay.origin).ask("GET", f"/v1/uploads/{begun['id']}")["parts"]
        assert len(there) in (3, 4)
        before = sum(len(asked.body) for asked in relay.asked)
        later = api_of(relay.origin)
        name = upload(later, io.BytesIO(data), "r.jsonl")
        sent = sum(len(asked.body) for asked in relay.asked) - before
        assert content(later, name) == data
        assert sent < (6 - len(there) + 1) * 1.25 * PIECE + 20_000
        assert [each["id"] for each in later.ask("GET", "/v1/uploads")["data"]] == [begun["id"]]


@pytest.mark.usefixtures("small")
def test_an_upload_that_was_cancelled_meanwhile_is_begun_again(api: Api) -> None:
    data = distinct(4)
    cancelled: list[str] = []

    def cancel(sent: int, _: int) -> None:
        if sent == 2 * PIECE and not cancelled:
            for one in api.ask("GET", "/v1/uploads")["data"]:
                cancelled.append(one["id"])
                api.ask("POST", f"/v1/uploads/{one['id']}/cancel")

    name = upload(api, io.BytesIO(data), "r.jsonl", on_progress=cancel)
    assert len(cancelled) == 1
    assert content(api, name) == data


@pytest.mark.usefixtures("small")
def test_a_part_that_the_disk_spoiled_is_sent_again(api: Api, enclave: RunningEnclave) -> None:
    data = distinct(3)
    spoiled: list[Path] = []

    def spoil(sent: int, _: int) -> None:
        if sent == 3 * PIECE and not spoiled:
            for path in enclave.app._rooms.store.root.rglob("part-*"):  # type: ignore[attr-defined]
                data = path.read_bytes()
                path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
                spoiled.append(path)

    name = upload(api, io.BytesIO(data), "r.jsonl", on_progress=spoil)
    assert spoiled
    assert content(api, name) == data


@pytest.mark.usefixtures("small")
def test_a_refusal_is_told_in_the_enclaves_words_and_at_once(api: Api) -> None:
    for data, code in (
        (b"PK\x03\x04" + bytes(100), "invalid_file_format"),
        (b"PK\x03\x04" + bytes(3 * PIECE), ""),
    ):
        with pytest.raises(Refused) as told:
            upload(api, io.BytesIO(data), "r.zip")
        assert told.value.status == 400
        assert told.value.code == (code or "invalid_file_format")
    with pytest.raises(Refused) as told:
        upload(api, io.BytesIO(rows(PIECE)), "r.jsonl", purpose="fun")
    assert told.value.param == "purpose"
    assert api.ask("GET", "/v1/files")["data"] == []


def test_a_file_that_is_too_large_is_refused_before_it_is_sent() -> None:
    with whole_app(max_upload_bytes=1 << 20) as enclave, Relay(enclave.origin) as relay:
        api = api_of(relay.origin)
        with pytest.raises(Refused) as told:
            upload(api, io.BytesIO(rows(33 << 20)), "r.jsonl")
        assert (told.value.status, told.value.code) == (413, "file_too_large")
        assert len(relay.heard) < 1 << 20


def test_the_largest_file_there_may_be_comes_through_the_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding and sealing add up to an eighth, which is not the file's; a byte more is one too many."""
    monkeypatch.setattr(uploading, "WHOLE", 1 << 30)
    with whole_app(max_upload_bytes=20 << 20) as enclave:
        api = api_of(enclave.origin)
        name = upload(api, io.BytesIO(rows(20 << 20)), "r.jsonl")
        assert api.ask("GET", f"/v1/files/{name}")["bytes"] == 20 << 20
        with pytest.raises(Refused) as told:
            upload(api, io.BytesIO(rows((20 << 20) + 1)), "r.jsonl")
        assert told.value.code == "file_too_large"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("parts", [1, 3])
def test_a_file_that_changes_while_it_is_sent_is_not_taken_for_what_it_was(api: Api, parts: int) -> None:
    class Changing(io.BytesIO):
        """Once measured, its first bytes are others."""

        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            data = super().read(size)
            return data.replace(b"part 0", b"part 9") if self.reads > 2 else data

    with pytest.raises(Refused) as told:
        upload(api, Changing(distinct(parts)), "r.jsonl")
    assert told.value.code == "digest_mismatch"


@pytest.mark.usefixtures("small")
def test_a_machine_that_does_not_prove_itself_gets_nothing_and_is_asked_once(enclave: RunningEnclave) -> None:
    """C-34: a proof that fails is no hiccup."""
    with Relay(enclave.origin) as relay:
        relay.before = lambda _: http_reply(404, "text/plain", b"")
        for data in (rows(PIECE), distinct(3)):
            asked = len(relay.asked)
            with pytest.raises(AttestationError):
                upload(api_of(relay.origin), io.BytesIO(data), "r.jsonl")
            assert len(relay.asked) == asked + 1
        assert b"part 0" not in relay.heard


def test_a_network_that_stays_away_is_told_in_the_end(enclave: RunningEnclave) -> None:
    with Relay(enclave.origin) as relay:
        api = api_of(relay.origin)
        api.ask("GET", "/v1/files")
        relay.before = lambda _: Reply([])
        with pytest.raises(requests.ConnectionError):
            upload(api, io.BytesIO(rows(1000)), "r.jsonl")


def test_a_form_reads_alike_in_one_piece_in_many_and_again() -> None:
    """And what stands in names breaks out of no field."""
    file = io.BytesIO(b"0123456789" * 100)
    seen: list[int] = []
    form = Form({"a": "1"}, "file", 'x"\r\ny: z', file, 10, 500, seen.append)
    whole = form.read()
    assert len(whole) == len(form)
    assert whole.count(b"\r\n--") == 2
    assert b'filename="x%22%0D%0Ay: z"' in whole
    assert (b"0123456789" * 100)[10:510] in whole
    assert seen[-1] == 510
    for step in (1, 7, 100):
        form.seek(0)
        assert b"".join(iter(lambda: form.read(step), b"")) == whole  # noqa: B023
    assert form.seek(-5, os.SEEK_END) == len(form) - 5
    assert form.read() == whole[-5:]
    short = Form({}, "file", "x", io.BytesIO(b"1"), 0, 5, seen.append)
    with pytest.raises(OSError, match="became shorter"):
        short.read()


def growth(tmp_path: Path, size: int) -> int:
    """How much the memory of client and enclave, which share this process, grows at most."""
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as made:
        for number in range(0, size, 1 << 20):
            made.write(rows(1 << 20, f"{number}"))
    with whole_app() as enclave:
        api = api_of(enclave.origin)
        upload(api, io.BytesIO(rows(1 << 20)), "first.jsonl")
        with Peak() as peak, open(path, "rb") as file:
            name = upload(api, file, "rows.jsonl")
        assert api.ask("GET", f"/v1/files/{name}")["bytes"] == path.stat().st_size
        api.close()
    return peak.growth


@pytest.mark.parametrize("way", ["whole", "parts"])
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(uploading, "WHOLE", (1 << 30) if way == "whole" else 0)
    assert growth(tmp_path, 24 << 20) < 16 << 20


@pytest.mark.slow
@pytest.mark.parametrize("way", ["whole", "parts"])
def test_memory_does_not_grow_with_a_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """200 MiB through the seal, in one call and in parts."""
    monkeypatch.setattr(uploading, "WHOLE", (1 << 30) if way == "whole" else 0)
    assert growth(tmp_path, 200 << 20) < 32 << 20


def test_what_is_sent_is_sealed(enclave: RunningEnclave, monkeypatch: pytest.MonkeyPatch) -> None:
    """C-46: names, digests and rows, in one call and in parts: none of it is on the wire."""
    with Relay(enclave.origin) as relay:
        api = api_of(relay.origin)
        data = rows(3 * PIECE, "lantern")
        for whole in (1 << 30, PIECE):
            monkeypatch.setattr(uploading, "WHOLE", whole)
            monkeypatch.setattr(uploading, "PART", PIECE)
            upload(api, io.BytesIO(data), "lantern.jsonl")
        heard = relay.heard
        told: list[Any] = [b"lantern", b"fine-tune", b"form-data", hashlib.sha256(data).hexdigest().encode()]
        assert not [each for each in told if each in heard]
        api.close()
