"""
Supervised fine-tuning in processes of its own: this side starts them, listens, and ends them.

They train on their own copy of the model, so what is served never changes under a caller and a crash costs
one training at most back to its last snapshot. Rows (as tokens), snapshots and weights travel through pipes;
the processes' own output goes nowhere, and their folder holds nothing of the data.
Nothing heavy is imported here: see `sft_child.py` and `lesson.py` for the other side.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from .. import pipe
from ..child import running
from ..engines.adapter import Adapter, Manifest
from ..models import Model
from ..settings import MALLOC_TUNABLES
from . import Progress, Snapshot, Stop, Task, Trained, TrainingFailed, Unlearnable
from .ranks import environment
from .rows import Row, pack

PROGRAM: Final = "enclave_app.training.sft_child"
AHEAD: Final = 4  # messages that wait here at most: a process that is faster than its listener waits for it
UNTOUCHED: Final = "Your previous model is untouched."

_Message = dict[str, Any]


class SftTrainer:
    """Trains one model with trl and peft: LoRA, LoRA over 8 bits, or the linear layers themselves."""

    def __init__(self, model: Model, device: str = "auto", *, threads: int = 0, processes: int = 1) -> None:
        self._model = model
        self._device = device
        self._threads = threads
        self._processes = processes

    def train(self, task: Task, stopped: Callable[[], Stop]) -> Iterator[Progress | Snapshot | Trained]:
        """Start the processes, hand them the lesson, pass on what they say; end them in any case."""
        _fits(task, self._model)
        yield Progress("loading")
        scratch = tempfile.mkdtemp(prefix="blindbox-training-")
        before = _killed_for_memory()
        try:
            with contextlib.ExitStack() as stack:
                children = [
                    stack.enter_context(running(PROGRAM, scratch, **self._environment(rank)))
                    for rank in range(self._processes)
                ]
                conversation = stack.enter_context(contextlib.closing(Conversation(children)))
                conversation.open(self._job(task, scratch), _frames(task))
                yield from self._heard(task, conversation, stopped, before)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _heard(
        self, task: Task, conversation: Conversation, stopped: Callable[[], Stop], before: int | None
    ) -> Iterator[Progress | Snapshot | Trained]:
        phase, asked = "loading", False
        while (wish := stopped()) != "cancel":
            if wish == "pause" and not asked:
                if phase != "training":
                    return  # nothing was learned yet, or all of it is in the last snapshot
                conversation.pause()
                asked = True
            message = conversation.next(0.25)
            if message is None:
                continue
            if message["say"] == "progress":
                phase = message["phase"]
                yield Progress(**{name: message[name] for name in Progress.__slots__ if name in message})
            elif message["say"] == "snapshot":
                yield _snapshot(message)
            elif message["say"] == "done":
                yield self._trained(task, message)
                return
            elif message["say"] == "paused":
                return
            elif message["say"] == "died":
                raise _epitaph(message["status"], before)
            elif message["say"] == "unlearnable":
                raise Unlearnable(str(message["message"]), str(message["code"]))
            else:
                # Where one of several was killed, what the others complain of is that it has gone.
                status = conversation.dead()
                if status is not None:
                    raise _epitaph(status, before)
                raise TrainingFailed(str(message["message"]), str(message["code"]))

    def _environment(self, rank: int) -> Mapping[str, str]:
        found = {"GLIBC_TUNABLES": MALLOC_TUNABLES}
        if self._processes > 1:
            found |= environment(rank, self._processes)
        return found

    def _job(self, task: Task, scratch: str) -> _Message:
        recipe = task.recipe
        if task.start is not None and not recipe.targets:
            recipe = replace(recipe, targets=task.start.manifest.targets)
        threads = self._threads or (os.cpu_count() or 1 if self._processes > 1 else 0)
        return {
            "folder": str(self._model.folder),
            "model": self._model.fingerprint,
            "device": self._device,
            "threads": max(1, threads // self._processes) if threads else 0,
            "recipe": asdict(recipe),
            "probe_tokens": task.probe_tokens,
            "scratch": scratch,
        }

    def _trained(self, task: Task, message: Mapping[str, Any]) -> Trained:
        weights = cast("bytes", message["frame"])
        if hashlib.sha256(weights).hexdigest() != message["weights_sha256"]:
            raise TrainingFailed("The trained weights were damaged on their way. Try again.")
        full = task.recipe.method == "full"
        manifest = Manifest(
            model=self._model.fingerprint,
            template=task.template,
            template_digest=task.template_digest,
            rank=0 if full else task.recipe.rank,
            alpha=0 if full else task.recipe.alpha,
            targets=tuple(message["targets"]),
            weights_sha256=message["weights_sha256"],
            kind="full" if full else "lora",
        )
        said = tuple(tuple(tokens) for tokens in message["continuations"])
        return Trained(Adapter(manifest, weights), message["report"], said)


class Conversation:
    """What is said to the processes and by them; nobody is left waiting when it is closed."""

    def __init__(self, children: list[subprocess.Popen[bytes]]) -> None:
        self._children = children
        self._heard: queue.Queue[_Message] = queue.Queue(AHEAD)
        self._closed = threading.Event()

    def open(self, job: _Message, frames: list[bytes]) -> None:
        """Hand every process the lesson, and listen to all of them."""
        for child in self._children:
            threading.Thread(
                target=self._listen, args=(child, job, frames), name="training-pipe", daemon=True
            ).start()

    def next(self, seconds: float) -> _Message | None:
        """What was said next, if anything was in this time."""
        try:
            return self._heard.get(timeout=seconds)
        except queue.Empty:
            return None

    def pause(self) -> None:
        """Ask for a pause; the first process tells the others. The lesson has been read by then."""
        first = cast("BinaryIO", self._children[0].stdin)
        with contextlib.suppress(pipe.PipeClosed):  # a death is told by the listener
            pipe.send(first, {"say": "pause"})

    def dead(self) -> int | None:
        """How one of several processes was killed, if one was."""
        for child in self._children if len(self._children) > 1 else []:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if child.wait(0.25) < 0:
                    return child.returncode
        return None

    def close(self) -> None:
        """End the listening."""
        self._closed.set()

    def _listen(self, child: subprocess.Popen[bytes], job: _Message, frames: list[bytes]) -> None:
        down, up = cast("BinaryIO", child.stdin), cast("BinaryIO", child.stdout)
        ended = False
        try:
            pipe.send(down, job)
            for frame in frames:
                pipe.send(down, frame)
            while True:
                message = pipe.receive(up)
                if message["say"] in ("snapshot", "done"):
                    message["frame"] = pipe.receive(up)
                ended = message["say"] not in ("progress", "snapshot")
                self._put(message)
        except (pipe.PipeClosed, OSError, ValueError):
            pass
        if not ended and not self._closed.is_set():
            status = self._status(child)
            # One that does not speak ends quietly when its work is done.
            if status != 0 or child is self._children[0]:
                self._put({"say": "died", "status": status})

    def _status(self, child: subprocess.Popen[bytes]) -> int:
        try:
            return child.wait(10)
        except subprocess.TimeoutExpired:
            return 1

    def _put(self, message: _Message) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._heard.put(message, timeout=0.25)
                return


def _fits(task: Task, model: Model) -> None:
    """An earlier adapter can only be gone on from by the recipe it was made with."""
    if task.start is None:
        return
    made, recipe = task.start.manifest, task.recipe
    if made.model != model.fingerprint:
        raise Unlearnable("The earlier adapter is of another base model.", code="adapter_of_another_model")
    full = recipe.method == "full"
    if made.kind != ("full" if full else "lora"):
        raise Unlearnable(
            f"The earlier training was of kind {made.kind}; go on from it with a method of the same kind."
        )
    if not full and (made.rank, made.alpha) != (recipe.rank, recipe.alpha):
        raise Unlearnable(
            f"The earlier adapter has r {made.rank} and alpha {made.alpha}, the recipe says {recipe.rank} "
            f"and {recipe.alpha}. Leave them out to go on with those of the adapter."
        )
    if recipe.targets and set(recipe.targets) != set(made.targets):
        raise Unlearnable(
            f"The earlier adapter is of the layers {', '.join(made.targets)[:512]}. Leave target_modules out."
        )


def _frames(task: Task) -> list[bytes]:
    probes = [Row(tuple(probe), tuple(probe)) for probe in task.probes]
    start = task.start.weights if task.start is not None else b""
    return [pack(task.examples), pack(task.validation), pack(probes), start, task.resume or b""]


def _snapshot(message: Mapping[str, Any]) -> Snapshot:
    state = cast("bytes", message["frame"])
    if hashlib.sha256(state).hexdigest() != message["sha256"]:
        raise TrainingFailed("A snapshot was damaged on its way. Try again.")
    return Snapshot(
        message["step"], message["total_steps"], message["loss"], message["validation_loss"], state
    )


def _killed_for_memory() -> int | None:
    """How many processes this machine's kernel has killed for want of memory; None if it does not tell."""
    try:
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def _epitaph(status: int, before: int | None) -> TrainingFailed:
    """Why a process is no more: for want of memory where the kernel says that it killed one for that."""
    now = _killed_for_memory()
    if status == -9 and (now is None or before is None or now > before):
        return TrainingFailed(
            "The training was killed, most likely for want of memory. Use fewer or shorter rows, a smaller "
            f"batch_size, or method qlora. {UNTOUCHED}",
            code="out_of_memory",
        )
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return TrainingFailed(
        f"A process of the training ended unexpectedly ({how}). {UNTOUCHED}", code="training_process_died"
    )
