"""Jobs between two of their steps: callers at once, a disk that fills up, waits that could hold others up."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from enclave_app.api.uploads import UPLOADS
from enclave_app.jobs import DESCRIPTIONS, EVENTS, JOBS, Source, arrivals, book, curve, foreman
from enclave_app.jobs.ears import MOST_EARS
from enclave_app.jobs.foreman import Foreman
from enclave_app.jobs.receipts import NoReceipt
from enclave_app.refusals import Busy, Failed, NotFound, RateLimited, Refusal
from enclave_app.tenants import Tenant
from enclave_app.training import Progress, Snapshot, Stop, Task, Trained
from enclave_app.training.counting import CountingTrainer
from tests.kit.jobs import ANN, BEN, DIGEST, FILE, order, over, put_rows, rooms_with_rows, run
from tests.kit.rooms import client_of, error_of, rooms_in


class Slow(CountingTrainer):
    """Takes its time at the first step, and hears nothing meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()
        self.begun = threading.Event()
        self.trained = 0

    def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
        self.trained += 1
        self.begun.set()
        self.let.wait(120)
        yield from super().train(task, stopped)


async def begun(trainer: Slow) -> None:
    assert await asyncio.to_thread(trainer.begun.wait, 60)


def test_a_disk_that_is_full_where_a_segment_of_events_ends_stops_one_job_and_not_the_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-28: whatever cannot be written, the job is over, its tenant's key is gone, and others have a turn."""
    monkeypatch.setattr(book, "SEGMENT", 4)

    async def work() -> None:
        trainer = Slow()
        rooms = rooms_with_rows(tmp_path, trainer=trainer)
        write = rooms.store.write

        def full(tenant: Any, kind: str, name: str, data: bytes) -> None:
            if kind in (EVENTS, JOBS):
                raise Failed("The disk is full.", code="no_space", status=507)
            write(tenant, kind, name, data)

        job = await rooms.foreman.create(ANN, order())
        await begun(trainer)
        monkeypatch.setattr(rooms.store, "write", full)
        trainer.let.set()
        job = await over(rooms.foreman, ANN, job.id)
        assert (job.status, job.error and job.error.code) == ("failed", "no_space")
        monkeypatch.setattr(rooms.store, "write", write)
        other = await rooms.foreman.create(BEN, order())
        assert (await over(rooms.foreman, BEN, other.id)).status == "succeeded"
        assert (await rooms.foreman.find(ANN, job.id)).status == "failed"

    run(work())


def test_who_cancels_while_another_resumes_is_not_told_what_then_is_not_so(tmp_path: Path) -> None:
    """S-25: of two wishes at once, one comes after the other."""

    async def work() -> None:
        trainer = Slow()
        rooms = rooms_with_rows(tmp_path, trainer=trainer)
        job = await rooms.foreman.create(ANN, order())
        await rooms.foreman.pause(ANN, (await rooms.foreman.create(ANN, order())).id)
        await begun(trainer)
        paused = (await rooms.foreman.list(ANN)).jobs[0]
        assert paused.status == "paused"
        write, told = rooms.store.write, []

        def cancelled() -> None:
            told.append(asyncio.run(rooms.foreman.cancel(ANN, paused.id)))

        other = threading.Thread(target=cancelled)

        def between(tenant: Any, kind: str, name: str, data: bytes) -> None:
            if kind == JOBS and name == paused.id and not other.ident:
                other.start()
                other.join(0.3)
            write(tenant, kind, name, data)

        rooms.store.write = between  # type: ignore[method-assign]
        await rooms.foreman.resume(ANN, paused.id)
        await asyncio.to_thread(other.join, 60)
        assert told[0].status == "cancelled"
        trainer.let.set()
        assert (await over(rooms.foreman, ANN, job.id)).status == "succeeded"
        assert (await over(rooms.foreman, ANN, paused.id)).status == "cancelled"

    run(work())


def test_a_job_that_ends_while_its_tenant_is_looked_at_anew_is_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-26: what was read a moment ago is no reason to do a job that is over again."""
    monkeypatch.setattr(arrivals, "_REMEMBERED", 1)

    async def work() -> None:
        trainer = Slow()
        rooms = rooms_with_rows(tmp_path, trainer=trainer)
        mine = await rooms.foreman.create(ANN, order())
        other = await rooms.foreman.create(BEN, order())  # Ann is not remembered any more
        await rooms.foreman.pause(BEN, other.id)
        await begun(trainer)
        jobs = rooms.foreman.book.jobs

        def late(tenant: Any) -> Any:
            listed = jobs(tenant)
            trainer.let.set()
            end = time.monotonic() + 0.5
            while rooms.foreman.book.job(ANN, mine.id).live and time.monotonic() < end:
                time.sleep(0.01)
            return listed

        monkeypatch.setattr(rooms.foreman.book, "jobs", late)
        await rooms.foreman.find(ANN, mine.id)
        monkeypatch.setattr(rooms.foreman.book, "jobs", jobs)
        assert (await over(rooms.foreman, ANN, mine.id)).status == "succeeded"
        assert trainer.trained == 1

    run(work())


def test_callers_who_wait_for_a_job_to_stop_keep_no_threads_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-24: a caller who cancels ten times at once holds nobody else up."""
    monkeypatch.setattr(foreman, "_SOON", 100.0)  # longer than anybody waits below

    async def work() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        trainer = Slow()
        rooms = rooms_with_rows(tmp_path, trainer=trainer)
        job = await rooms.foreman.create(ANN, order())
        while not trainer.begun.is_set():
            await asyncio.sleep(0.01)
        wishes = [asyncio.create_task(rooms.foreman.cancel(ANN, job.id)) for _ in range(9)]
        wishes.append(asyncio.create_task(rooms.foreman.forget(ANN)))  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        with pytest.raises(NotFound):
            await asyncio.wait_for(rooms.foreman.find(BEN, job.id), 60)
        trainer.let.set()
        ends = await asyncio.gather(*wishes, return_exceptions=True)
        assert {each.status for each in ends if not isinstance(each, BaseException | dict)} <= {"cancelled"}
        assert isinstance(ends[-1], dict)

    run(work())


def test_where_a_job_does_not_stop_nothing_of_the_tenants_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal says so, and it is so; nothing begins while everything goes."""
    monkeypatch.setattr(foreman, "_SOON", 0.2)

    async def work() -> None:
        trainer = Slow()
        trainer.let.set()
        rooms = rooms_with_rows(tmp_path, trainer=trainer)
        first = await rooms.foreman.create(ANN, order())
        name = (await over(rooms.foreman, ANN, first.id)).fine_tuned_model
        trainer.let.clear()
        trainer.begun.clear()
        await rooms.foreman.create(ANN, order())
        await begun(trainer)
        leave, refused_by_then = rooms.foreman._leave, threading.Event()

        def slowly(tenant: Tenant) -> Any:
            found = leave(tenant)
            refused_by_then.wait(60)
            return found

        monkeypatch.setattr(rooms.foreman, "_leave", slowly)
        leaving = asyncio.create_task(rooms.foreman.forget(ANN))
        await asyncio.sleep(0)  # it has begun
        with pytest.raises(Busy) as refused:
            await rooms.foreman.create(ANN, order())
        assert refused.value.code == "tenant_leaving"
        refused_by_then.set()
        with pytest.raises(Busy, match="Nothing was removed"):
            await leaving
        assert name in [each.name for each in await rooms.catalogue.all(ANN)]
        assert (await rooms.foreman.find(ANN, first.id)).status == "succeeded"
        trainer.let.set()
        monkeypatch.setattr(foreman, "_SOON", 60.0)
        assert (await rooms.foreman.forget(ANN))["models"] == 1
        assert not [each for each in await rooms.catalogue.all(ANN) if each.tuning is not None]

    run(work())


def test_what_is_deleted_with_its_tenant_leaves_memory_too_checkpoints_as_well(tmp_path: Path) -> None:
    """S-22: nothing of somebody who left goes on being held."""

    async def work() -> None:
        rooms = rooms_with_rows(tmp_path)
        job = await over(rooms.foreman, ANN, (await rooms.foreman.create(ANN, order())).id)
        held = []
        for name in (job.fine_tuned_model, f"{job.fine_tuned_model}:ckpt-step-10"):
            served = await rooms.catalogue.find(ANN, str(name))
            await rooms.catalogue.prepare(ANN, served.name)
            assert served.tuning is not None
            held.append(served.tuning.version)
        assert all(rooms.desk.holds("org/echo", version) for version in held)
        await rooms.foreman.forget(ANN)
        assert not any(rooms.desk.holds("org/echo", version) for version in held)

    run(work())


def test_paused_jobs_are_not_kept_without_end(tmp_path: Path) -> None:
    """S-24: a job that was paused takes room all the same."""

    async def work() -> None:
        rooms = rooms_with_rows(tmp_path, max_jobs_kept=3)
        for _ in range(3):
            await rooms.foreman.pause(ANN, (await rooms.foreman.create(ANN, order())).id)
        with pytest.raises(RateLimited) as refused:
            await rooms.foreman.create(ANN, order())
        assert refused.value.code == "too_many_jobs"
        await rooms.foreman.create(BEN, order())

    run(work())


def test_a_job_for_whose_model_there_is_no_room_any_more_is_not_resumed(tmp_path: Path) -> None:
    """Better told now than after hours of training."""

    async def work() -> None:
        rooms = rooms_with_rows(tmp_path, max_models_each=1)
        first = await rooms.foreman.create(ANN, order())
        await rooms.foreman.pause(ANN, first.id)
        second = await rooms.foreman.create(ANN, order())
        assert (await over(rooms.foreman, ANN, second.id)).status == "succeeded"
        with pytest.raises(Refusal) as refused:
            await rooms.foreman.resume(ANN, first.id)
        assert refused.value.code == "too_many_models"
        assert (await rooms.foreman.find(ANN, first.id)).status == "paused"

    run(work())


@pytest.mark.parametrize("which", ["training", "validation"])
def test_rows_are_read_only_from_the_very_bytes_that_the_receipt_will_name(
    tmp_path: Path, which: str
) -> None:
    """S-29: an older file of the same name, put back while the enclave was off, is not learned from."""

    async def work() -> None:
        rooms = rooms_with_rows(tmp_path)
        other = replace(Source(FILE, "jsonl", DIGEST), sha256="0" * 64)
        mine, held = (other, None) if which == "training" else (order().training, other)
        job = await rooms.foreman.create(ANN, replace(order(), training=mine, validation=held))
        job = await over(rooms.foreman, ANN, job.id)
        assert (job.status, job.error and job.error.code) == ("failed", "damaged_file")
        assert job.error is not None
        assert job.error.param == f"{which}_file"

    run(work())


class Boundless(CountingTrainer):
    """Has losses that are no numbers, and evaluates more often than can be told."""

    def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
        for item in super().train(task, stopped):
            if isinstance(item, Trained):
                losses = [[step, math.inf if step == 7 else 0.5] for step in range(99)]
                yield replace(item, report=item.report | {"validation_losses": losses, "best_step": 8})
            else:
                yield replace(item, loss=math.nan, validation_loss=math.inf)


def test_losses_that_are_no_numbers_and_too_many_of_them_are_told_as_what_can_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-30: a training that went astray after its last step leaves a job that can be looked at."""
    monkeypatch.setattr(curve, "MOST_FIGURES", 20)
    rooms = rooms_in(tmp_path, trainer=Boundless())
    with client_of(rooms) as client:
        data = b"".join(b'{"question": "q %d", "answer": "a"}\n' % n for n in range(9))
        file = client.post("/v1/files", files={"file": ("rows.jsonl", data)}).json()["id"]
        body = {"model": "org/echo", "training_file": file}
        path = f"/v1/fine_tuning/jobs/{client.post('/v1/fine_tuning/jobs', json=body).json()['id']}"
        end = time.monotonic() + 60
        while (job := client.get(path)).json()["status"] != "succeeded" and time.monotonic() < end:
            time.sleep(0.02)
        for part in ("events", "metrics", "checkpoints"):
            assert client.get(f"{path}/{part}").status_code == 200
        told = job.json()["blindbox"]["report"]["validation_losses"]
        assert len(told) < 30
        assert {tuple(each) for each in told} >= {(0, 0.5), (8, 0.5), (98, 0.5)}


class Unsaid(CountingTrainer):
    """Tells no continuations."""

    def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
        for item in super().train(task, stopped):
            yield replace(item, continuations=()) if isinstance(item, Trained) else item


def test_a_model_is_ready_when_its_job_is_told_as_done_also_where_nothing_is_compared(tmp_path: Path) -> None:
    """The first question to it need not wait."""

    async def work() -> None:
        rooms = rooms_with_rows(tmp_path, trainer=Unsaid())
        job = await rooms.foreman.create(ANN, order())
        job = await over(rooms.foreman, ANN, job.id)
        assert (job.status, job.serving) == ("succeeded", None)
        served = await rooms.catalogue.find(ANN, str(job.fine_tuned_model))
        assert served.tuning is not None
        assert rooms.desk.holds(served.source.name, served.tuning.version)

    run(work())


def test_a_tuned_model_in_memory_holds_the_key_of_its_own_file_and_not_its_owners(tmp_path: Path) -> None:
    """S-33: by the memory of this process; the model answers all the same, and can be loaded again."""

    def holders(tenant_id: str) -> int:
        gc.collect()
        return sum(type(each) is Tenant and each.id == tenant_id for each in gc.get_objects())

    async def work() -> None:
        rooms = rooms_with_rows(tmp_path)
        fresh = Tenant.of("dora-dora-dora-dora")
        put_rows(rooms.store, fresh)
        job = await over(rooms.foreman, fresh, (await rooms.foreman.create(fresh, order())).id)
        served = await rooms.catalogue.find(fresh, str(job.fine_tuned_model))
        assert served.tuning is not None
        tuning, name = served.tuning, fresh.id
        assert rooms.desk.holds(served.source.name, tuning.version)
        one = tuning.load()
        del fresh, served
        end = time.monotonic() + 60  # the bench, and threads that have done their part, may hold it a moment
        while holders(name) and time.monotonic() < end:
            await asyncio.sleep(0.05)
        assert holders(name) == 0
        assert tuning.load() == one
        await rooms.catalogue.delete(Tenant.of("dora-dora-dora-dora"), str(job.fine_tuned_model))
        with pytest.raises(NotFound):
            tuning.load()

    if not gc.is_tracked(Tenant.of("somebody-somebody-else")):
        pytest.skip("this Python does not track such values")
    run(work())


class Unsigned:
    """Signs nothing, and says why."""

    def sign(self, *_: Any, **__: Any) -> bytes:
        raise NoReceipt("The machine did not speak about itself.")


def test_why_there_is_no_receipt_is_told_to_its_owner(tmp_path: Path) -> None:
    async def work() -> None:
        made = rooms_with_rows(tmp_path)
        parts = (made.settings, made.store, CountingTrainer(), made.foreman.rows, made.catalogue)
        unsigned = Foreman(*parts, signer=Unsigned())
        job = await unsigned.create(ANN, order())
        job = await over(unsigned, ANN, job.id)
        assert (job.status, job.receipt) == ("succeeded", False)
        told = [event for event in await unsigned.events(ANN, job.id) if event.level == "warn"]
        assert ["did not speak about itself" in event.message for event in told] == [True]
        await asyncio.to_thread(unsigned.close)

    run(work())


def test_a_job_says_so_much_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-24: neither an evaluation nor a checkpoint at every step makes its events too many."""
    monkeypatch.setattr(curve, "MOST_FIGURES", 10)

    async def work() -> None:
        rooms = rooms_with_rows(tmp_path)
        wanted = order(epochs=20, evaluate_steps=1, checkpoint_steps=1)
        job = await rooms.foreman.create(ANN, replace(wanted, validation_split=0.1))
        job = await over(rooms.foreman, ANN, job.id)
        assert job.progress["total_steps"] == 180
        events = await rooms.foreman.events(ANN, job.id)
        assert len(events) < 50
        last = (await rooms.foreman.metrics(ANN, job.id))[-1]
        assert last["step"] == 180
        assert last["validation_loss"] is not None

    run(work())


def test_a_job_is_listened_to_by_so_many_and_no_more(tmp_path: Path) -> None:
    """S-24: each who listens has a queue of events, and there are not so many of those."""

    async def work() -> None:
        trainer = Slow()
        rooms = rooms_with_rows(tmp_path, trainer=trainer)
        job = await rooms.foreman.create(ANN, order())
        await begun(trainer)
        streams = [rooms.foreman.follow(ANN, job.id) for _ in range(MOST_EARS + 1)]
        for stream in streams[:-1]:
            await anext(stream)
        with pytest.raises(RateLimited) as refused:
            await anext(streams[-1])
        assert refused.value.code == "too_many_streams"
        await streams[0].aclose()
        with pytest.raises(NotFound):
            await anext(rooms.foreman.follow(BEN, job.id))
        again = rooms.foreman.follow(ANN, job.id)
        await anext(again)
        for stream in (*streams, again):
            await stream.aclose()
        trainer.let.set()

    run(work())


def test_the_curve_of_a_job_is_a_file_as_openai_has_it_and_goes_with_the_job(tmp_path: Path) -> None:
    """It counts for no upload, and is the same whichever figures were told before a crash."""
    rooms = rooms_in(tmp_path, max_files=1)
    with client_of(rooms) as client:
        data = b"".join(b'{"question": "q %d", "answer": "a"}\n' % n for n in range(60))
        file = client.post("/v1/files", files={"file": ("rows.jsonl", data)}).json()["id"]
        body = {"model": "org/echo", "training_file": file, "hyperparameters": {"n_epochs": 2}}
        path = f"/v1/fine_tuning/jobs/{client.post('/v1/fine_tuning/jobs', json=body).json()['id']}"
        end = time.monotonic() + 60
        while (job := client.get(path).json())["status"] != "succeeded" and time.monotonic() < end:
            time.sleep(0.02)
        (name,) = job["result_files"]
        told = client.get(f"/v1/files/{name}").json()
        assert (told["purpose"], told["filename"]) == ("fine-tune-results", "step_metrics.csv")
        lines = client.get(f"/v1/files/{name}/content").text.splitlines()
        assert lines[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
        assert len(lines) == 1 + job["blindbox"]["progress"]["total_steps"]
        last = lines[-1].split(",")
        assert (last[0], float(last[1])) == (str(len(lines) - 1), job["blindbox"]["progress"]["loss"])
        assert float(last[3]) > 0
        listed = client.get("/v1/files", params={"purpose": "fine-tune-results"}).json()["data"]
        assert [each["id"] for each in listed] == [name]
        client.delete(f"/v1/files/{file}")
        assert client.post("/v1/files", files={"file": ("rows.jsonl", data)}).status_code == 200
        assert client.delete(path).json()["blindbox"]["removed"]["files"] == 1
        error_of(client.get(f"/v1/files/{name}"), 404, "file_not_found")


# --- files and uploads ------------------------------------------------------------------------


def _begun(client: TestClient, size: int) -> str:
    body = {"bytes": size, "filename": "rows.jsonl", "purpose": "fine-tune"}
    return str(client.post("/v1/uploads", json=body).json()["id"])


def test_a_part_that_arrives_while_old_ones_are_looked_for_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that was told to be there goes because somebody listed uploads at that moment."""
    data = b'{"question": "q", "answer": "a"}\n'
    rooms = rooms_in(tmp_path)
    with client_of(rooms) as client:
        upload = _begun(client, len(data))
        read = rooms.store.read
        parts: list[str] = []

        def slowly(tenant: Any, kind: str, name: str) -> bytes:
            found = read(tenant, kind, name)
            if kind == UPLOADS and not parts:
                parts.append("")
                told = client.post(f"/v1/uploads/{upload}/parts", files={"data": ("part", data)}).json()
                parts[0] = told["id"]
            return found

        monkeypatch.setattr(rooms.store, "read", slowly)
        assert client.get("/v1/uploads").status_code == 200
        done = client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": parts})
        assert done.status_code == 200, done.text


def test_a_file_that_is_done_while_halves_of_others_are_looked_for_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for files in one piece."""
    rooms = rooms_in(tmp_path)
    written, listed = threading.Event(), threading.Event()
    write, names, count = rooms.store.write, rooms.store.names, [0]
    with client_of(rooms) as client:
        answers: list[Any] = []

        def described(tenant: Any, kind: str, name: str, data: bytes) -> None:
            if kind == DESCRIPTIONS:
                written.set()  # the bytes are there, and nothing tells of them yet
                listed.wait(60)
            write(tenant, kind, name, data)

        def stale(tenant: Any, kind: str) -> list[str]:
            found = names(tenant, kind)
            if kind == DESCRIPTIONS and threading.current_thread() is not uploading:
                count[0] += 1
                if count[0] == 2:
                    listed.set()
                    uploading.join(5)
            return found

        def upload() -> None:
            data = b'{"question": "q", "answer": "a"}\n'
            answers.append(client.post("/v1/files", files={"file": ("rows.jsonl", data)}))

        uploading = threading.Thread(target=upload)
        monkeypatch.setattr(rooms.store, "write", described)
        uploading.start()
        assert written.wait(60)
        monkeypatch.setattr(rooms.store, "names", stale)
        assert client.get("/v1/files").status_code == 200
        listed.set()
        uploading.join(60)
        monkeypatch.setattr(rooms.store, "names", names)
        name = answers[0].json()["id"]
        assert client.get(f"/v1/files/{name}/content").status_code == 200


def test_a_file_that_an_upload_has_become_does_not_change_where_it_is_completed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-27: a crash came between the file and the word of it; what a job may have read by now stays."""
    one, two = b'{"question": "q", "answer": "a"}\n', b'{"question": "r", "answer": "b"}\n'
    rooms = rooms_in(tmp_path)
    with client_of(rooms) as client:
        upload = _begun(client, len(one + two))
        path = f"/v1/uploads/{upload}"
        parts = [
            client.post(f"{path}/parts", files={"data": ("part", each)}).json()["id"] for each in (one, two)
        ]
        write = rooms.store.write

        def crash(tenant: Any, kind: str, name: str, data: bytes) -> None:
            if kind == UPLOADS:
                raise RuntimeError
            write(tenant, kind, name, data)

        monkeypatch.setattr(rooms.store, "write", crash)
        assert client.post(f"{path}/complete", json={"part_ids": parts}).status_code == 500
        monkeypatch.setattr(rooms.store, "write", write)
        done = client.post(f"{path}/complete", json={"part_ids": parts[::-1]})
        assert done.status_code == 200
        assert done.json()["status"] == "completed"
        content = client.get(f"/v1/files/{done.json()['file']['id']}/content").content
        assert content == one + two


# --- previews ---------------------------------------------------------------------------------


def test_one_preview_at_a_time_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-24: a preview reads as much as a job; many at once would take every thread and all memory."""
    rooms = rooms_in(tmp_path)
    reading, let = threading.Event(), threading.Event()
    with client_of(rooms) as client:
        data = b'{"question": "q", "answer": "a"}\n' * 4
        file = client.post("/v1/files", files={"file": ("rows.jsonl", data)}).json()["id"]
        read = rooms.foreman.rows.read

        def slowly(*given: Any) -> Any:
            reading.set()
            let.wait(60)
            return read(*given)

        monkeypatch.setattr(rooms.foreman.rows, "read", slowly)
        answers: list[Any] = []
        body = {"model": "org/echo", "training_file": file}
        first = threading.Thread(
            target=lambda: answers.append(client.post("/v1/fine_tuning/preview", json=body))
        )
        first.start()
        assert reading.wait(60)
        error_of(client.post("/v1/fine_tuning/preview", json=body), 503, "preview_busy")
        let.set()
        first.join(60)
        assert answers[0].status_code == 200
        assert client.post("/v1/fine_tuning/preview", json=body).status_code == 200


def test_a_caller_downloads_one_model_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-24: each is in memory while it is sent, however slowly it is taken."""
    rooms = rooms_in(tmp_path)
    reading, let = threading.Event(), threading.Event()
    with client_of(rooms) as client:
        data = b"".join(b'{"question": "q %d", "answer": "a"}\n' % n for n in range(9))
        file = client.post("/v1/files", files={"file": ("rows.jsonl", data)}).json()["id"]
        body = {"dataset_name": file, "question_column": "question", "answer_column": "answer"}
        made = client.post("/finetune", json=body | {"number_elements_for_training": 9})
        path = f"/v1/models/{made.json()['model']}/content"
        owned = rooms.catalogue.owned

        def slowly(*given: Any) -> Any:
            reading.set()
            let.wait(60)
            return owned(*given)

        monkeypatch.setattr(rooms.catalogue, "owned", slowly)
        answers: list[int] = []
        first = threading.Thread(target=lambda: answers.append(client.get(path).status_code))
        first.start()
        assert reading.wait(60)
        error_of(client.get(path), 429, "too_many_downloads")
        let.set()
        first.join(60)
        assert (answers, client.get(path).status_code) == ([200], 200)
        error_of(client.get("/v1/models/ft:org/echo::000000000000/content"), 404, "model_not_found")
        assert client.get(path).status_code == 200
