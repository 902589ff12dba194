"""
Whose turn it is to train: one training at a time, one per tenant, and a short queue.

The training runs on a thread; what it says arrives here as an asynchronous iterator. Whoever stops listening
stops the training. Nothing is published here: until the caller publishes, the previous adapter answers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from ..datasets import Pairs
from ..refusals import Busy, Conflict, Failed, Refusal
from . import Progress, Recipe, Trained, Trainer, TrainingFailed, Unlearnable

_Item = Progress | Trained | BaseException | None


@dataclass(slots=True)
class Workshop:
    """One bench, and the tenants who are at it or wait for it."""

    trainer: Trainer
    most_waiting: int
    _bench: threading.Lock = field(default_factory=threading.Lock)
    _tenants: set[str] = field(default_factory=set)

    def enter(self, tenant: str) -> Place:
        """Take a place in the queue, or say why there is none."""
        if tenant in self._tenants:
            raise Conflict(
                "A fine-tuning of yours is running or waiting already. Wait until it has answered "
                "(or close its connection, which cancels it), then send this one again.",
                code="training_in_progress",
            )
        if len(self._tenants) > self.most_waiting:
            raise Busy(
                f"{len(self._tenants) - 1} trainings are waiting already; try again in a few minutes.",
                code="training_queue_full",
                retry_after=60,
            )
        self._tenants.add(tenant)
        return Place(self, tenant)

    def leave(self, place: Place) -> None:
        """Give the place to the next."""
        self._tenants.discard(place.tenant)

    def work(
        self, data: Pairs, recipe: Recipe, stopped: Callable[[], bool], say: Callable[[_Item], None]
    ) -> None:
        """Wait for the bench and train, on the calling thread. The last thing said is None or an error."""
        try:
            if not self._bench.acquire(blocking=False):
                say(Progress("queued"))
                while not self._bench.acquire(timeout=0.1):
                    if stopped():
                        return
            # Held until the trainer has really ended: there is memory for one.
            try:
                for item in self.trainer.train(data, recipe, stopped):
                    say(item)
            finally:
                self._bench.release()
            say(None)
        except BaseException as error:  # noqa: BLE001 - handed to the listener, who raises it
            say(error)


@dataclass(frozen=True, slots=True)
class Place:
    """A tenant's place in the queue; leaving the `with` block gives it up."""

    workshop: Workshop
    tenant: str

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.workshop.leave(self)

    async def train(self, data: Pairs, recipe: Recipe) -> AsyncGenerator[Progress | Trained, None]:
        """Wait for the bench, train, and hand on what the trainer says; the last item is a `Trained`."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[_Item] = asyncio.Queue()
        gone = threading.Event()

        def say(item: _Item) -> None:
            with suppress(RuntimeError):  # the loop has closed: nobody is left to hear it
                loop.call_soon_threadsafe(heard.put_nowait, item)

        threading.Thread(
            target=self.workshop.work, args=(data, recipe, gone.is_set, say), name="training", daemon=True
        ).start()
        try:
            while (item := await heard.get()) is not None:
                if isinstance(item, Unlearnable):
                    raise Refusal(str(item), code="training_failed") from item
                if isinstance(item, TrainingFailed):
                    raise Failed(str(item), code="training_failed") from item
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            gone.set()
