"""
Fine-tuning jobs without a server: a foreman over the counting trainer, here or in a process to be killed.

    foreman = rooms_with_rows(folder).foreman
    job = await over(foreman, ANN, (await foreman.create(ANN, order())).id)

    python -m tests.kit.jobs FOLDER KILLS SEED      forks, runs the job, kills it, again and again
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from blindbox_data import Form
from enclave_app.api import Rooms
from enclave_app.api.files import File
from enclave_app.jobs import DESCRIPTIONS, FILES, Job, Order, Source
from enclave_app.jobs.foreman import Foreman, Key
from enclave_app.store import Store
from enclave_app.tenants import Tenant
from enclave_app.training import Progress, Recipe, Snapshot, Stop, Task, Trained
from enclave_app.training.counting import CountingTrainer
from tests.kit.rooms import rooms_in

ANN, BEN = Tenant.of("ann-ann-ann-ann-ann"), Tenant.of("ben-ben-ben-ben-ben")
FILE = "file-" + "0" * 32
T = TypeVar("T")
_MADE: list[Rooms] = []
ROWS = [{"question": f"q {n}", "answer": f"a {n}"} for n in range(40)]


DATA = "\n".join(map(json.dumps, ROWS)).encode()
DIGEST = hashlib.sha256(DATA).hexdigest()


def order(*, rows: int = 40, **recipe: Any) -> Order:
    """An order for the file that `put_rows` puts there."""
    recipe.setdefault("batch_size", 4)
    recipe.setdefault("epochs", 2)
    return Order(
        model="org/echo", training=Source(FILE, "jsonl", DIGEST), recipe=Recipe(**recipe), number=rows
    )


def put_rows(store: Store, tenant: Tenant = ANN) -> None:
    """The file, unless it is there."""
    if FILE not in store.names(tenant, DESCRIPTIONS):
        told = File(FILE, len(DATA), int(time.time()), "rows.jsonl", "fine-tune", Form.JSONL, DIGEST)
        store.write(tenant, DESCRIPTIONS, FILE, told.encode())
        store.write(tenant, FILES, FILE, DATA)


def rooms_with_rows(folder: Path, *, trainer: Any = None, **settings: Any) -> Rooms:
    """Rooms in which Ann and Ben have a file each."""
    rooms = rooms_in(folder, trainer=trainer, **settings)
    for tenant in (ANN, BEN):
        put_rows(rooms.store, tenant)
    _MADE.append(rooms)
    return rooms


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do the work on an event loop, and close the rooms that were made meanwhile."""

    async def whole() -> T:
        try:
            return await asyncio.wait_for(work, 240)
        finally:
            for rooms in _MADE:
                await asyncio.to_thread(rooms.foreman.close)
                rooms.desk.close()
            _MADE.clear()
            await asyncio.sleep(0.02)  # for the engines to be gone before their loop is

    return asyncio.run(whole())


async def over(foreman: Foreman, tenant: Tenant, job_id: str, seconds: float = 120) -> Job:
    """The job, once the enclave has no more work with it."""
    until = time.monotonic() + seconds
    while (job := await foreman.find(tenant, job_id)).live and time.monotonic() < until:
        await asyncio.sleep(0.005)
    assert not job.live, job
    return job


KILLED = {"epochs": 12, "checkpoint_steps": 5}
"""The recipe of the job that is killed: 120 steps."""


class _Halting(CountingTrainer):
    """Says through a pipe that it has come to its fortieth step, and stays there."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self._pipe = pipe

    def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
        for item in super().train(task, stopped):
            yield item
            if isinstance(item, Progress) and item.step == 40:
                os.write(self._pipe, b".")
                threading.Event().wait()


async def _work(folder: Path, trainer: CountingTrainer) -> None:
    rooms = rooms_with_rows(folder, trainer=trainer)
    foreman = rooms.foreman
    job = await foreman.create(ANN, order(**KILLED), key=Key.of("the-same-key", "the same order"))
    await over(foreman, ANN, job.id, 200)


def _killed_amidst(folder: Path) -> None:
    """However slow or quick the machine is, one is killed that has trained and is not done."""
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        asyncio.run(_work(folder, _Halting(say)))
        os._exit(1)
    os.close(say)
    os.read(hear, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(hear)


def main(folder: Path, kills: int, seed: int) -> None:
    """Each child goes on where the one before was killed; the last one is left alone."""
    chance, status = random.Random(seed), 1
    _killed_amidst(folder)
    for number in range(kills + 1):
        child = os.fork()  # no thread has been started yet
        if child == 0:
            asyncio.run(_work(folder, CountingTrainer(0.003)))
            os._exit(0)
        if number < kills:
            time.sleep(chance.uniform(0.02, 0.5))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    sys.exit(status != 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
