"""
Supervised fine-tuning, the side that does the work: a process that reads one job and answers with weights.

This is the process: its pipes, its silence and its end. What it learns, and how, is `lesson.py`. What
libraries print goes nowhere, and an error is told by its type, since either may quote a row.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import BinaryIO

from .. import pipe
from . import Unlearnable


def main() -> None:
    """Read the job from standard input, answer on standard output, leave."""
    down, up = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print must not get between the frames
    job = pipe.receive(down)
    threading.Thread(target=_die_with_parent, args=(down,), daemon=True).start()
    try:
        from .lesson import train  # heavy, and talkative

        message, weights = train(job, lambda **said: pipe.send(up, {"say": "progress", **said}))
        pipe.send(up, {"say": "done", **message})
        pipe.send(up, weights)
    except pipe.PipeClosed:
        pass
    except MemoryError:
        _fail(up, "There is not enough memory. Use fewer or shorter rows, or a smaller batch_size.")
    except Unlearnable as error:
        _fail(up, str(error), "unlearnable")
    except Exception as error:  # noqa: BLE001 - its text may quote a row, its type does not
        _fail(up, f"The training failed ({type(error).__name__}). Your previous model is untouched.")
    os._exit(0)


def _fail(up: BinaryIO, message: str, how: str = "failed") -> None:
    try:
        pipe.send(up, {"say": how, "message": message})
    except pipe.PipeClosed:
        return


def _die_with_parent(down: BinaryIO) -> None:
    down.read(1)  # nothing more is ever sent: the pipe's end means that nobody listens
    os._exit(1)
