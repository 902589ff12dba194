"""
An enclave's back room in a process of its own, to be killed: foreman, trainer, store, catalogue; no network.

    python -m tests.soak.shop '{"root": …, "model": …, "job": id or null}'

It takes one order (or goes on with the job that is named), says the job's id, and when the job is over its
status, the model's digest and how often it was gone on with. Each line is JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enclave_app.catalogue import Catalogue
from enclave_app.catalogue import Source as Base
from enclave_app.engines.adapter import Adapter
from enclave_app.engines.desk import Desk
from enclave_app.jobs import Order, Source
from enclave_app.jobs.foreman import Foreman
from enclave_app.jobs.reading import Reading
from enclave_app.models import Model
from enclave_app.prompts import Template
from enclave_app.settings import Settings
from enclave_app.store import Store
from enclave_app.tenants import Tenant
from enclave_app.tokenizer import FolderTokenizer
from enclave_app.training import Progress, Recipe, Snapshot, Stop, Task, Trained, Trainer
from enclave_app.training.sft import SftTrainer
from tests.kit.lessons import by_chance

OWNER = Tenant.of("the-owner-of-the-jobs")
RECIPE = Recipe(
    epochs=20, batch_size=4, rank=4, alpha=8, dropout=0.1, learning_rate=5e-3, checkpoint_steps=8, patience=50
)
ORDER = Order("tiny", Source("by-chance"), RECIPE)


@dataclass(frozen=True, slots=True)
class Rows:
    """The same rows for every order."""

    tokenizer: Any

    def read(self, tenant: Tenant, order: Order, stopped: Callable[[], bool] | None = None) -> Reading:
        return Reading(by_chance(40, 1), by_chance(8, 2), [], Template.TEXT, {})

    def admit(self, order: Order, reading: Reading, *, alone: bool = True) -> dict[str, Any] | None:
        return None

    def digest(self, template: Template) -> str:
        return template.digest(self.tokenizer)

    def start(self, tenant: Tenant, order: Order) -> Adapter | None:
        return None


@dataclass(frozen=True, slots=True)
class Replay:
    """A trainer that says again what another one said, from where it is to go on."""

    said: Sequence[Progress | Snapshot | Trained]

    def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
        at = 0
        for item in self.said:
            if isinstance(item, Snapshot) and item.state == task.resume:
                at = item.step
        for item in self.said:
            if stopped():
                return
            if isinstance(item, Trained) or item.step > at:
                yield item


def shop(root: Path, model: Model, trainer: Trainer | None = None) -> tuple[Foreman, Catalogue, Store]:
    """What works on jobs in an enclave, over this folder."""
    words = FolderTokenizer(model.folder)
    store, settings = Store(root), Settings()

    async def nobody() -> Any:
        raise RuntimeError("nothing is served here")

    base = Base("tiny", nobody, words, model.fingerprint)
    catalogue = Catalogue(base, base, Desk(), store, most_models=100_000)
    trainer = trainer or SftTrainer(model, "cpu")
    foreman = Foreman(settings, store, trainer, Rows(words), catalogue, base=model.fingerprint)
    return foreman, catalogue, store


async def worked(foreman: Foreman, job_id: str | None, told: Callable[[str], None]) -> Any:
    """The job when it is over; a new one where none is named."""
    foreman.open()
    foreman.seen(OWNER)
    if job_id is None:
        job_id = (await foreman.create(OWNER, ORDER)).id
    told(job_id)
    while (job := await foreman.find(OWNER, job_id)).live:
        await asyncio.sleep(0.05)
    return job


def main() -> None:
    asked = json.loads(sys.argv[1])
    foreman, _, _ = shop(Path(asked["root"]), Model.at(Path(asked["model"])))
    job = asyncio.run(
        worked(foreman, asked["job"], lambda job_id: print(json.dumps({"job": job_id}), flush=True))
    )
    print(
        json.dumps(
            {
                "status": job.status,
                "adapter": job.adapter,
                "resumed": job.resumed,
                "error": None if job.error is None else job.error.message,
                "losses": [job.report.get(name) for name in ("first_loss", "last_loss", "steps")],
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
