"""`/v1/uploads`: files in parts. Whole or not there, gone on with after a break, readable nowhere."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from enclave_app.api import Rooms, files, uploads
from enclave_app.api.uploads import Record
from enclave_app.jobs import FILES
from enclave_app.tenants import Tenant
from tests.kit.rooms import BOB, client_of, error_of, rooms_in

ROWS = b"".join(b'{"prompt": "question %05d", "completion": "answer"}\n' % n for n in range(2000))
THIRDS = [ROWS[:30_000], ROWS[30_000:61_000], ROWS[61_000:]]
TENANT = Tenant.of("alice-alice-alice-alice")
HOUR = 3600


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    return rooms_in(tmp_path / "data", max_upload_bytes=1 << 20)


def begin(client: Any, size: int = len(ROWS), **more: Any) -> str:
    wish = {"bytes": size, "filename": "rows.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    response = client.post("/v1/uploads", json=wish | more)
    assert response.status_code == 200, response.text
    identity: str = response.json()["id"]
    return identity


def send(client: Any, upload: str, data: bytes, sha256: str | None = None) -> Any:
    fields = {} if sha256 is None else {"sha256": sha256}
    return client.post(f"/v1/uploads/{upload}/parts", files={"data": data}, data=fields)


def send_all(client: Any, upload: str, parts: list[bytes] = THIRDS) -> list[str]:
    return [send(client, upload, data, hashlib.sha256(data).hexdigest()).json()["id"] for data in parts]


def complete(client: Any, upload: str, ids: list[str], **more: Any) -> Any:
    return client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": ids, **more})


def kept(rooms: Rooms) -> set[str]:
    """What lies on the disk, by kind and name."""
    return {f"{path.parent.name}/{path.name}" for path in rooms.store.root.rglob("*") if path.is_file()}


def test_parts_become_the_file(rooms: Rooms, client: TestClient) -> None:
    upload = begin(client)
    told = client.get(f"/v1/uploads/{upload}").json()
    assert (told["object"], told["status"], told["bytes"], told["parts"]) == (
        "upload",
        "pending",
        len(ROWS),
        [],
    )
    assert told["expires_at"] - told["created_at"] == HOUR
    ids = send_all(client, upload)
    parts = client.get(f"/v1/uploads/{upload}").json()["parts"]
    assert [(part["id"], part["bytes"]) for part in parts] == [
        (one, len(data)) for one, data in zip(ids, THIRDS, strict=True)
    ]
    assert parts[0]["sha256"] == hashlib.sha256(THIRDS[0]).hexdigest()
    assert parts[0]["upload_id"] == upload
    done = complete(
        client,
        upload,
        ids,
        md5=hashlib.md5(ROWS).hexdigest(),
        sha256=hashlib.sha256(ROWS).hexdigest().upper(),
    ).json()
    assert done["status"] == "completed"
    file = done["file"]
    assert (file["bytes"], file["sha256"]) == (len(ROWS), hashlib.sha256(ROWS).hexdigest())
    assert client.get(f"/v1/files/{file['id']}/content").content == ROWS
    assert client.get("/v1/files").json()["data"] == [file]
    assert kept(rooms) == {f"files/{file['id']}", f"file-descriptions/{file['id']}", f"uploads/{upload}"}
    assert client.get(f"/v1/uploads/{upload}").json() == done | {"parts": []}


def test_their_order_is_that_of_completing_and_one_may_be_there_twice(client: TestClient) -> None:
    line = ROWS[: ROWS.index(b"\n") + 1]
    upload = begin(client, 2 * len(line) + len(THIRDS[2]))
    last, first = send_all(client, upload, [THIRDS[2], line])
    file = complete(client, upload, [first, first, last]).json()["file"]
    assert client.get(f"/v1/files/{file['id']}/content").content == line + line + THIRDS[2]


def test_the_same_part_sent_again_is_the_same_part(rooms: Rooms, client: TestClient) -> None:
    upload = begin(client)
    first = send(client, upload, THIRDS[0]).json()
    assert send(client, upload, THIRDS[0]).json() == first
    assert len(client.get(f"/v1/uploads/{upload}").json()["parts"]) == 1
    assert len([name for name in kept(rooms) if name.startswith("upload-parts/")]) == 1


def test_completing_again_tells_the_same_file(client: TestClient) -> None:
    upload = begin(client)
    ids = send_all(client, upload)
    first = complete(client, upload, ids).json()
    assert complete(client, upload, ids).json() == first
    assert len(client.get("/v1/files").json()["data"]) == 1
    client.delete(f"/v1/files/{first['file']['id']}")
    assert complete(client, upload, ids).json()["file"] is None


def test_a_crash_before_the_record_says_so_makes_no_second_file(
    rooms: Rooms, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-27: the file is there, and the upload still says pending: completing once more puts it right."""
    upload = begin(client)
    ids = send_all(client, upload)
    real = uploads._ended

    def crash(*_: Any) -> Any:
        raise SystemError("as if killed")

    monkeypatch.setattr(uploads, "_ended", crash)
    assert complete(client, upload, ids).status_code == 500
    monkeypatch.setattr(uploads, "_ended", real)
    assert client.get(f"/v1/uploads/{upload}").json()["status"] == "pending"
    (there,) = client.get("/v1/files").json()["data"]
    done = complete(client, upload, ids).json()
    assert done["file"]["id"] == there["id"]
    assert len(client.get("/v1/files").json()["data"]) == 1


def test_what_does_not_fit_is_refused_and_the_upload_goes_on(rooms: Rooms, client: TestClient) -> None:
    upload = begin(client)
    ids = send_all(client, upload)
    before = kept(rooms)
    theirs = begin(client)
    foreign = send(client, theirs, b"{}").json()["id"]
    for named, more, code, param in (
        (ids[:2], {}, "size_mismatch", "part_ids"),
        ([ids[1], ids[0], ids[2]], {"sha256": hashlib.sha256(ROWS).hexdigest()}, "digest_mismatch", "sha256"),
        (ids, {"md5": "0" * 32}, "digest_mismatch", "md5"),
        ([*ids, foreign], {}, "part_not_found", "part_ids"),
        ([*ids, "../../part"], {}, "part_not_found", "part_ids"),
        ([], {}, "invalid_value", "part_ids"),
        (ids, {"md5": "zz"}, "invalid_value", "md5"),
        (ids, {"part": 1}, "unknown_field", "part"),
    ):
        error_of(complete(client, upload, named, **more), 400, code, param)
    client.post(f"/v1/uploads/{theirs}/cancel")
    assert kept(rooms) == before | {f"uploads/{theirs}"}
    assert complete(client, upload, ids).status_code == 200


def test_a_part_that_is_not_what_its_digest_says_is_not_kept(rooms: Rooms, client: TestClient) -> None:
    upload = begin(client)
    for data, digest, code, param in (
        (b"altered", hashlib.sha256(b"sent").hexdigest(), "digest_mismatch", "sha256"),
        (b"sent", "abc", "invalid_value", "sha256"),
        (b"", hashlib.sha256(b"").hexdigest(), "invalid_value", "data"),
    ):
        error_of(send(client, upload, data, digest), 400, code, param)
    wrong: dict[str, Any] = {"files": {"date": b"x"}}
    assert 'mean "data"' in error_of(
        client.post(f"/v1/uploads/{upload}/parts", **wrong), 400, "unknown_field"
    )
    assert client.get(f"/v1/uploads/{upload}").json()["parts"] == []
    assert kept(rooms) == {f"uploads/{upload}"}


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"bytes": 0}, 400, "invalid_value", "bytes"),
        ({"bytes": "1000"}, 400, "invalid_value", "bytes"),
        ({"bytes": (1 << 20) + 1}, 413, "file_too_large", "bytes"),
        ({"bytes": None}, 400, "invalid_value", "bytes"),
        ({"purpose": "fine-tuning"}, 400, "invalid_value", "purpose"),
        ({"filename": ""}, 400, "invalid_value", "filename"),
        ({"file_name": "x"}, 400, "unknown_field", "file_name"),
        ({"expires_after": {"anchor": "created_at", "seconds": 60}}, 400, "invalid_value", None),
        ({"expires_after": {"anchor": "now", "seconds": HOUR}}, 400, "invalid_value", None),
    ],
)
def test_what_cannot_be_begun_says_why(
    rooms: Rooms, client: TestClient, change: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    wish = {"bytes": 10, "filename": "rows.jsonl", "mime_type": "", "purpose": "fine-tune"}
    error_of(client.post("/v1/uploads", json=wish | change), status, code, param)
    assert kept(rooms) == set()


def test_how_much_one_tenant_may_have_under_way_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MOST_PENDING", 3)
    monkeypatch.setattr(uploads, "MOST_PARTS", 4)
    monkeypatch.setattr(uploads, "MOST_IN_A_PART", 1000)
    monkeypatch.setattr(uploads, "MOST_KEPT", 2)
    with client_of(rooms_in(tmp_path, max_files=1)) as client:
        ids = [begin(client, 2000) for _ in range(3)]
        wish = {"bytes": 10, "filename": "x", "purpose": "evals"}
        error_of(client.post("/v1/uploads", json=wish), 400, "too_many_uploads")
        assert begin(_as(client, BOB), 2000)
        error_of(send(client, ids[0], b"x" * 1001), 413, "file_too_large", "data")
        for number in range(3):
            assert send(client, ids[0], b"%d" % number * 1000).status_code == 200
        error_of(send(client, ids[0], b"4" * 1000), 413, "upload_too_large", "data")
        for number in range(4):
            assert send(client, ids[1], b"%d" % number).status_code == 200
        error_of(send(client, ids[1], b"4"), 400, "too_many_parts")
        for one in ids:
            client.post(f"/v1/uploads/{one}/cancel")
        last = begin(client, 2)
        assert len(client.get("/v1/uploads").json()["data"]) == 3
        part = send(client, last, b"{}").json()["id"]
        client.post("/v1/files", files={"file": ("r.jsonl", b"{}")})
        error_of(complete(client, last, [part]), 400, "too_many_files")
        error_of(client.post("/v1/uploads", json=wish), 400, "too_many_files")


def test_a_cancelled_upload_leaves_nothing_and_takes_nothing(rooms: Rooms, client: TestClient) -> None:
    upload = begin(client)
    ids = send_all(client, upload)
    for _ in range(2):
        assert client.post(f"/v1/uploads/{upload}/cancel").json()["status"] == "cancelled"
    assert kept(rooms) == {f"uploads/{upload}"}
    error_of(send(client, upload, b"x"), 400, "upload_cancelled")
    error_of(complete(client, upload, ids), 400, "upload_cancelled")
    done = begin(client)
    assert complete(client, done, send_all(client, done)).status_code == 200
    error_of(client.post(f"/v1/uploads/{done}/cancel"), 400, "upload_completed")
    error_of(send(client, done, b"x"), 400, "upload_completed")


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.time()
        for module in (uploads, files):
            monkeypatch.setattr(module, "time", self)

    def time(self) -> float:
        return self.now


def test_an_abandoned_upload_ends_an_hour_after_its_last_part(
    rooms: Rooms, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    upload = begin(client)
    clock.now += HOUR - 10
    first = send(client, upload, THIRDS[0]).json()["id"]
    clock.now += HOUR - 10
    assert send(client, upload, THIRDS[0]).json()["id"] == first
    assert client.get(f"/v1/uploads/{upload}").json()["status"] == "pending"
    clock.now += HOUR + 10
    assert client.get("/v1/uploads").json()["data"][0]["status"] == "expired"
    assert kept(rooms) == {f"uploads/{upload}"}
    error_of(send(client, upload, THIRDS[1]), 400, "upload_expired")
    error_of(complete(client, upload, [first]), 400, "upload_expired")
    clock.now += 2 * 86_400
    assert client.get("/v1/uploads").json()["data"] == []
    assert kept(rooms) == set()
    error_of(client.get(f"/v1/uploads/{upload}"), 404, "upload_not_found")


def test_the_finished_file_is_kept_as_long_as_was_asked_and_the_setting_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    after: dict[str, Any] = {"expires_after": {"anchor": "created_at", "seconds": 2 * 86_400}}
    for name, days, kept_for in (("a", 0, 2 * 86_400), ("b", 1, 86_400), ("c", 9, 2 * 86_400)):
        with client_of(rooms_in(tmp_path / name, retention_days=days)) as client:
            upload = begin(client, **after)
            file = complete(client, upload, send_all(client, upload)).json()["file"]
            assert file["expires_at"] - file["created_at"] == kept_for
            clock.now += kept_for + 1
            error_of(client.get(f"/v1/files/{file['id']}"), 404, "file_not_found")
            assert list((tmp_path / name).rglob(file["id"])) == []


def test_what_is_no_data_is_refused_at_the_end_and_can_be_cancelled(rooms: Rooms, client: TestClient) -> None:
    upload = begin(client, 9)
    ids = send_all(client, upload, [b"PK\x03\x04", b"later"])
    error_of(complete(client, upload, ids), 400, "invalid_file_format", "file")
    assert not [name for name in kept(rooms) if name.startswith("file")]
    assert client.post(f"/v1/uploads/{upload}/cancel").status_code == 200


TRAVERSAL = [
    "..",
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "..%5c..%5cx",
    "%2e%2e%2fuploads",
    "upload-%00",
    "upload-é",
    "upload-．．／etc",
    "upload-" + "a" * 500,
    "UPLOAD-ABC",
    "upload-../files/x",
    "upload-\u202egnp",
    ".part",
]


def test_no_id_leads_out_of_the_tenants_folder(rooms: Rooms, client: TestClient) -> None:
    """S-17: an upload's id in any spelling, and nothing is made on the way."""
    for name in TRAVERSAL:
        for method, path in (("GET", ""), ("POST", "/parts"), ("POST", "/complete"), ("POST", "/cancel")):
            given: dict[str, Any] = {"files": {"data": b"x"}} if path == "/parts" else {}
            given = {"json": {"part_ids": ["x"]}} if path == "/complete" else given
            response = client.request(method, f"/v1/uploads/{name}{path}", **given)
            assert response.status_code in (404, 405), (name, response.text)
            assert "root:" not in response.text
    assert kept(rooms) == set()


def test_a_name_from_outside_is_a_label(rooms: Rooms, client: TestClient) -> None:
    """S-17: whatever it is called, it lies under a name of ours, and what is told of it is printable."""
    as_json = {"content-type": "application/json"}
    for name in (*TRAVERSAL, "/etc/passwd", "a\0b.jsonl", "con.jsonl\n", "C:\\x", "-rf *", "~/.ssh/x.csv"):
        wish = json.dumps({"bytes": 2, "filename": name, "purpose": "fine-tune"})
        begun = client.post("/v1/uploads", content=wish, headers=as_json).json()
        assert begun["filename"]
        assert not set(begun["filename"]) & set("/\\\0\n\u202e")
        done = complete(client, begun["id"], [send(client, begun["id"], b"{}").json()["id"]])
        assert client.get(f"/v1/files/{done.json()['file']['id']}/content").content == b"{}"
    half = '{"bytes": 2, "filename": "\\ud800", "purpose": "fine-tune"}'
    assert client.post("/v1/uploads", content=half, headers=as_json).status_code == 400
    names = {path.name for path in rooms.store.root.rglob("*")}
    assert all(set(each) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for each in names)


def test_another_tenants_upload_does_not_exist_for_me(client: TestClient) -> None:
    """S-22: same id, another token; and the answer is that of an id that never was."""
    upload = begin(client)
    part = send(client, upload, THIRDS[0]).json()["id"]
    bob = _as(client, BOB)
    never = "upload-" + "0" * 32
    for id_ in (upload, never):
        told = [
            bob.get(f"/v1/uploads/{id_}"),
            send(bob, id_, b"x"),
            complete(bob, id_, [part]),
            bob.post(f"/v1/uploads/{id_}/cancel"),
        ]
        messages = {error_of(response, 404, "upload_not_found") for response in told}
        assert len(messages) == 1
    assert bob.get("/v1/uploads").json()["data"] == []
    assert len(client.get(f"/v1/uploads/{upload}").json()["parts"]) == 1


def test_a_part_that_the_disk_spoiled_is_sent_again(rooms: Rooms, client: TestClient) -> None:
    upload = begin(client)
    ids = send_all(client, upload)
    (path,) = rooms.store.root.rglob(ids[1])
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "send it again" in error_of(complete(client, upload, ids), 500, "damaged_part")
    ids[1] = send(client, upload, THIRDS[1]).json()["id"]
    assert complete(client, upload, ids).status_code == 200


def test_a_record_that_went_back_is_found_out(rooms: Rooms, client: TestClient) -> None:
    """The disk's owner makes a cancelled upload pending again: it is damaged, and then forgotten."""
    upload = begin(client)
    (path,) = rooms.store.root.rglob(upload)
    before = path.read_bytes()
    send_all(client, upload)
    client.post(f"/v1/uploads/{upload}/cancel")
    path.write_bytes(before)
    error_of(client.get(f"/v1/uploads/{upload}"), 500, "damaged_upload")
    assert client.get("/v1/uploads").json()["data"] == []
    assert kept(rooms) == set()


def test_what_a_crash_left_of_uploads_goes_when_the_tenant_comes_back(
    rooms: Rooms, client: TestClient
) -> None:
    upload = begin(client)
    ids = send_all(client, upload)
    orphan = f"part-{'0' * 32}-{'1' * 26}"
    rooms.store.write(TENANT, uploads.PARTS, orphan, b"half of an upload")
    rooms.store.write(TENANT, FILES, "file-" + "2" * 32, b"never described")
    again = rooms_in(rooms.store.root)
    with client_of(again) as later:
        later.get("/v1/files")
        later.get("/v1/uploads")
        assert kept(again) == {f"uploads/{upload}", *(f"upload-parts/{one}" for one in ids)}
        assert complete(later, upload, ids).status_code == 200


def test_nothing_of_a_part_can_be_read_at_rest(rooms: Rooms, client: TestClient) -> None:
    """S-21: neither while parts lie there nor of the file made of them, by any name."""
    secret = os.urandom(8).hex().encode()
    data = b'{"text": "' + secret * 3000 + b'"}'
    upload = begin(client, len(data), filename=f"{secret.decode()}.jsonl")
    ids = send_all(client, upload, [data[:20_000], data[20_000:]])
    for step in (lambda: None, lambda: complete(client, upload, ids)):
        step()
        for path in rooms.store.root.rglob("*"):
            assert secret.decode() not in str(path)
            assert not path.is_file() or secret not in path.read_bytes()


def test_the_record_comes_back_as_it_was() -> None:
    part = uploads.Part("part-1", 5, "ab", 7)
    record = Record("upload-12", 5, 1, 2, "x.csv", "evals", 4000, "cancelled", (part,))
    assert Record.parse(record.encode()) == record
    assert record.file_id == "file-12"


def _as(client: TestClient, who: dict[str, str]) -> TestClient:
    other = TestClient(client.app, headers=who)
    other.portal = client.portal  # the same running application
    return other
