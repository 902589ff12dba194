"""`/v1/files`: what is told of a file, its content back, pages, ends; and what a full disk leaves."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from blindbox_attestation.channel.hpke import PrivateKey
from blindbox_data import Form
from enclave_app.api import Rooms, files, uploads
from enclave_app.api.files import File, arriving, expire
from enclave_app.jobs import FILES
from enclave_app.store import CHUNK, Store
from enclave_app.tenants import Tenant
from tests.kit.enclave import make_identity
from tests.kit.peak import Peak
from tests.kit.rooms import ALICE, BOB, client_of, error_of, rooms_in

ROWS = b'{"prompt": "a", "completion": "b"}\n'
TENANT = Tenant.of("alice-alice-alice-alice")
STEP = 64 << 10


def put(client: Any, data: bytes = ROWS, name: str = "rows.jsonl", **fields: str) -> dict[str, Any]:
    response = client.post("/v1/files", files={"file": (name, data)}, data={"purpose": "fine-tune"} | fields)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3])
def test_what_went_up_comes_down(client: TestClient, size: int) -> None:
    data = (b'{"a": "' + os.urandom(size).hex().encode())[:size]
    made = put(client, data, "Zürich \u4e00.jsonl" if size > 2 else "x.csv")
    assert (made["bytes"], made["sha256"]) == (size, hashlib.sha256(data).hexdigest())
    answer = client.get(f"/v1/files/{made['id']}/content")
    assert answer.content == data
    assert answer.headers["content-length"] == str(size)
    assert answer.headers["content-type"] == "application/octet-stream"
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    if size > 2:
        assert "filename*=UTF-8''Z%C3%BCrich%20%E4%B8%80.jsonl" in answer.headers["content-disposition"]


def test_content_of_nothing_and_of_somebody_elses_is_not_there(client: TestClient) -> None:
    """S-17, S-22: whose file it is does not show."""
    made = put(client)["id"]
    never = "file-" + "0" * 32
    told = [
        client.get(f"/v1/files/{name}/content", headers=who)
        for name, who in (
            (made, BOB),
            (never, BOB),
            (never, ALICE),
            ("..%2f..%2fx", ALICE),
            ("file-é", ALICE),
        )
    ]
    bodies = {error_of(response, 404, "file_not_found") for response in told if "file_not" in response.text}
    assert len(bodies) == 1
    assert {response.status_code for response in told} == {404}


def test_lists_have_pages(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    ids = []
    for number in range(5):
        clock.now += 1
        ids.append(put(client, purpose="evals" if number == 2 else "fine-tune")["id"])

    def page(**query: Any) -> tuple[list[str], bool]:
        told = client.get("/v1/files", params=query).json()
        data = [each["id"] for each in told["data"]]
        assert told["object"] == "list"
        assert (told["first_id"], told["last_id"]) == ((data[0], data[-1]) if data else (None, None))
        return data, told["has_more"]

    assert page() == (ids[::-1], False)
    assert page(order="asc") == (ids, False)
    assert page(order="asc", limit=2) == (ids[:2], True)
    assert page(order="asc", limit=2, after=ids[1]) == (ids[2:4], True)
    assert page(order="asc", limit=2, after=ids[3]) == (ids[4:], False)
    assert page(limit=5) == (ids[::-1], False)
    assert page(after=ids[0]) == ([], False)
    assert page(purpose="evals") == ([ids[2]], False)
    assert page(purpose="user_data") == ([], False)
    for query, param in (
        ({"limit": "0"}, "limit"),
        ({"limit": "10001"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "٣"}, "limit"),
        ({"limit": "9" * 5000}, "limit"),
        ({"order": "up"}, "order"),
        ({"purpose": "finetune"}, "purpose"),
    ):
        error_of(client.get("/v1/files", params=query), 400, "invalid_value", param)
    assert 'mean "limit"' in error_of(client.get("/v1/files?limits=3"), 400, "unknown_field", "limits")
    error_of(client.get("/v1/files?after=file-0"), 404, "not_found", "after")


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.time()
        monkeypatch.setattr(files, "time", self)

    def time(self) -> float:
        return self.now


def after(seconds: Any, anchor: str = "created_at") -> dict[str, Any]:
    return {"expires_after[anchor]": anchor, "expires_after[seconds]": str(seconds)}


def test_a_file_is_gone_when_its_time_has_passed(
    rooms: Rooms, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way the tenant comes back; and of others nothing goes."""
    clock = Clock(monkeypatch)
    stays = put(client)
    assert "expires_at" not in stays
    for ask in (
        lambda name: error_of(client.get(f"/v1/files/{name}"), 404, "file_not_found"),
        lambda name: error_of(client.get(f"/v1/files/{name}/content"), 404, "file_not_found"),
        lambda name: error_of(client.delete(f"/v1/files/{name}"), 404, "file_not_found"),
        lambda name: client.get("/v1/files"),
        lambda name: expire(rooms.store, TENANT, clock.now),
    ):
        made = put(client, **after(3600))
        assert made["expires_at"] == made["created_at"] + 3600
        clock.now += 3599
        assert client.get(f"/v1/files/{made['id']}").json() == made
        clock.now -= 86_400  # a clock that goes back takes nothing away
        assert expire(rooms.store, TENANT, clock.now) == []
        clock.now += 86_400 + 2
        ask(made["id"])
        assert rooms.store.names(TENANT, "files") == [stays["id"]]
        assert client.get("/v1/files").json()["data"] == [stays]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (after(3599), "expires_after[seconds]"),
        (after(2_592_001), "expires_after[seconds]"),
        (after("1e5"), "expires_after[seconds]"),
        (after("٣٦٠٠"), "expires_after[seconds]"),
        (after(""), "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        (after(3600, "last_active_at"), "expires_after[anchor]"),
    ],
)
def test_an_end_that_cannot_be_is_refused_and_nothing_is_kept(
    rooms: Rooms, client: TestClient, fields: dict[str, str], param: str
) -> None:
    response = client.post("/v1/files", files={"file": ("r.jsonl", ROWS)}, data=fields)
    error_of(response, 400, "invalid_value", param)
    assert [path for path in rooms.store.root.rglob("*") if path.is_file()] == []


def test_room_is_made_by_files_whose_time_has_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with client_of(rooms_in(tmp_path, max_files=1)) as client:
        put(client, **after(3600))
        error_of(client.post("/v1/files", files={"file": ("r.jsonl", ROWS)}), 400, "too_many_files")
        clock.now += 3601
        put(client)


def test_deleting_says_what_was_removed_and_works_on_what_cannot_be_read(
    rooms: Rooms, client: TestClient
) -> None:
    good, bad = put(client), put(client)
    told = client.delete(f"/v1/files/{good['id']}").json()
    assert told == {
        "id": good["id"],
        "object": "file",
        "deleted": True,
        "blindbox": {"removed": {"files": 1, "bytes": len(ROWS)}},
    }
    for path in rooms.store.root.rglob(bad["id"]):
        path.write_bytes(b"spoiled")
    error_of(client.get(f"/v1/files/{bad['id']}"), 500, "damaged_file")
    (listed,) = client.get("/v1/files").json()["data"]
    assert (listed["id"], listed["status"]) == (bad["id"], "error")
    assert "Delete it" in listed["status_details"]
    assert client.delete(f"/v1/files/{bad['id']}").json()["deleted"]
    assert [path for path in rooms.store.root.rglob("*") if path.is_file()] == []


def test_a_file_that_came_back_after_it_was_deleted_is_not_there(rooms: Rooms, client: TestClient) -> None:
    """What a tenant deleted stays deleted, whatever the disk's owner kept of it."""
    made = put(client)["id"]
    shutil.copytree(rooms.store.root, rooms.store.root.with_name("copy"))
    client.delete(f"/v1/files/{made}")
    shutil.copytree(rooms.store.root.with_name("copy"), rooms.store.root, dirs_exist_ok=True)
    assert client.get("/v1/files").json()["data"] == []
    assert "put back" in error_of(client.get(f"/v1/files/{made}"), 500, "damaged_file")
    error_of(client.post("/v1/files", files={"file": ("r.zip", b"PK\x03\x04")}), 400, "invalid_file_format")


def test_an_upload_that_breaks_off_leaves_nothing(rooms: Rooms, client: TestClient) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    cut = head + b"a,b\r\n" * 400_000
    kind = {"content-type": "multipart/form-data; boundary=x"}
    error_of(client.post("/v1/files", content=cut, headers=kind), 400, "invalid_multipart")
    noise = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\nX: ' + b"y" * (200 << 10)
    error_of(client.post("/v1/files", content=noise, headers=kind), 400, "invalid_multipart")
    assert [path for path in rooms.store.root.rglob("*") if path.is_file()] == []


def test_a_file_that_is_being_written_is_not_swept_away(rooms: Rooms) -> None:
    """Another request of the same tenant sweeps while its description is not written yet."""
    with arriving("file-one"):
        rooms.store.write(TENANT, FILES, "file-one", ROWS)
        expire(rooms.store, TENANT, time.time())
        assert rooms.store.read(TENANT, FILES, "file-one") == ROWS
    expire(rooms.store, TENANT, time.time())
    assert rooms.store.names(TENANT, FILES) == []


def test_a_description_comes_back_as_it_was() -> None:
    for end in (None, 99):
        file = File("file-1", 5, 7, "ä.csv", "evals", Form.CSV, "ab" * 32, end)
        assert File.parse(file.encode()) == file
    older = b'{"id":"f","bytes":1,"created_at":2,"filename":"n","purpose":"evals","form":"json"}'
    assert File.parse(older).sha256 == ""


# --- memory -----------------------------------------------------------------------------------


async def _feed(rooms: Rooms, size: int, path: str, field: str) -> int:
    """One upload straight into the application, in pieces of 16 KiB as the gateway hands them over."""
    from enclave_app.api import build_api

    app = build_api(rooms)
    line = (b'{"text": "' + b"x" * 1000 + b'"}\n') * 16
    statuses: list[int] = []
    left = size
    head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="r.jsonl"\r\n\r\n'.encode()
    pieces = iter((head,))

    async def receive() -> Any:
        nonlocal left
        for piece in pieces:
            return {"type": "http.request", "body": piece, "more_body": True}
        if left > 0:
            left -= len(line)
            return {"type": "http.request", "body": line, "more_body": True}
        return {"type": "http.request", "body": b"\r\n--b--\r\n", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [
        (b"content-type", b"multipart/form-data; boundary=b"),
        (b"authorization", ALICE["authorization"].encode()),
    ]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers}
    await app(scope | {"query_string": b"", "http_version": "1.1", "root_path": ""}, receive, send)
    return statuses[0]


def grown_by(tmp_path: Path, size: int) -> int:
    import asyncio

    rooms = rooms_in(tmp_path / "data")
    asyncio.run(_feed(rooms, 1 << 20, "/v1/files", "file"))  # what is loaded once
    with Peak() as peak:
        assert asyncio.run(_feed(rooms, size, "/v1/files", "file")) == 200
    (_, name) = sorted(rooms.store.names(TENANT, "files"), key=lambda n: rooms.store.size(TENANT, "files", n))
    assert rooms.store.size(TENANT, "files", name) >= size
    with Peak() as reading, files.opened(rooms.store, TENANT, name) as file:
        assert sum(1 for _ in io.BufferedReader(file)) > size // 1100
    return max(peak.growth, reading.growth)


def test_an_upload_does_not_pile_up_in_memory(tmp_path: Path) -> None:
    assert grown_by(tmp_path, 32 << 20) < 16 << 20


@pytest.mark.slow
def test_a_large_upload_does_not_pile_up_in_memory(tmp_path: Path) -> None:
    assert grown_by(tmp_path, 200 << 20) < 32 << 20


# --- what is left on the disk -----------------------------------------------------------------


def test_no_trace_of_a_file_is_left_on_any_writable_path(
    rooms: Rooms, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    S-21, S-33: after it went up in one piece and in parts, was read as a job reads it, came down and was
    deleted, neither its words nor a private key of the enclave are in any file written since.
    """
    began = time.time()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    seeds: list[bytes] = []

    def known(kem: int) -> PrivateKey:
        seeds.append(os.urandom(32))
        return PrivateKey.from_bytes(kem, seeds[-1])

    make_identity(new_key=known)
    canary = f"canary-{os.urandom(8).hex()}"
    data = "".join(f'{{"text": "{canary} {n}"}}\n' for n in range(20_000)).encode()
    made = put(client, data, f"{canary}.jsonl")["id"]
    upload = client.post(
        "/v1/uploads", json={"bytes": len(data), "filename": f"{canary}.jsonl", "purpose": "fine-tune"}
    ).json()["id"]
    ids = [
        client.post(f"/v1/uploads/{upload}/parts", files={"data": piece}).json()["id"]
        for piece in (data[:300_000], data[300_000:])
    ]
    done = client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": ids}).json()["file"]["id"]
    with files.opened(rooms.store, TENANT, done) as file:
        assert sum(canary.encode() in line for line in file) == 20_000
    assert client.get(f"/v1/files/{done}/content").content == data
    told = [canary.encode(), canary[::-1].encode(), canary.encode().hex().encode()]
    told += [form for seed in seeds for form in (seed, seed.hex().encode())]
    places = [tmp_path, Path("/dev/shm"), Path("/var/tmp"), Path("/tmp")]
    looked_at = 0
    for step in ("kept", "deleted"):
        if step == "deleted":
            for name in (made, done):
                assert client.delete(f"/v1/files/{name}").json()["deleted"]
        for path in _written_since(began, places):
            content = _read(path)
            looked_at += len(content)
            assert not [form for form in told if form in content], path
            assert canary not in str(path)
    assert looked_at > 2 * len(data)
    left = [path.parent.name for path in rooms.store.root.rglob("*") if path.is_file()]
    assert left == [uploads.UPLOADS]


def _written_since(moment: float, places: list[Path]) -> list[Path]:
    """Of the shared folders only what this process has open or made itself: others write there too."""
    own = {Path(place) for each in os.listdir("/proc/self/fd") if (place := _open_as(each))}
    new = [path for path in places[0].rglob("*") if path.is_file()]
    for place in places[1:]:
        for path in place.iterdir():
            try:
                if path.is_file() and path.stat().st_mtime >= moment - 1 and path.stat().st_size < 64 << 20:
                    new.append(path)
            except OSError:
                continue
    return [*new, *(path for path in own if path.is_file())]


def _open_as(descriptor: str) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:  # closed meanwhile
        return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


# --- a full disk ------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, whose size a test sets."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True)
    if made.returncode:
        pytest.skip("no tmpfs can be mounted here (that takes root)")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def resize(place: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", "tmpfs", place], check=True)


def used(place: Path) -> int:
    stat = os.statvfs(place)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


def test_a_full_disk_is_told_and_leaves_everything_as_it_was(small_disk: Path) -> None:
    """
    S-28: with 64 KiB more at each step, uploads in one piece and in parts fail as 507 or are whole, the file
    that was there stays, and the service answers throughout.
    """
    rooms = rooms_in(small_disk / "data")
    data = b"".join(b'{"text": "%06d"}\n' % n for n in range(22_000))
    refused = made = 0
    with client_of(rooms) as client:
        old = put(client, data[:70_000])
        floor = -(-used(small_disk) // STEP) * STEP
        for step in range(1, 20):
            resize(small_disk, floor + step * STEP)
            whole = client.post("/v1/files", files={"file": ("r.jsonl", data)})
            ids = [whole.json()["id"]] if whole.status_code == 200 else []
            if not ids:
                assert "Delete files" in error_of(whole, 507, "no_space")
                assert client.get("/v1/files").json()["data"] == [old]
            parts = _in_parts(client, data)
            if isinstance(parts, str):
                ids.append(parts)
            else:
                error_of(parts, 507, "no_space")
            refused += 2 - len(ids)
            made += len(ids)
            assert client.get(f"/v1/files/{old['id']}/content").content == data[:70_000]
            for name in ids:
                assert client.get(f"/v1/files/{name}/content").content == data
                assert client.delete(f"/v1/files/{name}").json()["deleted"]
            for upload in client.get("/v1/uploads").json()["data"]:
                if upload["status"] == "pending":
                    client.post(f"/v1/uploads/{upload['id']}/cancel")
            assert not list(small_disk.rglob("*.part"))
            kept = {path.parent.name for path in (small_disk / "data").rglob("*") if path.is_file()}
            assert kept <= {"files", "file-descriptions", "uploads"}
        assert client.post("/test", json={"input_text": "still here"}).status_code == 200
        assert [client.get("/v1/files").json()["data"], refused > 8, made > 8] == [[old], True, True]
    again = Store(small_disk / "data")
    assert again.read(TENANT, "files", old["id"]) == data[:70_000]


def _in_parts(client: Any, data: bytes) -> Any:
    """The file's id, or the first answer that was none of success."""
    wish = {"bytes": len(data), "filename": "r.jsonl", "purpose": "fine-tune"}
    begun = client.post("/v1/uploads", json=wish)
    if begun.status_code != 200:
        return begun
    ids = []
    for start in range(0, len(data), 3 * STEP):
        part = client.post(
            f"/v1/uploads/{begun.json()['id']}/parts", files={"data": data[start : start + 3 * STEP]}
        )
        if part.status_code != 200:
            return part
        ids.append(part.json()["id"])
    done = client.post(f"/v1/uploads/{begun.json()['id']}/complete", json={"part_ids": ids})
    return done.json()["file"]["id"] if done.status_code == 200 else done
