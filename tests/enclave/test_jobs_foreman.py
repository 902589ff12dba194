"""The foreman: turns, limits, stops, restarts, full disks; over the counting trainer and the echo engine."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enclave_app import store as sealed
from enclave_app.catalogue import checkpoint_name
from enclave_app.engines import Tuning
from enclave_app.engines.adapter import Adapter
from enclave_app.jobs import Job, Source
from enclave_app.jobs.foreman import Foreman, Key
from enclave_app.refusals import Busy, Conflict, Failed, NotFound, RateLimited
from enclave_app.store import Store
from enclave_app.tenants import Tenant
from enclave_app.training import Progress, Snapshot, Stop, Task, Trained, TrainingFailed
from enclave_app.training.counting import CountingTrainer
from tests.kit.jobs import ANN, BEN, KILLED, order, over, put_rows, rooms_with_rows, run

ROOT = Path(__file__).resolve().parents[2]
CAROL = Tenant.of("carol-carol-carol-carol")


async def until(true: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.005)


class Gated(CountingTrainer):
    """Counts a step whenever it is let; remembers the tasks it had."""

    def __init__(self, steps: int = 0) -> None:
        super().__init__()
        self.let = threading.Semaphore(steps)
        self.at = 0
        self.tasks: list[Task] = []

    def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
        self.tasks.append(task)
        for item in super().train(task, stopped):
            if isinstance(item, Progress):
                self.at = item.step
                while not self.let.acquire(timeout=0.01) and not stopped():
                    pass
            yield item


def steps_of(metrics: Any) -> list[int]:
    return [row["step"] for row in metrics]


def reference(folder: Path, **recipe: Any) -> tuple[Job, Any]:
    """The job as it is where nothing happens to it, and its figures."""

    async def work() -> tuple[Job, Any]:
        rooms = rooms_with_rows(folder)
        job = await rooms.foreman.create(ANN, order(**recipe))
        job = await over(rooms.foreman, ANN, job.id)
        assert job.status == "succeeded", job
        return job, await rooms.foreman.metrics(ANN, job.id)

    return run(work())


def without_time(metrics: Any) -> Any:
    return [
        {name: value for name, value in row.items() if name not in ("time", "tokens_per_second")}
        for row in metrics
    ]


# --- what is said -----------------------------------------------------------------------------


class Rounding(CountingTrainer):
    """Its model has said something else than what is served: from the token `at` on, of so many answers."""

    def __init__(self, at: int, answers: int) -> None:
        super().__init__()
        self.at, self.answers = at, answers

    def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
        for item in super().train(task, stopped):
            if isinstance(item, Trained):
                said = [
                    (*each[: self.at], 0, *each[self.at + 1 :]) if n < self.answers else each
                    for n, each in enumerate(item.continuations)
                ]
                item = replace(item, continuations=tuple(said))
            yield item


@pytest.mark.parametrize(
    ("at", "answers", "held_back", "level", "words"),
    [
        (0, 0, 0.25, "info", ["4 prompts that were held back", "all 128 tokens", "is what was trained"]),
        (0, 0, 0.0, "info", ["Asked 4 prompts of the data"]),
        (0, 0, 0.03, "info", ["Asked 1 prompt that was held back"]),
        (5, 3, 0.25, "info", ["47 of 128 tokens", "(1 of 4 never does)", "judge it by its answers"]),
        (0, 4, 0.25, "warn", ["nothing that the trainer's own says", "tell the operator"]),
    ],
)
def test_how_what_is_served_compares_is_told_with_what_it_means(
    tmp_path: Path, at: int, answers: int, held_back: float, level: str, words: list[str]
) -> None:
    async def work() -> None:
        foreman = rooms_with_rows(tmp_path, trainer=Rounding(at, answers)).foreman
        job = await foreman.create(ANN, replace(order(), validation_split=held_back))
        assert (await over(foreman, ANN, job.id)).status == "succeeded"
        (told,) = (event for event in await foreman.events(ANN, job.id) if event.message.startswith("Asked "))
        assert told.level == level
        for each in words:
            assert each in told.message

    run(work())


# --- stops ------------------------------------------------------------------------------------


def test_a_paused_job_goes_on_where_it_was_and_makes_the_same_adapter(tmp_path: Path) -> None:
    wanted, curve = reference(tmp_path / "a")

    async def paused() -> None:
        trainer = Gated(7)
        rooms = rooms_with_rows(tmp_path / "b", trainer=trainer)
        foreman = rooms.foreman
        job = await foreman.create(ANN, order())
        await until(lambda: trainer.at == 7)
        job = await foreman.pause(ANN, job.id)
        assert (job.status, job.phase) == ("paused", "paused")
        assert [kept.step for kept in await foreman.checkpoints(ANN, job.id)] == [7]
        assert (await foreman.pause(ANN, job.id)).status == "paused"
        trainer.let.release(1000)
        assert (await foreman.resume(ANN, job.id)).status == "queued"
        with pytest.raises(Conflict, match="not paused"):
            await foreman.resume(ANN, job.id)
        job = await over(foreman, ANN, job.id)
        assert (job.status, job.resumed, job.resumed_from) == ("succeeded", 1, 7)
        assert job.adapter == wanted.adapter
        assert without_time(await foreman.metrics(ANN, job.id)) == without_time(curve)
        assert trainer.tasks[0].resume is None
        assert trainer.tasks[1].resume is not None

    run(paused())


def test_jobs_are_cancelled_wherever_they_are_and_then_are_over(tmp_path: Path) -> None:
    async def work() -> None:
        trainer = Gated(3)
        foreman = rooms_with_rows(tmp_path, trainer=trainer).foreman
        first = await foreman.create(ANN, order())
        await until(lambda: trainer.at == 3)
        second = await foreman.create(ANN, order())
        assert (await foreman.cancel(ANN, second.id)).status == "cancelled"
        third = await foreman.create(ANN, order())
        await foreman.pause(ANN, third.id)
        assert (await foreman.cancel(ANN, third.id)).status == "cancelled"
        job = await foreman.cancel(ANN, first.id)
        assert (job.status, job.phase, job.fine_tuned_model) == ("cancelled", "done", None)
        assert job.finished_at is not None
        for wish in (foreman.cancel, foreman.pause, foreman.resume):
            with pytest.raises(Conflict) as refused:
                await wish(ANN, first.id)
            assert refused.value.status == 400
        assert [each.status for each in (await foreman.list(ANN)).jobs] == ["cancelled"] * 3
        assert (await foreman.events(ANN, first.id))[-1].message == "The job was cancelled."

    run(work())


def test_a_job_that_takes_too_long_fails_and_keeps_its_checkpoints(tmp_path: Path) -> None:
    async def work() -> None:
        # It comes to its fourth step at once, and stays there until it is told to stop.
        foreman = rooms_with_rows(tmp_path, trainer=Gated(4), max_training_seconds=1).foreman
        job = await foreman.create(ANN, order(epochs=100, checkpoint_steps=3))
        job = await over(foreman, ANN, job.id)
        assert job.status == "failed"
        assert job.error is not None
        assert job.error.code == "time_limit"
        assert await foreman.checkpoints(ANN, job.id)

    run(work())


class Dying(CountingTrainer):
    """Its process dies at these steps."""

    def __init__(self, *steps: int, code: str = "training_process_died") -> None:
        super().__init__()
        self.steps = list(steps)
        self.code = code

    def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
        for item in super().train(task, stopped):
            if isinstance(item, Progress) and self.steps and item.step == self.steps[0]:
                self.steps.pop(0)
                raise TrainingFailed("It died.", self.code)
            yield item


def test_a_training_whose_process_dies_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """S-26: the server is not told to; the curve and the adapter are those of a quiet life."""
    wanted, curve = reference(tmp_path / "a", checkpoint_steps=3)

    async def work() -> None:
        trainer = Dying(1, 2, 8, 7, 14)
        foreman = rooms_with_rows(tmp_path / "b", trainer=trainer).foreman
        job = await foreman.create(ANN, order(checkpoint_steps=3))
        job = await over(foreman, ANN, job.id)
        assert (job.status, job.adapter) == ("succeeded", wanted.adapter)
        assert not trainer.steps
        assert without_time(await foreman.metrics(ANN, job.id)) == without_time(curve)

    run(work())


def test_a_checkpoint_that_the_trainer_cannot_use_is_left_for_the_one_before(tmp_path: Path) -> None:
    wanted, _ = reference(tmp_path / "a", checkpoint_steps=3)

    class Picky(Dying):
        def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
            if task.resume is not None and b'"step": "9"' in task.resume:
                raise TrainingFailed("No.", "snapshot_unusable")
            yield from super().train(task, stopped)

    async def work() -> None:
        foreman = rooms_with_rows(tmp_path / "b", trainer=Picky(10)).foreman
        job = await foreman.create(ANN, order(checkpoint_steps=3))
        job = await over(foreman, ANN, job.id)
        assert (job.status, job.adapter, job.resumed_from) == ("succeeded", wanted.adapter, 6)

    run(work())


@pytest.mark.parametrize(
    ("trainer", "code"),
    [(Dying(2, 2, 2, 2), "training_process_died"), (Dying(2, code="out_of_memory"), "out_of_memory")],
)
def test_a_training_that_dies_again_and_again_is_given_up(tmp_path: Path, trainer: Dying, code: str) -> None:
    async def work() -> None:
        foreman = rooms_with_rows(tmp_path, trainer=trainer).foreman
        job = await over(foreman, ANN, (await foreman.create(ANN, order())).id)
        assert job.error is not None
        assert (job.status, job.error.code) == ("failed", code)

    run(work())


# --- turns ------------------------------------------------------------------------------------


def test_tenants_take_turns_and_one_trains_at_a_time(tmp_path: Path) -> None:
    trained: list[int] = []

    class Watching(CountingTrainer):
        inside = 0

        def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
            self.inside += 1
            assert self.inside == 1
            trained.append(task.recipe.seed)
            gate.acquire()
            yield from super().train(task, stopped)
            self.inside -= 1

    gate = threading.Semaphore(0)

    async def work() -> None:
        foreman = rooms_with_rows(tmp_path, trainer=Watching()).foreman
        ann = [await foreman.create(ANN, order(seed=seed)) for seed in (1, 2, 3, 4)]
        await until(lambda: trained == [1])
        ben = [await foreman.create(BEN, order(seed=seed)) for seed in (11, 12)]
        await until(lambda: all(live.job.status != "validating_files" for live in foreman.line.live.values()))
        gate.release(6)
        for tenant, jobs in ((ANN, ann), (BEN, ben)):
            for job in jobs:
                assert (await over(foreman, tenant, job.id)).status == "succeeded"
        assert trained == [1, 11, 2, 12, 3, 4]

    run(work())


def test_fifty_jobs_at_once_are_taken_or_refused_and_none_is_lost(tmp_path: Path) -> None:
    """S-25: 50 concurrent submits of two tenants; those that were taken become models of their own."""

    async def work() -> None:
        rooms = rooms_with_rows(tmp_path, max_jobs_each=6, max_jobs_waiting=100)
        foreman, orders = rooms.foreman, [order(seed=seed) for seed in range(25)]
        told = await asyncio.gather(
            *(foreman.create(tenant, each) for each in orders for tenant in (ANN, BEN)),
            return_exceptions=True,
        )
        taken = [each for each in told if isinstance(each, Job)]
        refused = [each for each in told if not isinstance(each, Job)]
        assert len(taken) >= 12
        assert all(isinstance(each, RateLimited) and each.code == "too_many_jobs" for each in refused)
        models = set()
        for tenant in (ANN, BEN):
            listed = (await foreman.list(tenant)).jobs
            assert len({job.number for job in listed}) == len(listed)
            for job in listed:
                models.add((await over(foreman, tenant, job.id)).fine_tuned_model)
        assert len(models) == len(taken)
        assert None not in models

    run(work())


def test_beyond_what_may_wait_there_is_503_for_others_too(tmp_path: Path) -> None:
    async def work() -> None:
        trainer = Gated()
        foreman = rooms_with_rows(tmp_path, trainer=trainer, max_jobs_waiting=1).foreman
        await foreman.create(ANN, order())
        await foreman.create(BEN, order())
        with pytest.raises(Busy, match="are waiting already"):
            await foreman.create(CAROL, order())
        trainer.let.release(1000)

    run(work())


def test_the_oldest_that_are_over_make_room_for_new_ones(tmp_path: Path) -> None:
    async def work() -> None:
        rooms = rooms_with_rows(tmp_path, max_jobs_kept=2)
        ids = []
        for _ in range(3):
            job = await rooms.foreman.create(ANN, order())
            ids.append((await over(rooms.foreman, ANN, job.id)).id)
        assert [job.id for job in (await rooms.foreman.list(ANN)).jobs] == ids[:0:-1]
        assert not [name for name in rooms.store.names(ANN, "checkpoints") if name.startswith(ids[0])]

    run(work())


def test_the_tenants_key_is_held_as_long_as_it_has_live_work_and_no_longer(tmp_path: Path) -> None:
    """S-33: by the memory of this process, where every object that holds the key is looked for."""

    def holders(tenant_id: str) -> int:
        gc.collect()
        return sum(type(each) is Tenant and each.id == tenant_id for each in gc.get_objects())

    async def work() -> None:
        trainer = Gated(2)
        foreman = rooms_with_rows(tmp_path, trainer=trainer).foreman
        fresh = Tenant.of("dora-dora-dora-dora")
        put_rows(foreman._store, fresh)
        job = await foreman.create(fresh, order())
        name = fresh.id
        del fresh
        await until(lambda: trainer.at == 2)
        assert holders(name) >= 1
        await foreman.cancel(Tenant.of("dora-dora-dora-dora"), job.id)
        await until(lambda: foreman.shift.resting)
        await until(lambda: holders(name) == 0)  # a thread that has done its part may still hold it

    # A frozen value of slots is not tracked by the collector unless it holds what is.
    if not gc.is_tracked(Tenant.of("somebody-somebody-else")):
        pytest.skip("this Python does not track such values")
    run(work())


# --- restarts ---------------------------------------------------------------------------------


def test_a_job_goes_on_after_a_restart_when_its_tenant_is_seen(tmp_path: Path) -> None:
    """S-12, S-26: told to stop, the foreman has a checkpoint written; others' asking does nothing."""
    wanted, curve = reference(tmp_path / "a")

    async def first() -> str:
        trainer = Gated(5)
        foreman = rooms_with_rows(tmp_path / "b", trainer=trainer).foreman
        job = await foreman.create(ANN, order())
        waiting = await foreman.create(ANN, order(seed=1))
        await until(lambda: trainer.at == 5)
        await asyncio.to_thread(foreman.close)
        assert not foreman.line.live
        assert waiting.id != job.id
        return job.id

    async def second(job_id: str) -> None:
        foreman = rooms_with_rows(tmp_path / "b").foreman
        foreman.seen(BEN)
        assert not foreman.line.live
        foreman.seen(ANN)
        job = await over(foreman, ANN, job_id)
        assert (job.status, job.adapter) == ("succeeded", wanted.adapter)
        assert (job.resumed, job.resumed_from) == (1, 5)
        assert without_time(await foreman.metrics(ANN, job.id)) == without_time(curve)
        said = " ".join(event.message for event in await foreman.events(ANN, job.id))
        assert "The enclave is stopping" in said
        assert "goes on from the checkpoint at step 5" in said
        for each in (await foreman.list(ANN)).jobs:
            assert (await over(foreman, ANN, each.id)).status == "succeeded"

    run(second(run(first())))


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_is_taken(tmp_path: Path) -> None:
    """S-26, S-30."""
    wanted, curve = reference(tmp_path / "a", checkpoint_steps=2)

    async def first() -> str:
        trainer = Gated(9)
        foreman = rooms_with_rows(tmp_path / "b", trainer=trainer).foreman
        job = await foreman.create(ANN, order(checkpoint_steps=2))
        await until(lambda: trainer.at == 9)
        await foreman.pause(ANN, job.id)
        return job.id

    async def second(job_id: str) -> None:
        (path,) = (tmp_path / "b").glob("*/checkpoints/*-00000009")
        os.truncate(path, path.stat().st_size - 1)
        foreman = rooms_with_rows(tmp_path / "b").foreman
        await foreman.resume(ANN, job_id)
        job = await over(foreman, ANN, job_id)
        assert (job.adapter, job.resumed_from) == (wanted.adapter, 8)
        assert without_time(await foreman.metrics(ANN, job.id)) == without_time(curve)
        warned = [event.message for event in await foreman.events(ANN, job.id) if event.level == "warn"]
        assert "The checkpoint at step 9 is damaged; it is left as it is." in warned
        assert path.exists()

    run(second(run(first())))


@pytest.mark.parametrize(("kills", "seed"), [(12, 1), pytest.param(200, 2, marks=pytest.mark.slow)])
def test_a_process_killed_again_and_again_ends_with_the_same_model(
    tmp_path: Path, kills: int, seed: int
) -> None:
    """S-1, S-26, S-27: kill -9 at random moments; each start sends the same create: one job."""
    wanted, curve = reference(tmp_path / "a", **KILLED)
    folder = tmp_path / "b"
    paths = os.pathsep.join(str(ROOT / room) for room in ("", "client_sdk", "attestation", "data"))
    told = subprocess.run(
        [sys.executable, "-m", "tests.kit.jobs", str(folder), str(kills), str(seed)],
        env={"PYTHONPATH": paths, "PATH": os.environ["PATH"]},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-2000:]

    async def look() -> None:
        rooms = rooms_with_rows(folder)
        (job,) = (await rooms.foreman.list(ANN)).jobs
        assert (job.status, job.adapter) == ("succeeded", wanted.adapter)
        assert without_time(await rooms.foreman.metrics(ANN, job.id)) == without_time(curve)
        assert job.resumed > 0
        assert job.fine_tuned_model is not None
        adapter = rooms.catalogue.adapter(ANN, job.fine_tuned_model)
        assert adapter.manifest.weights_sha256 == wanted.adapter
        assert len(rooms.store.names(ANN, "models")) == 1
        assert list(folder.glob("*/*/.*.part")) == []

    run(look())


# --- full disks -------------------------------------------------------------------------------


class Disk:
    """A disk that is full after so many bytes: every write of the store goes through here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1 << 40
        self._write = sealed._write
        monkeypatch.setattr(sealed, "_write", self)

    def __call__(self, descriptor: int, data: bytes) -> None:
        if len(data) > self.left:
            self._write(descriptor, data[: self.left])
            self.left = 0
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= len(data)
        self._write(descriptor, data)


@pytest.mark.parametrize("room", [*range(14), 16, 20, 24, 30])
def test_a_full_disk_ends_the_job_with_its_reason_and_leaves_everything_whole(
    tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-28: at every write of a job, a KiB later each time; the model before goes on serving."""

    async def work() -> None:
        disk = Disk(monkeypatch)
        rooms = rooms_with_rows(tmp_path)
        foreman = rooms.foreman
        await rooms.catalogue.open()
        before = await over(foreman, ANN, (await foreman.create(ANN, order())).id)
        assert before.status == "succeeded"
        disk.left = room << 10
        try:
            job = await foreman.create(ANN, order(seed=1, checkpoint_steps=2))
        except Failed as refusal:
            if (refusal.code, refusal.status) != ("no_space", 507):
                raise
            assert len((await foreman.list(ANN)).jobs) == 1
        else:
            job = await over(foreman, ANN, job.id)
            if job.status != "succeeded":
                assert job.error is not None
                assert (job.status, job.error.code) == ("failed", "no_space")
        assert before.fine_tuned_model is not None
        assert rooms.catalogue.adapter(ANN, before.fine_tuned_model).manifest.weights_sha256 == before.adapter
        disk.left = 1 << 40
        after = await over(foreman, ANN, (await foreman.create(ANN, order(seed=2))).id)
        assert after.status == "succeeded"
        listed = (await foreman.list(ANN)).jobs
        rooms.desk.close()
        # What a restart finds is what was told.
        again = Store(tmp_path)
        assert list(tmp_path.glob("*/*/.*.part")) == []
        for kind in ("jobs", "job-events", "checkpoints", "models", "adapters"):
            for name in again.names(ANN, kind):
                again.read(ANN, kind, name)
        kept = rooms_with_rows(tmp_path).foreman
        assert [job.status for job in (await kept.list(ANN)).jobs] == [job.status for job in listed]

    run(work())


# --- keys, deletion, retention ----------------------------------------------------------------


def test_one_key_makes_one_job_however_often_it_comes(tmp_path: Path) -> None:
    """S-1: twenty at once, then again; another body is refused, another tenant's key is another."""

    async def work() -> None:
        foreman = rooms_with_rows(tmp_path).foreman
        key = Key.of("key", "body")
        jobs = await asyncio.gather(*(foreman.create(ANN, order(), key=key) for _ in range(20)))
        assert len({job.id for job in jobs}) == 1
        job = await over(foreman, ANN, jobs[0].id)
        assert (await foreman.create(ANN, order(), key=key)).id == job.id
        assert len((await foreman.list(ANN)).jobs) == 1
        with pytest.raises(Conflict, match="another body"):
            await foreman.create(ANN, order(), key=Key.of("key", "other"))
        assert (await foreman.create(BEN, order(), key=key)).id != job.id

    run(work())


def test_a_crash_between_the_key_and_its_job_makes_the_job_when_it_comes_again(tmp_path: Path) -> None:
    """S-1, S-27."""

    async def work() -> None:
        foreman = rooms_with_rows(tmp_path).foreman
        key = Key.of("key", "body")
        foreman.book.write_key(ANN, key.name, "ftjob-" + "1" * 32, key.asked)
        job = await foreman.create(ANN, order(), key=key)
        assert (await foreman.create(ANN, order(), key=key)).id == job.id
        assert len((await foreman.list(ANN)).jobs) == 1

    run(work())


def test_deleting_a_job_removes_what_is_its_own_and_leaves_its_model(tmp_path: Path) -> None:
    async def work() -> None:
        trainer = Gated()
        rooms = rooms_with_rows(tmp_path, trainer=trainer)
        foreman = rooms.foreman
        job = await foreman.create(ANN, order())
        with pytest.raises(Conflict, match="Cancel it first"):
            await foreman.delete(ANN, job.id)
        trainer.let.release(1000)
        job = await over(foreman, ANN, job.id)
        with pytest.raises(NotFound):
            await foreman.delete(BEN, job.id)
        removed = await foreman.delete(ANN, job.id)
        assert removed == {"jobs": 1, "job-events": 1, "checkpoints": 2, "receipts": 0, "files": 1}
        with pytest.raises(NotFound):
            await foreman.find(ANN, job.id)
        assert job.fine_tuned_model is not None
        assert isinstance(rooms.catalogue.adapter(ANN, job.fine_tuned_model), Adapter)

    run(work())


@pytest.mark.parametrize("how", ["deleted", "made room", "too old"])
def test_a_checkpoint_that_was_asked_leaves_the_memory_with_its_job(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that the job made stays, and so do another job's checkpoints."""

    async def work() -> None:
        rooms = rooms_with_rows(tmp_path, max_jobs_kept=2, retention_days=30, max_tuned=8)
        foreman, catalogue = rooms.foreman, rooms.catalogue
        await catalogue.open()

        async def asked(name: str | None) -> Tuning:
            assert name is not None
            tuning = (await catalogue.find(ANN, name)).tuning
            assert tuning is not None
            await rooms.desk.tuned("org/echo", tuning)
            return tuning

        def held(tuning: Tuning) -> bool:
            return rooms.desk.holds("org/echo", tuning.version)

        jobs = [await over(foreman, ANN, (await foreman.create(ANN, order())).id) for _ in range(2)]
        names = [checkpoint_name("org/echo", "", job.id, 10) for job in jobs]
        (old, new), model = [await asked(name) for name in names], await asked(jobs[0].fine_tuned_model)
        assert (held(old), held(new), held(model)) == (True, True, True)
        if how == "deleted":
            await foreman.delete(ANN, jobs[0].id)
        elif how == "made room":
            await foreman.create(ANN, order())
        else:
            foreman.book.write(ANN, replace(jobs[0], finished_at=int(time.time()) - 31 * 86400))
            foreman._arrivals.forget()
            await foreman.list(ANN)
        with pytest.raises(NotFound):
            await foreman.find(ANN, jobs[0].id)
        await until(lambda: not held(old))
        assert (held(new), held(model)) == (True, True)
        with pytest.raises(NotFound):
            await asked(names[0])

    run(work())


def test_everything_of_a_tenant_goes_and_nothing_of_another(tmp_path: Path) -> None:
    async def work() -> None:
        trainer = Gated(1000)
        rooms = rooms_with_rows(tmp_path, trainer=trainer)
        foreman = rooms.foreman
        done = [await over(foreman, who, (await foreman.create(who, order())).id) for who in (ANN, BEN)]
        trainer.let = threading.Semaphore(4)
        await foreman.create(ANN, order())
        await until(lambda: trainer.at == 4)
        removed = await foreman.forget(ANN)
        assert (removed["cancelled-jobs"], removed["jobs"], removed["files"]) == (1, 2, 2)
        files = {path.parent.parent.name for path in tmp_path.rglob("*") if path.is_file()}
        assert files == {BEN.id}
        assert (await foreman.list(ANN)).jobs == ()
        assert (await foreman.find(BEN, done[1].id)).status == "succeeded"

    run(work())


def test_old_jobs_go_when_their_tenant_is_seen_unless_the_clock_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-30: a clock that jumps within a boot, or by decades, removes nothing."""

    async def made() -> str:
        foreman = rooms_with_rows(tmp_path).foreman
        return (await over(foreman, ANN, (await foreman.create(ANN, order())).id)).id

    job_id = run(made())
    real = time.time

    async def there(days: float, *, jumps: bool = False) -> bool:
        if not jumps:
            monkeypatch.setattr("time.time", lambda: real() + days * 86400)
        foreman = rooms_with_rows(tmp_path, retention_days=30).foreman
        if jumps:
            monkeypatch.setattr("time.time", lambda: real() + days * 86400)
        found = any(job.id == job_id for job in (await foreman.list(ANN)).jobs)
        monkeypatch.setattr("time.time", real)
        return found

    assert run(there(29))
    assert run(there(31, jumps=True))
    assert run(there(40 * 365))
    assert run(there(-400))
    assert not run(there(31))


# --- what is asked of a job that is not one's own ---------------------------------------------


def test_a_job_paused_before_its_rows_were_read_has_its_options_decided_when_it_goes_on(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        rooms = rooms_with_rows(tmp_path)
        open_order = replace(order(), left_open=("epochs", "batch_size"))
        job_id = "ftjob-" + "5" * 32
        job = Job(id=job_id, number=1, order=open_order, created_at=int(time.time()), status="paused")
        rooms.foreman.book.write(ANN, job)
        await rooms.foreman.resume(ANN, job.id)
        job = await over(rooms.foreman, ANN, job.id)
        assert (job.status, job.order.left_open) == ("succeeded", ())
        assert (job.order.recipe.epochs, job.order.recipe.batch_size) == (9, 4)
        assert job.progress["total_steps"] == 90

    run(work())


def test_another_tenants_job_is_not_there_for_any_wish(tmp_path: Path) -> None:
    """S-22: live or over, and for every method."""

    async def work() -> None:
        trainer = Gated()
        foreman: Foreman = rooms_with_rows(tmp_path, trainer=trainer).foreman
        job = await foreman.create(ANN, order())
        wishes: list[Any] = [
            *(foreman.find, foreman.cancel, foreman.pause, foreman.resume, foreman.delete),
            *(foreman.events, foreman.checkpoints, foreman.metrics, foreman.receipt),
        ]
        for _ in range(2):
            for wish in wishes:
                with pytest.raises(NotFound) as theirs:
                    await wish(BEN, job.id)
                with pytest.raises(NotFound) as nobodys:
                    await wish(BEN, "ftjob-" + "0" * 32)
                assert theirs.value.body() == nobodys.value.body()
            with pytest.raises(NotFound):
                async for _event in foreman.follow(BEN, job.id):
                    pass
            trainer.let.release(1000)
            await over(foreman, ANN, job.id)

    run(work())


def test_a_file_that_is_gone_by_its_turn_fails_the_job_with_words(tmp_path: Path) -> None:
    async def work() -> None:
        foreman = rooms_with_rows(tmp_path).foreman
        gone = replace(order(), training=Source("file-gone", "jsonl"))
        job = await over(foreman, ANN, (await foreman.create(ANN, gone)).id)
        assert job.error is not None
        assert (job.status, job.error.code, job.error.param) == ("failed", "file_not_found", "training_file")

    run(work())
