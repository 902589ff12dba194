"""The book of jobs: what is written is read again, what is damaged is said, and nothing is half there."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enclave_app.jobs import MOVES, STATUSES, Failure, Job, Order, Source, move
from enclave_app.jobs.book import SEGMENT, Book
from enclave_app.refusals import Conflict, Failed, NotFound
from enclave_app.store import Store
from enclave_app.tenants import Tenant
from enclave_app.training import Recipe, Snapshot, Task

ANN, BEN = Tenant.of("ann-ann-ann-ann-ann"), Tenant.of("ben-ben-ben-ben-ben")
ID = "ftjob-" + "0123456789abcdef" * 2
OTHER = "ftjob-" + "fedcba9876543210" * 2
ORDER = Order(
    model="org/base",
    training=Source("file-1", "jsonl", "00" * 32),
    recipe=Recipe(targets=("q_proj", "v_proj"), most_steps=7),
    validation=Source("file-2", "csv"),
    metadata={"a": "b"},
    hyperparameters={"n_epochs": 3},
)
JOB = Job(id=ID, number=1, order=ORDER, created_at=1_000_000)
TASK = Task(examples=(), recipe=ORDER.recipe, template="text", template_digest="d")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def book(store: Store) -> Book:
    return Book(store)


def again(store: Store) -> Book:
    """The book after a restart."""
    return Book(Store(store.root))


def damage(store: Store, kind: str, name: str) -> None:
    (path,) = store.root.glob(f"*/{kind}/{name}")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def snapshot(step: int, state: bytes = b"state") -> Snapshot:
    return Snapshot(step, 9, 1 / (step + 1), None, state + str(step).encode())


# --- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), list(itertools.product(STATUSES, STATUSES)))
def test_a_job_moves_as_the_table_says_and_not_otherwise(start: Any, end: Any) -> None:
    job = replace(JOB, status=start)
    if end in MOVES.get(start, ()):
        assert move(job, end).status == end
    else:
        with pytest.raises(Conflict) as refused:
            move(job, end)
        assert (refused.value.code, refused.value.status) == ("wrong_status", 400)


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_what_is_over_never_changes(status: Any) -> None:
    assert status not in MOVES
    assert replace(JOB, status=status).over


@pytest.mark.parametrize(
    "job",
    [
        JOB,
        replace(JOB, order=replace(ORDER, validation=None, metadata=None)),
        replace(JOB, order=replace(ORDER, left_open=("epochs", "learning_rate"))),
        replace(
            JOB,
            status="failed",
            error=Failure("words", "code", "param", 507),
            progress={"step": 1},
            data={"rows": [1]},
            resumed=2,
            resumed_from=4,
        ),
    ],
)
def test_a_job_is_read_as_it_was_written(job: Job) -> None:
    assert Job.parse(job.encode()) == job


def test_of_a_record_from_before_options_could_wait_nothing_is_open() -> None:
    fields = json.loads(JOB.encode())
    del fields["order"]["left_open"]
    assert Job.parse(json.dumps(fields).encode()) == JOB


def test_a_record_that_still_names_its_model_is_read_as_any_other() -> None:
    fields = json.loads(JOB.encode())
    assert "model_id" not in fields
    assert Job.parse(json.dumps({**fields, "model_id": "0" * 12}).encode()) == JOB


def test_a_jobs_time_does_not_go_back_with_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """S-30: the clock jumps back by years."""
    monkeypatch.setattr("time.time", lambda: 5.0)
    assert JOB.now() == JOB.created_at


# --- records ----------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first_for_their_tenant_alone(book: Book) -> None:
    """S-30: also where the clock says that the later one is older. S-22: nobody sees another's."""
    book.write(ANN, JOB)
    book.write(ANN, replace(JOB, id=OTHER, number=2, created_at=5))
    assert [job.id for job in book.jobs(ANN).jobs] == [OTHER, ID]
    assert book.job(ANN, ID) == JOB
    assert book.jobs(BEN).jobs == ()
    for tenant, name in ((BEN, ID), (ANN, "ftjob-none"), (ANN, "../jobs")):
        with pytest.raises(NotFound, match="no job of this id"):
            book.job(tenant, name)


def test_a_damaged_record_is_said_and_left_and_the_others_are_there(store: Store, book: Book) -> None:
    """S-30: nothing that cannot be read is taken for missing, or removed."""
    book.write(ANN, JOB)
    book.write(ANN, replace(JOB, id=OTHER, number=2))
    damage(store, "jobs", OTHER)
    for seen in (again(store), again(store)):
        listed = seen.jobs(ANN)
        assert ([job.id for job in listed.jobs], listed.damaged) == ([ID], (OTHER,))
        with pytest.raises(Failed, match="left as it is") as failed:
            seen.job(ANN, OTHER)
        assert failed.value.code == "damaged_job"
    last = again(store)
    last.forget(ANN, OTHER)
    assert last.jobs(ANN).damaged == ()


@pytest.mark.parametrize("cut", [0, 1, 40, 70])
def test_a_record_that_was_cut_short_is_damaged_too(store: Store, book: Book, cut: int) -> None:
    """S-30: the file is truncated."""
    book.write(ANN, JOB)
    (path,) = store.root.glob("*/jobs/*")
    os.truncate(path, cut)
    assert again(store).jobs(ANN).damaged == (ID,)


def test_an_idempotency_key_tells_its_job_and_what_was_asked(store: Store, book: Book) -> None:
    key = "ab" * 32
    assert book.keyed(ANN, key) is None
    book.write_key(ANN, key, ID, "asked")
    assert again(store).keyed(ANN, key) == (ID, "asked")
    assert again(store).keyed(BEN, key) is None
    damage(store, "job-keys", key)
    with pytest.raises(Failed, match="Send another key"):
        again(store).keyed(ANN, key)


# --- events -----------------------------------------------------------------------------------


def test_events_come_back_in_order_over_segments_and_restarts(store: Store) -> None:
    told = []
    for part in range(5):
        diary = again(store).diary(ANN, ID)
        for step in range(SEGMENT // 2 - 7):
            told.append(diary.note(f"{part} {step}", data={"step": part * 1000 + step}))
        diary.flush()
    events = again(store).events(ANN, ID)
    assert events == told
    assert len({event.id for event in events}) == len(events)
    assert sorted(event.id for event in events) == [event.id for event in events]
    assert len(list(store.root.glob("*/job-events/*"))) == 3


def test_an_events_time_does_not_go_back(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-30: over a restart as well."""
    book.diary(ANN, ID).note("before")
    diary = book.diary(ANN, ID)
    first = diary.note("one")
    diary.flush()
    monkeypatch.setattr("time.time", lambda: 5.0)
    assert diary.note("two").created_at == first.created_at
    assert book.diary(ANN, ID).note("three").created_at == first.created_at


@pytest.mark.parametrize("step", [0, 1, 300, 511, 512, 700, 999])
def test_figures_after_a_checkpoint_are_dropped_and_told_again_once(store: Store, step: int) -> None:
    """S-26: the curve of a training that goes on has each step once, and messages stay."""
    diary = again(store).diary(ANN, ID)
    for at in range(1, 800):
        diary.note(f"step {at}", data={"step": at})
        if at % 100 == 0:
            diary.note(f"checkpoint {at}")
    diary.flush()
    diary = again(store).diary(ANN, ID)
    last = again(store).events(ANN, ID)[-1]
    assert diary.drop_figures_after(step) == max(0, 799 - step)
    assert diary.drop_figures_after(step) == 0
    new = [diary.note(f"step {at}", data={"step": at}) for at in range(step + 1, 900)]
    diary.flush()
    events = again(store).events(ANN, ID)
    assert [event.step for event in events if event.step is not None] == list(range(1, 900)) or step == 999
    assert sum(event.step is None for event in events) == 7
    assert all(event.number > last.number for event in new)
    assert len({event.id for event in events}) == len(events)


def test_a_damaged_segment_is_said_and_left_and_writing_goes_on(store: Store) -> None:
    """S-30: of three segments the middle one, then the last one."""
    diary = again(store).diary(ANN, ID)
    for at in range(2 * SEGMENT + 10):
        diary.note(f"{at}")
    diary.flush()
    damage(store, "job-events", f"{ID}-0001")
    damage(store, "job-events", f"{ID}-0002")
    before = {path: path.read_bytes() for path in store.root.glob("*/job-events/*")}
    diary = again(store).diary(ANN, ID)
    diary.note("still here")
    diary.flush()
    events = again(store).events(ANN, ID)
    assert [event.message for event in events[:SEGMENT]] == [str(at) for at in range(SEGMENT)]
    assert [event.level for event in events[SEGMENT:]] == ["warn", "warn", "info"]
    assert events[-1].message == "still here"
    assert len({event.id for event in events}) == len(events)
    assert all(path.read_bytes() == data for path, data in before.items())


# --- checkpoints ------------------------------------------------------------------------------


def test_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_named(store: Store, book: Book) -> None:
    """S-26, S-30: a newer one that is damaged or cut short does not count, and stays where it is."""
    assert book.newest(ANN, ID) == (None, [])
    large = os.urandom(700_000)
    for step in (3, 6, 9):
        book.add_checkpoint(ANN, JOB, TASK, snapshot(step, large), "base")
    assert again(store).newest(ANN, ID) == (snapshot(9, large), [])
    damage(store, "checkpoints", f"{ID}-00000009")
    assert again(store).newest(ANN, ID) == (snapshot(6, large), [9])
    (path,) = store.root.glob(f"*/checkpoints/{ID}-00000006")
    os.truncate(path, path.stat().st_size - 300_000)
    assert again(store).newest(ANN, ID) == (snapshot(3, large), [9, 6])
    assert len(list(store.root.glob("*/checkpoints/*"))) == 3
    assert again(store).newest(BEN, ID) == (None, [])


def test_all_but_the_last_few_checkpoints_go_and_what_is_spared_stays(book: Book) -> None:
    for step in range(1, 7):
        book.add_checkpoint(ANN, JOB, TASK, snapshot(step), "base")
    book.thin(ANN, ID, 2, frozenset([1]))
    assert [kept.step for kept in book.checkpoints(ANN, ID)] == [6, 5, 1]
    assert book.checkpoint(ANN, ID, 5) == snapshot(5)


def test_what_belongs_to_a_job_goes_with_it_and_nothing_else_does(store: Store, book: Book) -> None:
    for job in (JOB, replace(JOB, id=OTHER, number=2)):
        book.write_key(ANN, job.id[6:] * 2, job.id, "")
        book.write(ANN, job)
        diary = book.diary(ANN, job.id)
        diary.note("one")
        diary.flush()
        book.add_checkpoint(ANN, job, TASK, snapshot(1), "base")
        book.write_receipt(ANN, job.id, b"receipt")
    assert book.forget(ANN, ID) == {"checkpoints": 1, "job-events": 1, "receipts": 1, "jobs": 1}
    kinds = ("jobs", "job-events", "job-keys", "checkpoints", "receipts")
    left = {kind: [path.name for path in store.root.glob(f"*/{kind}/*")] for kind in kinds}
    assert all(len(names) == 1 and OTHER[6:] in names[0] for names in left.values()), left
    assert book.receipt(ANN, OTHER) == b"receipt"
    with pytest.raises(NotFound):
        book.receipt(ANN, ID)
