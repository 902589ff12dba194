"""What one tenant may keep: a share of the disk, for files, uploads, checkpoints and models together."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from enclave_app.api import Rooms, build_api
from enclave_app.api.files import MOST_LISTED
from enclave_app.checkpoint import CHECKPOINTS
from enclave_app.jobs import FILES
from enclave_app.models_book import ADAPTERS
from enclave_app.refusals import Conflict, TooLarge
from enclave_app.settings import Settings
from enclave_app.store import CHUNK, Missing, Store
from tests.kit.jobs import ANN, BEN, FILE, order, over, rooms_with_rows, run
from tests.kit.rooms import ALICE, BOB, client_of, error_of, rooms_in

SHARE = 4 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data", most_bytes=SHARE)


def lies(store: Store, tenant: Any = ANN) -> int:
    """What the disk has of a tenant."""
    return sum(path.stat().st_size for path in (store.root / tenant.id).rglob("*") if path.is_file())


def room(store: Store, tenant: Any = ANN) -> int:
    """The largest file that is still said to fit; found by asking, for nothing else tells."""
    least, most = -1, SHARE
    while least < most:
        size = (least + most + 1) // 2
        try:
            store.check_room(tenant, FILES, size)
        except TooLarge:
            most = size - 1
        else:
            least = size
    return least


def sealed(size: int) -> int:
    """What a file of so many bytes takes on the disk."""
    return 48 + size + 16 * max(1, -(-size // CHUNK))


def exact(store: Store) -> bool:
    """Whether the room that is left is what the disk does not have."""
    largest, left = room(store), SHARE - lies(store)
    return (largest < 0 or sealed(largest) <= left) and left < sealed(largest + 1)


def write_until(
    store: Store, kind: str, name: str, size: int, then: Callable[[Store], Any] | None = None
) -> None:
    """Write so many bytes a chunk at a time; before the end do what is to be done."""
    with store.writer(ANN, kind, name) as writer:
        for at in range(0, size, CHUNK):
            writer.write(bytes(min(CHUNK, size - at)))
        if then is not None:
            then(store)


def broken_off(_: Store) -> None:
    raise ZeroDivisionError


def all_deleted(store: Store) -> None:
    store.delete_all(ANN)


# --- the store --------------------------------------------------------------------------------


def test_a_tenant_fills_its_share_and_no_byte_of_anothers(store: Store) -> None:
    """S-24: to the last byte of the share, and not one beyond; whoever else is there has all of theirs."""
    store.write(ANN, FILES, "one", bytes(SHARE - 1000))
    left = room(store)
    assert lies(store) + sealed(left) == SHARE
    with pytest.raises(TooLarge) as caught:
        store.write(ANN, FILES, "two", bytes(left + 1))
    assert (caught.value.status, caught.value.code) == (413, "storage_quota")
    assert "4.0 MiB in files (DELETE /v1/files/ID)" in caught.value.message
    assert store.names(ANN, FILES) == ["one"]
    store.write(ANN, FILES, "two", bytes(left))
    assert lies(store) == SHARE
    store.write(BEN, FILES, "one", bytes(SHARE - 1000))
    assert len(store.read(ANN, FILES, "one")) == SHARE - 1000


def test_what_is_refused_in_the_middle_leaves_no_trace_and_what_was_there_stays(store: Store) -> None:
    """S-24: also where nobody knew how long it would be."""
    store.write(ANN, CHECKPOINTS, "job-00000001", b"earlier")
    before = lies(store)
    with pytest.raises(TooLarge, match="checkpoints"):
        write_until(store, CHECKPOINTS, "job-00000001", SHARE + 1)
    assert store.read(ANN, CHECKPOINTS, "job-00000001") == b"earlier"
    assert lies(store) == before
    assert exact(store)


def test_all_kinds_count_together_and_the_refusal_tells_each_with_the_way_it_goes(store: Store) -> None:
    for kind in (FILES, "upload-parts", CHECKPOINTS, ADAPTERS):
        store.write(ANN, kind, "one", bytes(SHARE // 4 - 2000))
    store.write(ANN, "jobs", "one", bytes(500))
    with pytest.raises(TooLarge) as caught:
        store.write(ANN, FILES, "two", bytes(SHARE // 4))
    for told in (
        "You may keep 4.0 MiB",
        "in files (DELETE /v1/files/ID)",
        "in unfinished uploads (POST /v1/uploads/ID/cancel)",
        "in checkpoints (DELETE /v1/fine_tuning/jobs/ID)",
        "in tuned models (DELETE /v1/models/ID)",
        "564 bytes in records",
    ):
        assert told in caught.value.message


def test_who_is_full_can_still_be_told_of_and_deletes_to_have_room_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records have a little room of their own, and no more than that."""
    monkeypatch.setattr("enclave_app.quota.FOR_RECORDS", 1 << 20)
    store.write(ANN, FILES, "one", bytes(room(store)))
    with pytest.raises(TooLarge):
        store.write(ANN, FILES, "two", b"")
    store.write(ANN, "jobs", "one", b"a record")
    with pytest.raises(TooLarge):
        store.write(ANN, "job-events", "one", bytes(1 << 20))
    store.delete(ANN, FILES, "one")
    store.write(ANN, FILES, "two", bytes(SHARE - 2000))


def test_room_is_given_back_to_the_byte_whatever_was_done(tmp_path: Path) -> None:
    """
    S-24: after any writing, overwriting, breaking off, deleting and starting anew, the room that is left is
    what the disk does not have.
    """
    chance = random.Random(7)
    store = Store(tmp_path / "data", most_bytes=SHARE)
    for _ in range(150):
        kind = chance.choice([FILES, CHECKPOINTS, ADAPTERS, "jobs"])
        name, size = f"n{chance.randrange(5)}", chance.choice([0, 10, 70_000, CHUNK, CHUNK + 1, 900_000])
        match chance.randrange(12):
            case 0:
                store.delete_all(ANN)
            case 1:
                store = Store(tmp_path / "data", most_bytes=SHARE)
            case 2 | 3 | 4:
                with suppress(Missing):
                    store.delete(ANN, kind, name)
            case 5:
                with pytest.raises((ZeroDivisionError, TooLarge)):
                    write_until(store, kind, name, size, broken_off)
            case 6:
                with pytest.raises((Conflict, TooLarge)):
                    write_until(store, kind, name, size, all_deleted)
            case _:
                with suppress(TooLarge):
                    store.write(ANN, kind, name, bytes(size))
        assert exact(store)


def test_what_is_being_written_has_its_room_already(store: Store) -> None:
    """S-24: two files that fit each, and not both."""
    with store.writer(ANN, FILES, "one") as writer:
        writer.write(bytes(SHARE * 3 // 4))
        with pytest.raises(TooLarge):
            store.write(ANN, FILES, "two", bytes(SHARE // 2))
        assert store.names(ANN, FILES) == []
    assert store.names(ANN, FILES) == ["one"]
    assert exact(store)


def test_of_many_who_write_at_once_for_one_tenant_no_two_take_the_same_room(store: Store) -> None:
    """S-24, S-25: the look and the taking are one step."""
    ready, made = threading.Barrier(16), []

    def write(number: int) -> None:
        ready.wait(60)
        try:
            store.write(ANN, FILES, f"n{number}", os.urandom(SHARE // 8))
        except TooLarge:
            return
        made.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lies(store) == sealed(SHARE // 8) * len(made) <= SHARE
    assert sorted(store.names(ANN, FILES)) == sorted(f"n{number}" for number in made)
    assert exact(store)


def test_whoever_comes_and_goes_is_not_remembered(store: Store) -> None:
    """Any token is a tenant: asking for room, being refused and deleting leave nothing in memory."""
    store.check_room(ANN, FILES, 10)
    with pytest.raises(TooLarge):
        store.write(BEN, FILES, "one", bytes(2 * SHARE))
    store.write(ANN, FILES, "one", b"")
    assert set(store._quota._used) == {ANN.id}
    store.delete(ANN, FILES, "one")
    assert not store._quota._used


def test_no_tenant_has_more_than_half_of_the_disk_whatever_the_setting_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(total=SHARE))
    small = Store(tmp_path / "small", most_bytes=Settings().max_stored_bytes)
    small.check_room(ANN, FILES, SHARE // 2 - 1000)
    with pytest.raises(TooLarge, match=r"You may keep 2\.0 MiB"):
        small.check_room(ANN, FILES, SHARE // 2)


# --- the routes -------------------------------------------------------------------------------


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    return rooms_in(tmp_path / "data", max_stored_bytes=SHARE)


@pytest.fixture
def client(rooms: Rooms) -> Iterator[TestClient]:
    with client_of(rooms) as made:
        yield made


def text(size: int) -> bytes:
    line = b'{"text": "a line of forty characters, or so"}\n'
    return (line * (size // len(line) + 1))[:size]


def sent(client: TestClient, data: bytes, **more: Any) -> Any:
    return client.post(
        "/v1/files", files={"file": ("rows.jsonl", data)}, data={"purpose": "user_data"}, **more
    )


def untaken(rooms: Rooms, path: str, length: int) -> tuple[int, Any]:
    """Post so many bytes, and say what is answered to one whose bytes are not asked for."""
    answer: list[dict[str, Any]] = []

    async def receive() -> Any:
        raise AssertionError("bytes were taken")

    async def send(message: Any) -> None:
        answer.append(message)

    headers = {
        **ALICE,
        "content-type": "multipart/form-data; boundary=x",
        "content-length": str(length),
    }
    scope = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "server": ("enclave", 80),
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(build_api(rooms)(scope, receive, send))
    return answer[0]["status"], json.loads(b"".join(message.get("body", b"") for message in answer[1:]))


def test_a_file_is_refused_before_its_bytes_are_taken_where_its_length_is_told(rooms: Rooms) -> None:
    """S-24: 413 about the field, and nothing was read."""
    status, told = untaken(rooms, "/v1/files", SHARE + (100 << 10))
    assert status == 413
    assert (told["error"]["code"], told["error"]["param"]) == ("storage_quota", "file")
    assert "This takes" in told["error"]["message"]


def test_a_file_of_unknown_length_is_refused_where_the_share_ends(rooms: Rooms, client: TestClient) -> None:
    made = sent(client, text(SHARE // 2))
    assert made.status_code == 200, made.text
    data = b'--x\r\ncontent-disposition: form-data; name="file"; filename="b"\r\n\r\n' + text(SHARE)

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(data), 50_000):
            yield data[at : at + 50_000]

    refused = client.post(
        "/v1/files", content=pieces(), headers={"content-type": "multipart/form-data; boundary=x"}
    )
    error_of(refused, 413, "storage_quota")
    listed = client.get("/v1/files", params={"limit": MOST_LISTED}).json()["data"]
    assert [file["id"] for file in listed] == [made.json()["id"]]
    assert client.get(f"/v1/files/{made.json()['id']}/content").content == text(SHARE // 2)
    assert not list(rooms.store.root.rglob("*.part"))
    # The other half is still there to be taken, and another tenant has a share of their own.
    assert sent(client, text(SHARE // 2 - 20_000)).status_code == 200
    assert sent(client, text(SHARE - 20_000), headers=BOB).status_code == 200
    client.delete(f"/v1/files/{made.json()['id']}")
    assert sent(client, text(SHARE // 2 - 20_000)).status_code == 200


def test_an_upload_in_parts_is_refused_before_the_first_part(rooms: Rooms, client: TestClient) -> None:
    """S-24: twice its size is what it takes until it is complete, and the refusal says so."""
    wish = {"filename": "rows.jsonl", "purpose": "fine-tune", "mime_type": "text/jsonl"}
    refused = client.post("/v1/uploads", json={"bytes": SHARE // 2 + 1, **wish})
    assert "twice its size" in error_of(refused, 413, "storage_quota", "bytes")
    assert not client.get("/v1/uploads").json()["data"]
    begun = client.post("/v1/uploads", json={"bytes": SHARE // 4, **wish}).json()
    status, told = untaken(rooms, f"/v1/uploads/{begun['id']}/parts", SHARE + (100 << 10))
    assert (status, told["error"]["code"], told["error"]["param"]) == (413, "storage_quota", "data")


def test_an_upload_that_cannot_be_completed_keeps_its_parts_until_there_is_room(client: TestClient) -> None:
    size = SHARE // 4
    wish = {"filename": "rows.jsonl", "purpose": "fine-tune", "mime_type": "text/jsonl", "bytes": size}
    begun = client.post("/v1/uploads", json=wish).json()
    part = client.post(f"/v1/uploads/{begun['id']}/parts", files={"data": text(size)}).json()
    other = sent(client, text(SHARE - 2 * size + 1000)).json()
    ids = {"part_ids": [part["id"]]}
    error_of(client.post(f"/v1/uploads/{begun['id']}/complete", json=ids), 413, "storage_quota")
    assert client.get(f"/v1/uploads/{begun['id']}").json()["status"] == "pending"
    client.delete(f"/v1/files/{other['id']}")
    done = client.post(f"/v1/uploads/{begun['id']}/complete", json=ids).json()
    assert done["status"] == "completed"
    assert client.get(f"/v1/files/{done['file']['id']}/content").content == text(size)


# --- jobs -------------------------------------------------------------------------------------


def filled(store: Store, left: int) -> None:
    """Leave Ann so many bytes, more or less."""
    store.write(ANN, ADAPTERS, "filling", bytes(room(store) - left))


def test_a_checkpoint_beyond_the_share_ends_its_job_with_that_reason(tmp_path: Path) -> None:
    """
    S-24, S-28: the checkpoints before it are whole, the file and the record as well; another tenant's job
    runs to its end, and hers too once there is room.
    """
    rooms = rooms_with_rows(tmp_path, max_stored_bytes=SHARE, max_checkpoints=100)
    foreman, store = rooms.foreman, rooms.store
    wish = order(checkpoint_steps=1)

    async def work() -> None:
        began = lies(store, BEN)
        whole = await over(foreman, BEN, (await foreman.create(BEN, wish)).id)
        assert whole.status == "succeeded", whole.error
        assert len(await foreman.checkpoints(BEN, whole.id)) == 20
        filled(store, (lies(store, BEN) - began) // 2)
        job = await foreman.create(ANN, wish)
        ended = await over(foreman, ANN, job.id)
        assert ended.status == "failed"
        assert ended.error is not None
        assert (ended.error.code, ended.error.status) == ("storage_quota", 413)
        assert "DELETE /v1/files/ID" in ended.error.message
        assert foreman.book.job(ANN, job.id) == ended
        kept = [each.step for each in await foreman.checkpoints(ANN, job.id)]
        assert kept == list(range(len(kept), 0, -1))
        assert 0 < len(kept) < 20
        for step in kept:
            assert foreman.book.checkpoint(ANN, job.id, step).state
        assert store.read(ANN, FILES, FILE)
        assert not list(store.root.rglob("*.part"))
        assert [event.level for event in await foreman.events(ANN, job.id)][-1] == "error"
        again = await over(foreman, BEN, (await foreman.create(BEN, wish)).id)
        assert again.status == "succeeded", again.error
        store.delete(ANN, ADAPTERS, "filling")
        roomy = await over(foreman, ANN, (await foreman.create(ANN, wish)).id)
        assert roomy.status == "succeeded", roomy.error

    run(work())


def test_a_job_is_refused_where_nothing_is_left_for_what_comes_of_it(tmp_path: Path) -> None:
    """S-24: before it is read, and before anything is trained."""
    rooms = rooms_with_rows(tmp_path, max_stored_bytes=SHARE)
    filled(rooms.store, 0)

    async def work() -> None:
        with pytest.raises(TooLarge) as caught:
            await rooms.foreman.create(ANN, order())
        assert caught.value.code == "storage_quota"
        assert not (await rooms.foreman.list(ANN)).jobs

    run(work())
