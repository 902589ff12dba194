"""
Supervised fine-tuning, the side that does the work: a process that reads one lesson and answers with weights.

This is the process: its pipes, its silence, its threads and its end. What it learns, and how, is `lesson.py`.
What libraries print goes nowhere, and an error is told by its type, since either may quote a row. Where
several of these train together, each reads the same lesson and the first one tells what comes of it.

    down: {…the job…} ‖ rows ‖ rows of validation ‖ probes ‖ earlier weights ‖ snapshot; then {"say": "pause"}
    up:   {"say": "progress"…} · {"say": "snapshot"…} ‖ state · {"say": "done"…} ‖ weights · {"say": "paused"}
          · {"say": "failed" | "unlearnable", "message", "code"}
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from .. import pipe
from . import Phase, Recipe, TrainingFailed, Unlearnable
from .ranks import Ranks
from .rows import unpack

if TYPE_CHECKING:
    from .lesson import Lesson
    from .snapshots import Position

NICE: Final = 10  # answers go first
NO_MEMORY: Final = (
    "There was not enough memory for this training. Use a smaller batch_size, shorter rows (max_length), "
    "or method qlora. Your previous model is untouched."
)


def main() -> None:
    """Read the lesson from standard input, answer on standard output, leave."""
    down, up = pipe.ends()
    os.nice(NICE)
    told = pipe.receive(down)
    frames = [pipe.receive(down) for _ in range(5)]
    speaker = Speaker(up)
    threading.Thread(target=speaker.listen, args=(down,), daemon=True).start()
    try:
        _learn(told, frames, speaker)
    except pipe.PipeClosed:
        pass
    except MemoryError:
        speaker.fail(NO_MEMORY, "out_of_memory")
    except TrainingFailed as error:
        speaker.fail(
            str(error), error.code, how="unlearnable" if isinstance(error, Unlearnable) else "failed"
        )
    except Exception as error:  # noqa: BLE001 - its text may quote a row, its type does not
        if _is_of_memory(error):
            speaker.fail(NO_MEMORY, "out_of_memory")
        else:
            speaker.fail(f"The training failed ({type(error).__name__}). Your previous model is untouched.")
    os._exit(0)


class Speaker:
    """A lesson's listener: what it hears goes up the pipe. Only the first of several processes speaks."""

    def __init__(self, up: BinaryIO) -> None:
        self._up = up
        self._paused = threading.Event()
        self.first = True

    def progress(self, phase: Phase, **more: Any) -> None:
        """Where the training stands."""
        if self.first:
            pipe.send(self._up, {"say": "progress", "phase": phase, **more})

    def snapshot(self, position: Position, state: bytes) -> None:
        """A point from which it could go on."""
        if self.first:
            validation = position.validation[-1][1] if position.validation else None
            pipe.send(
                self._up,
                {
                    "say": "snapshot",
                    "step": position.step,
                    "total_steps": position.total_steps,
                    "loss": position.losses[1] if position.losses else None,
                    "validation_loss": validation,
                    "sha256": hashlib.sha256(state).hexdigest(),
                },
            )
            pipe.send(self._up, state)

    def paused(self) -> bool:
        """Whether a pause was asked for."""
        return self._paused.is_set()

    def say(self, message: dict[str, Any], frame: bytes | None = None) -> None:
        """The last word."""
        if self.first:
            pipe.send(self._up, message)
            if frame is not None:
                pipe.send(self._up, frame)

    def fail(self, message: str, code: str = "training_failed", how: str = "failed") -> None:
        """The last word of a training that came to nothing; any of several processes may have it."""
        try:
            pipe.send(self._up, {"say": how, "message": message, "code": code})
        except pipe.PipeClosed:
            return

    def listen(self, down: BinaryIO) -> None:
        """Hear of a pause; the pipe's end means that nobody listens any more."""
        try:
            while pipe.receive(down)["say"] == "pause":
                self._paused.set()
        except (pipe.PipeClosed, OSError, ValueError):
            pass
        os._exit(1)


def _learn(told: dict[str, Any], frames: list[bytes], speaker: Speaker) -> None:
    ranks = Ranks.join(Path(told["scratch"]))
    speaker.first = ranks.rank == 0
    import torch

    from . import lesson  # heavy, and talkative

    if told["threads"]:
        torch.set_num_threads(told["threads"])
    learned = lesson.learn(_lesson(lesson.Lesson, told, frames), ranks, speaker)
    if learned is None:
        speaker.say({"say": "paused"})
        return
    message = {
        "say": "done",
        "targets": list(learned.targets),
        "weights_sha256": hashlib.sha256(learned.weights).hexdigest(),
        "report": learned.report,
        "continuations": learned.continuations,
    }
    speaker.say(message, learned.weights)


def _lesson(kind: type[Lesson], told: dict[str, Any], frames: list[bytes]) -> Lesson:
    recipe = Recipe(**{**told["recipe"], "targets": tuple(told["recipe"]["targets"])})
    rows, validation, probes, start, resume = frames
    # Whatever would change the numbers is part of it: a snapshot of anything else is no use here.
    task = hashlib.sha256(json.dumps([told["model"], asdict(recipe)], sort_keys=True).encode())
    for frame in (rows, validation, start):
        task.update(hashlib.sha256(frame).digest())
    return kind(
        folder=told["folder"],
        device=told["device"],
        recipe=recipe,
        scratch=Path(told["scratch"]),
        rows=unpack(rows),
        validation=unpack(validation),
        probes=[list(probe.ids) for probe in unpack(probes)],
        probe_tokens=told["probe_tokens"],
        start=start,
        resume=resume,
        task=task.hexdigest(),
    )


def _is_of_memory(error: Exception) -> bool:
    """PyTorch has no type of its own for it on processors."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
