"""
The bench: one job's run, from its turn to a model that is served, or to a reason why not.

    admitted → training → published → compared → receipt → succeeded

There is one bench: one training at a time, for there is memory for one. What runs writes checkpoints as they
come; whatever is killed goes on from the last one. Whose turn it is, and what is said of a job, is in
`line.py`; what a run stands on comes in through the small protocols here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final, Protocol

from ..engines.adapter import Adapter
from ..prompts import Template
from ..refusals import Refusal
from ..settings import Settings
from ..tenants import Tenant
from ..training import Progress, Snapshot, Stop, Task, Trained, Trainer, TrainingFailed
from . import Failure, Job, JobPhase, Level, Order, move, results_of
from .book import Book
from .curve import Curve, csv_of, curve_of, finite, short
from .line import Line, Live
from .reading import Reading, Stopped
from .receipts import NoReceipt, Signer

log = logging.getLogger("enclave_app")

_DEATHS: Final = 3  # of the training's process without a new checkpoint between, until the job is given up
_FLUSHED: Final = 1.0  # seconds between two writings of events
_COMPARED: Final = 300.0  # seconds that a new model may take to answer the held-back prompts
_PHASES: Final[tuple[JobPhase, ...]] = ("loading", "training", "checking")


class Rows(Protocol):
    """What knows the rows and the model they are for; see `material.py`. All of it raises `Refusal`."""

    def read(self, tenant: Tenant, order: Order, stopped: Callable[[], bool] | None = None) -> Reading: ...

    def settle(self, order: Order, reading: Reading) -> Order:
        """The order, now that its rows are known."""
        ...

    def admit(self, order: Order, reading: Reading, *, alone: bool = True) -> dict[str, Any] | None:
        """The memory that it will take, as it is told; raises where it does not fit beside nothing else."""

    def digest(self, template: Template) -> str: ...

    def start(self, tenant: Tenant, order: Order) -> Adapter | None:
        """The adapter that the order wants to go on from."""


class Models(Protocol):
    """Where trained models are published and asked; see `../catalogue.py`."""

    def room(self, tenant: Tenant, coming: int = 0) -> None: ...

    def publish(
        self, tenant: Tenant, job: str, suffix: str, adapter: Adapter, more: Mapping[str, Any]
    ) -> str: ...

    async def check(
        self,
        tenant: Tenant,
        name: str,
        probes: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
    ) -> dict[str, Any]: ...

    async def prepare(self, tenant: Tenant, name: str) -> float: ...

    async def delete_all(self, tenant: Tenant) -> Sequence[str]: ...

    def let_go(self, tenant: Tenant, job: str) -> None:
        """Take the job's checkpoints from memory; on the event loop."""


Keep = Callable[[Tenant, str, str, bytes], None]
"""Makes bytes a file of the tenant's: its id, what it is called, the bytes."""


class Bench:
    """Where one job at a time is worked on. It runs on the thread that calls it."""

    def __init__(
        self,
        settings: Settings,
        line: Line,
        book: Book,
        trainer: Trainer,
        rows: Rows,
        models: Models,
        *,
        base: str = "",
        signer: Signer | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.trainer = trainer
        self.loop: asyncio.AbstractEventLoop | None = None  # on which models answer; the last that was seen
        self._settings = settings
        self._line = line
        self._book = book
        self._rows = rows
        self._models = models
        self._base = base  # fingerprint of the model that is trained on
        self._signer = signer
        self._keep = keep

    def work(self, live: Live) -> None:
        """From the queue to the end, or to a stop on the way."""
        again = live.job.started_at is not None
        live.began = time.monotonic()
        running = move(live.job, "running", phase="reading", started_at=live.job.started_at or live.job.now())
        self._line.put(live, running)
        self._line.hear(live, Progress("reading"))
        try:
            reading = self._reading(live)
        except Stopped:
            self._stopped(live)
            return
        order = live.job.order
        task = Task(
            examples=reading.examples,
            recipe=order.recipe,
            template=reading.template.value,
            template_digest=self._rows.digest(reading.template),
            validation=reading.validation,
            probes=reading.probes,
            start=self._rows.start(live.tenant, order),
        )
        trained = self._learn(live, task, again)
        if trained is None:
            self._stopped(live)
        else:
            self._publish(live, task, trained)

    def _reading(self, live: Live) -> Reading:
        reading = self._line.held(live)
        if reading is None:
            reading = self._rows.read(live.tenant, live.job.order, lambda: bool(self._stop_of(live)))
        order = self._rows.settle(live.job.order, reading)
        estimate = self._rows.admit(order, reading)
        self._line.put(live, replace(live.job, order=order, data=reading.report, estimate=estimate))
        return reading

    def _learn(self, live: Live, task: Task, again: bool) -> Trained | None:
        """Train, and go on from the last checkpoint as often as the training's process dies."""
        deaths = 0
        while True:
            snapshot, damaged = self._book.newest(live.tenant, live.job.id, live.damaged)
            step = 0 if snapshot is None else snapshot.step
            live.damaged |= frozenset(damaged)
            if again:
                self._go_on(live, snapshot, damaged)
                task = replace(task, resume=None if snapshot is None else snapshot.state)
            live.curve, live.kept_step = Curve(step), step
            del snapshot
            try:
                return self._steps(live, task)
            except TrainingFailed as error:
                if error.code == "snapshot_unusable" and task.resume is not None:
                    live.damaged |= {step}  # the one before may be better
                    self._line.say(live, f"The checkpoint at step {step} cannot be gone on from.", "warn")
                    continue
                deaths = 1 if live.kept_step > step else deaths + 1
                if error.code != "training_process_died" or deaths >= _DEATHS or self._stop_of(live):
                    raise
                self._line.say(live, "The training's process died; another goes on.", "warn")
                again = True

    def _go_on(self, live: Live, snapshot: Snapshot | None, damaged: Sequence[int]) -> None:
        for step in damaged:
            self._line.say(live, f"The checkpoint at step {step} is damaged; it is left as it is.", "warn")
        step = 0 if snapshot is None else snapshot.step
        live.diary.drop_figures_after(step)
        if snapshot is None:
            self._line.say(live, "There is no checkpoint yet: the training begins again.")
            return
        self._line.put(live, replace(live.job, resumed=live.job.resumed + 1, resumed_from=step))
        self._line.say(live, f"The training goes on from the checkpoint at step {step}.")

    def _steps(self, live: Live, task: Task) -> Trained | None:
        """What the trainer says, as it comes; None where it stopped because it was told to."""
        trained: Trained | None = None
        for item in self.trainer.train(task, lambda: self._stop_of(live)):
            if isinstance(item, Trained):
                trained = item
            elif isinstance(item, Snapshot):
                item = replace(item, loss=finite(item.loss), validation_loss=finite(item.validation_loss))
                self._line.say_figures(live, live.curve.take())
                live.diary.flush()  # before the checkpoint: whoever goes on from it has the curve up to it
                self._book.add_checkpoint(live.tenant, live.job, task, item, self._base)
                self._book.thin(live.tenant, live.job.id, self._settings.max_checkpoints, live.damaged)
                live.kept_step = item.step
                self._line.put(live, replace(live.job, ran_seconds=live.ran))
                live.began = time.monotonic()
                if live.curve.tells_of_checkpoint(item.step, item.total_steps):
                    self._line.say(live, f"A checkpoint was written at step {item.step}.")
            else:
                self._progress(live, item)
            if time.monotonic() - live.flushed > _FLUSHED:
                live.diary.flush()
                live.flushed = time.monotonic()
        self._line.say_figures(live, live.curve.take())
        return trained

    def _stop_of(self, live: Live) -> Stop:
        if live.wish:
            return live.wish
        if self._line.closing:
            return "pause"
        most = self._settings.max_training_seconds
        if most and live.ran > most:
            live.late = True
            return "cancel"
        return ""

    def _progress(self, live: Live, at: Progress) -> None:
        phase: JobPhase = at.phase if at.phase in _PHASES else "training"
        at = replace(at, loss=finite(at.loss), validation_loss=finite(at.validation_loss))
        told = {name: value for name, value in asdict(at).items() if name != "phase"}
        if told["validation_loss"] is None:
            told["validation_loss"] = live.job.progress.get("validation_loss")
        if at.total_steps:
            told["percent"] = round(100 * at.step / at.total_steps, 1)
        live.job = replace(live.job, phase=phase, progress=told if at.total_steps else live.job.progress)
        self._line.hear(live, at)
        if at.phase != "training" or not at.step:
            return
        self._line.say_figures(live, live.curve.add(at))

    def _stopped(self, live: Live) -> None:
        """The trainer ended without a result because it was told to."""
        with self._line.lock:
            if live.wish:
                self._line.halt(live, live.wish)
            elif live.late:
                minutes = self._settings.max_training_seconds / 60
                self._line.fail(
                    live,
                    Failure(
                        f"The training took longer than the {minutes:g} minutes that are allowed here. Use "
                        "fewer rows, epochs or steps; its last checkpoint can be gone on from.",
                        "time_limit",
                    ),
                )
            elif self._line.closing:
                job = move(live.job, "queued", phase="queued", ran_seconds=live.ran)
                self._line.finish(
                    live, job, "The enclave is stopping; the job goes on when it is back.", "warn"
                )
            else:
                raise TrainingFailed("The training ended without a result.")

    def _publish(self, live: Live, task: Task, trained: Trained) -> None:
        """The adapter becomes a model, is compared with what was trained, and is signed for."""
        with self._line.lock:
            if live.wish == "cancel":
                self._line.halt(live, "cancel")
                return
        report = short(trained.report)
        job = replace(
            live.job,
            phase="publishing",
            report=report,
            adapter=trained.adapter.manifest.weights_sha256,
            ran_seconds=live.ran,
        )
        live.began = time.monotonic()
        live.job = job
        at = Progress("publishing", job.progress.get("step", 0), job.progress.get("total_steps", 0))
        self._line.hear(live, replace(at, loss=job.progress.get("loss"), eta_seconds=0.0))
        name = self._models.publish(live.tenant, job.id, job.order.suffix, trained.adapter, report)
        live.job = job = replace(job, fine_tuned_model=name, phase="checking")
        self._line.say(live, f"The model {name} is published.")
        live.job = job = replace(job, serving=self._compared(live, name, task, trained))
        job = replace(job, finished_at=job.now(), ran_seconds=live.ran)
        job = replace(job, receipt=self._signed(live, job, task, trained), results=self._kept(live))
        self._line.finish(live, move(job, "succeeded", phase="done"), "The job succeeded.")

    def _compared(self, live: Live, name: str, task: Task, trained: Trained) -> dict[str, Any] | None:
        """The model is made ready, and asked what the trainer has asked it, where it has."""
        loop = self.loop
        if loop is None or not loop.is_running():
            return None

        async def compare() -> dict[str, Any] | None:
            if trained.continuations:
                return await self._models.check(live.tenant, name, task.probes, trained.continuations)
            await self._models.prepare(live.tenant, name)
            return None

        comparing = asyncio.run_coroutine_threadsafe(compare(), loop)
        try:
            told = comparing.result(_COMPARED)
        except Exception as error:  # noqa: BLE001 - the model is there, and its owner is told
            comparing.cancel()
            log.error("comparison: %s", type(error).__name__)
            words = "What is served could not be compared with what was trained; ask it to see."
            self._line.say(live, words, "warn")
            return None
        if told is not None:
            held_back = bool((live.job.data or {}).get("validation_rows"))
            self._line.say(live, *_comparison(told, held_back=held_back))
        return told

    def _signed(self, live: Live, job: Job, task: Task, trained: Trained) -> bool:
        order = job.order
        if self._signer is None or not order.training.sha256:
            return False
        try:
            receipt = self._signer.sign(
                job,
                trained.adapter,
                data_sha256=order.training.sha256,
                validation_sha256=None if order.validation is None else order.validation.sha256,
                start=task.start,
            )
            self._book.write_receipt(live.tenant, job.id, receipt)
        except NoReceipt as error:
            self._line.say(live, str(error), "warn")
            return False
        except Exception as error:  # noqa: BLE001 - the model is there, and its owner is told
            log.error("receipt: %s", type(error).__name__)
            self._line.say(live, "There is no receipt: it could not be signed or kept.", "warn")
            return False
        return True

    def _kept(self, live: Live) -> bool:
        """The curve, as a file."""
        if self._keep is None:
            return False
        try:
            curve = curve_of(self._line.told(live.tenant, live.job.id))
            self._keep(live.tenant, results_of(live.job.id), "step_metrics.csv", csv_of(curve))
        except (Refusal, OSError):
            self._line.say(live, "There is no file of the figures: it could not be written.", "warn")
            return False
        return True


def _comparison(told: Mapping[str, Any], *, held_back: bool) -> tuple[str, Level]:
    """How what is served compares with what was trained, in words, and what its owner may conclude."""
    prompts, tokens, equal = told["prompts"], told["tokens"], told["equal"]
    if not tokens:
        return "Nothing was compared: the trained model says nothing to the prompts that were tried.", "warn"
    where = ("that was" if prompts == 1 else "that were") + " held back" if held_back else "of the data"
    asked = f"Asked {prompts} {'prompt' if prompts == 1 else 'prompts'} {where}, without chance,"
    if equal == tokens:
        return (
            f"{asked} the model that is served says what the trainer's own says, all {tokens} tokens: what "
            "you ask is what was trained.",
            "info",
        )
    if equal:
        return (
            f"{asked} the model that is served says the same as the trainer's own for {equal} of {tokens} "
            f"tokens, counted up to where an answer first differs ({told['same']} of {prompts} "
            f"{'never does' if told['same'] == 1 else 'never do'}). It is rounded otherwise, so that a close "
            "choice may fall otherwise: judge it by its answers.",
            "info",
        )
    return (
        f"{asked} the model that is served says nothing that the trainer's own says ({tokens} tokens were "
        "compared). Ask it before you rely on it, and tell the operator.",
        "warn",
    )
