"""
Rows out of a Parquet file, read in a process of its own.

The library that reads Parquet is large, and some damaged files end the process that it runs in. So that is
not this one: the child (`parquet_child.py`) asks for the bytes it wants, place by place, and answers with
rows, which are judged here like all others. It writes nowhere, has so much memory and so much time and no
more, and is ended as soon as nobody wants another row. What is said here of a file is what `blindbox_data`
says of it; only that a file ended the process, or took more than there is, is said besides.

    down: {the wish, the file's size, the limits}; then the bytes that were asked for, each time
    up:   {"say": "read", "at", "size"} · rows (`row_frames.py`) · {"say": "memory"} · {"say": "end"}
          · {"say": "refused", "message", "code", "param"}
"""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, BinaryIO, Final, NoReturn, cast

from blindbox_data import DataError, Wanted
from blindbox_data.errors import unreadable

from .. import pipe
from ..child import running
from .row_frames import PIECE, Row, unpacked

PROGRAM: Final = "enclave_app.jobs.parquet_child"
MOST_MEMORY: Final = 3 << 30
"""Bytes of address space that a child may have; the library alone takes a quarter of the first of them."""
MOST_SECONDS: Final = 900
"""Of the processor's time, for one file."""
MOST_SILENCE: Final = 180.0
"""Seconds from one sign of life to the next."""
MOST_AT_ONCE: Final = 2
"""Children; who comes later waits."""
_MOST_IN_A_FRAME: Final = 1 << 30
_MOST_DYING: Final = 10.0  # seconds from the end of what a child says to its own end
_LOOKED: Final = 0.25  # seconds between two looks at whether the rows are still wanted

_turns = threading.BoundedSemaphore(MOST_AT_ONCE)


class Stopped(Exception):
    """Nobody wants the rows any more."""


def parquet_rows(
    file: BinaryIO,
    wanted: Wanted | None,
    stopped: Callable[[], bool] | None = None,
    *,
    memory: int = MOST_MEMORY,
    seconds: int = MOST_SECONDS,
    silence: float = MOST_SILENCE,
) -> Iterator[Row]:
    """The rows with their numbers; raises `DataError`, and `Stopped` once `stopped` says so."""
    stopped = stopped or _never
    seekable = file.seekable()
    told = {
        "wanted": None if wanted is None else asdict(wanted),
        "size": file.seek(0, os.SEEK_END) if seekable else None,
        "memory": memory,
        "seconds": seconds,
    }
    with (
        _turn(stopped),
        tempfile.TemporaryDirectory(prefix="blindbox-") as home,
        running(PROGRAM, home) as child,
    ):
        up = io.BufferedReader(_Ear(child, stopped, silence), 1 << 16)
        down = cast("BinaryIO", child.stdin)
        try:
            pipe.send(down, told)
            while True:
                said = pipe.receive(up, most=_MOST_IN_A_FRAME)
                if isinstance(said, bytes):
                    yield from unpacked(said)
                elif said["say"] == "read":
                    pipe.send(down, _part(file, said["at"] if seekable else None, said["size"]))
                elif said["say"] == "refused":
                    raise DataError(str(said["message"]), code=str(said["code"]), param=str(said["param"]))
                elif said["say"] == "memory":
                    raise _of_memory(memory)
                elif said["say"] == "end":
                    return
                else:
                    raise ValueError
        except pipe.PipeClosed:
            _mourn(child, memory)
        except (LookupError, ValueError, TypeError, ArithmeticError, RecursionError):
            raise _broken() from None


def _part(file: BinaryIO, at: int | None, size: int) -> bytes:
    if at is not None:
        file.seek(at)
    return file.read(min(size, PIECE))


def _never() -> bool:
    return False


@contextmanager
def _turn(stopped: Callable[[], bool]) -> Iterator[None]:
    while not _turns.acquire(timeout=_LOOKED):
        if stopped():
            raise Stopped
    try:
        yield
    finally:
        _turns.release()


class _Ear(io.RawIOBase):
    """What a child says, for as long as anybody wants to hear it."""

    def __init__(self, child: subprocess.Popen[bytes], stopped: Callable[[], bool], silence: float) -> None:
        super().__init__()
        self._end = cast("BinaryIO", child.stdout).fileno()
        self._stopped = stopped
        self._silence = silence

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        began = time.monotonic()
        heard = select.poll()
        heard.register(self._end, select.POLLIN)
        while not heard.poll(_LOOKED * 1000):
            if self._stopped():
                raise Stopped
            if time.monotonic() - began > self._silence:
                raise _of_time()
        return os.readv(self._end, [buffer])


def _mourn(child: subprocess.Popen[bytes], memory: int) -> NoReturn:
    """The child ended in the middle: say what of."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(_MOST_DYING)
    if child.returncode == -signal.SIGXCPU:
        raise _of_time() from None
    if child.returncode == -signal.SIGKILL:  # by the kernel, which had no more memory
        raise _of_memory(memory) from None
    raise _broken() from None


def _broken() -> DataError:
    return unreadable("it is damaged, so badly that what reads Parquet broke down over it")


def _of_memory(memory: int) -> DataError:
    return DataError(
        f"To read the Parquet file takes more memory than the {memory >> 20} MiB that there are for it. "
        "Write it in smaller row groups (row_group_size=10000), or upload JSON Lines.",
        code="too_many_tokens",
    )


def _of_time() -> DataError:
    return DataError(
        "To read the Parquet file takes too long; it is probably damaged. Write it anew, in smaller row "
        "groups (row_group_size=10000), or upload JSON Lines.",
        code="invalid_file_format",
    )
