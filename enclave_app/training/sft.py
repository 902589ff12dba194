"""
Supervised fine-tuning in a process of its own: this side starts it, listens, and ends it.

The process trains on its own copy of the model, so what is served never changes under a caller and a crash
costs one training. Rows and weights travel through pipes; the process's own output goes nowhere.
Nothing heavy is imported here: see `sft_child.py` and `lesson.py` for the other side.
"""

from __future__ import annotations

import hashlib
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, cast

from .. import pipe
from ..child import running
from ..datasets import Pairs
from ..engines.adapter import Adapter, Manifest
from ..models import Model
from ..settings import MALLOC_TUNABLES
from . import Progress, Recipe, Trained, TrainingFailed, Unlearnable


class SftTrainer:
    """Trains a LoRA adapter for one model with trl and peft."""

    def __init__(self, model: Model, device: str = "auto") -> None:
        self._model = model
        self._device = device

    def train(self, data: Pairs, recipe: Recipe, stopped: Callable[[], bool]) -> Iterator[Progress | Trained]:
        """Start the process, hand it the rows, pass on what it says; end it in any case."""
        yield Progress("loading")
        scratch = tempfile.mkdtemp(prefix="blindbox-training-")
        try:
            program = "enclave_app.training.sft_child"
            with running(program, scratch, GLIBC_TUNABLES=MALLOC_TUNABLES) as child:
                job = {
                    "folder": str(self._model.folder),
                    "device": self._device,
                    "rows": data.rows,
                    "plain_text": data.plain_text,
                    "recipe": {
                        "epochs": recipe.epochs,
                        "learning_rate": recipe.learning_rate,
                        "batch_size": recipe.batch_size,
                        "seed": recipe.seed,
                        "rank": recipe.rank,
                        "most_tokens": recipe.most_tokens,
                    },
                    "scratch": scratch,
                }
                for message in _conversation(child, job, stopped):
                    if message["say"] == "progress":
                        yield Progress(*(message[name] for name in Progress.__slots__))
                    elif message["say"] == "done":
                        yield self._trained(message)
                        return
                    elif message["say"] == "unlearnable":
                        raise Unlearnable(str(message["message"]))
                    else:
                        raise TrainingFailed(str(message["message"]))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _trained(self, message: Mapping[str, Any]) -> Trained:
        weights = cast("bytes", message["weights"])
        if hashlib.sha256(weights).hexdigest() != message["weights_sha256"]:
            raise TrainingFailed("The trained weights were damaged on their way. Try again.")
        manifest = Manifest(
            model=self._model.fingerprint,
            template=message["template"],
            template_digest=message["template_digest"],
            rank=message["rank"],
            alpha=message["alpha"],
            targets=tuple(message["targets"]),
            weights_sha256=message["weights_sha256"],
        )
        return Trained(Adapter(manifest, weights), message["report"])


def _conversation(
    child: subprocess.Popen[bytes], job: dict[str, Any], stopped: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Messages as they come; ends early when `stopped` says so, fails when the process dies."""
    assert child.stdin is not None
    assert child.stdout is not None
    heard: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    listener = threading.Thread(
        target=_listen, args=(child.stdin, child.stdout, job, heard), name="training-pipe", daemon=True
    )
    listener.start()
    while not stopped():
        try:
            message = heard.get(timeout=0.25)
        except queue.Empty:
            continue
        if message is None:
            raise TrainingFailed(_epitaph(child.wait(10)))
        yield message


def _listen(
    down: BinaryIO, up: BinaryIO, job: dict[str, Any], heard: queue.SimpleQueue[dict[str, Any] | None]
) -> None:
    try:
        pipe.send(down, job)
        while True:
            message = pipe.receive(up)
            if message["say"] == "done":
                message["weights"] = pipe.receive(up)
            heard.put(message)
    except (pipe.PipeClosed, OSError, ValueError):
        heard.put(None)


def _epitaph(status: int) -> str:
    if status == -9:
        return (
            "The training was killed, most likely for want of memory. "
            "Use fewer or shorter rows, or a smaller batch_size. Your previous model is untouched."
        )
    return f"The training process ended unexpectedly (status {status}). Your previous model is untouched."
