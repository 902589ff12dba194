"""
A trainer that counts its steps and learns nothing. For trying the app and its jobs where no model is.

It keeps every promise of a `Trainer`: it evaluates, hands out snapshots, pauses, resumes and ends. What it
makes depends on every row in its order, so that a training that lost a step, or took one twice, is seen by
its adapter.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import time
from collections.abc import Callable, Iterator

from ..engines.adapter import Adapter, Manifest
from . import Progress, Snapshot, Stop, Task, Trained, TrainingFailed

_DIGEST = "adapter.digest"


class CountingTrainer:
    """Counts."""

    def __init__(self, seconds_a_step: float = 0.0, model: str = "") -> None:
        self._seconds = seconds_a_step
        self._model = model  # fingerprint; the echo engine's source has none: there are no weights

    def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
        """Count from where the task begins to its end."""
        recipe, rows = task.recipe, len(task.examples)
        an_epoch = -(-rows // recipe.batch_size)
        total = an_epoch * recipe.epochs
        if recipe.most_steps is not None:
            total = min(total, recipe.most_steps)
        step, digest = 0, hashlib.sha256(task.start.weights if task.start is not None else b"").digest()
        if task.resume is not None:
            step, digest = _read(task.resume)
        kept = -1
        while True:
            loss = _loss(step)
            evaluated = bool(task.validation) and _due(step, recipe.evaluate_steps, an_epoch, total)
            yield Progress(
                "training",
                step,
                total,
                loss=loss,
                eta_seconds=(total - step) * self._seconds,
                tokens_per_second=1 / self._seconds if self._seconds else None,
                learning_rate=recipe.learning_rate * (1 - step / max(total, 1)),
                validation_loss=loss / 2 if evaluated else None,
                epoch=step / an_epoch,
            )
            wish = stopped()
            if wish == "pause" or (not wish and _due(step, recipe.checkpoint_steps, an_epoch, total)):
                if step and step != kept:
                    kept = step
                    yield Snapshot(step, total, loss, loss / 2 if evaluated else None, _write(step, digest))
                wish = stopped() or wish
            if wish:
                return
            if step == total:
                break
            digest = _learned(digest, task, step, an_epoch)
            step += 1
            time.sleep(self._seconds)
        yield self._trained(task, digest, total)

    def _trained(self, task: Task, digest: bytes, total: int) -> Trained:
        weights = _write(total, digest)
        manifest = Manifest(
            model=self._model,
            template=task.template,
            template_digest=task.template_digest,
            rank=task.recipe.rank,
            alpha=task.recipe.alpha,
            targets=(),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
        )
        report = {
            "rows_used": len(task.examples),
            "steps": total,
            "tokens_learned": sum(each.learned for each in task.examples),
            "first_loss": _loss(0),
            "last_loss": _loss(total),
        }
        # As the echo engine answers once it has this adapter (engines/echo.py).
        tag = f"[{manifest.weights_sha256[:16]}] ".encode()
        said = tuple((*tag, *probe)[: task.probe_tokens] for probe in task.probes)
        return Trained(Adapter(manifest, weights), report, said)


def _loss(step: int) -> float:
    return 1 / (step + 1)


def _due(step: int, every: int, an_epoch: int, total: int) -> bool:
    return step > 0 and (step == total or step % (every or an_epoch) == 0)


def _learned(digest: bytes, task: Task, step: int, an_epoch: int) -> bytes:
    """The digest after one more step over the rows of this step."""
    epoch, batch = divmod(step, an_epoch)
    order = list(range(len(task.examples)))
    random.Random(f"{task.recipe.seed} {epoch}").shuffle(order)  # noqa: S311 - an order, no secret
    size = task.recipe.batch_size
    rows = [
        (list(task.examples[at].ids), list(task.examples[at].labels)) for at in order[batch * size :][:size]
    ]
    return hashlib.sha256(digest + json.dumps([step, rows]).encode()).digest()


def _write(step: int, digest: bytes) -> bytes:
    """A safetensors file with one tensor, as `Snapshot.state` has to be."""
    head = json.dumps(
        {
            "__metadata__": {"step": str(step)},
            _DIGEST: {"dtype": "U8", "shape": [len(digest)], "data_offsets": [0, len(digest)]},
        },
        sort_keys=True,
    ).encode()
    return struct.pack("<Q", len(head)) + head + digest


def _read(state: bytes) -> tuple[int, bytes]:
    try:
        (length,) = struct.unpack_from("<Q", state)
        head = json.loads(state[8 : 8 + length])
        return int(head["__metadata__"]["step"]), state[8 + length :]
    except (ValueError, KeyError, struct.error) as error:
        raise TrainingFailed("The checkpoint is not one of this trainer.") from error
