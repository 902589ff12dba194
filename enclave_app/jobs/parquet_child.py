"""
Reads one Parquet file, the side that does the work: a process that writes nowhere and has little memory.

The bytes come through a pipe from where they lie sealed, and are in no file. `parquet.py` tells what is said.
"""

from __future__ import annotations

import io
import os
import resource
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

from blindbox_data import DataError, Form, Wanted, open_rows

from .. import pipe
from .row_frames import PIECE, framed, packed

_FRAME: Final = 256 << 10  # bytes of rows that go up at once, if no row is longer
_NICE: Final = 5  # answers go first


def main() -> None:
    """Read from standard input what is wanted, write rows to standard output, leave."""
    down, up = pipe.ends()
    os.nice(_NICE)
    try:
        told = pipe.receive(down)
        _limit(told["memory"], told["seconds"])
        try:
            _read(told, down, up)
            pipe.send(up, {"say": "end"})
        except MemoryError:
            pipe.send(up, {"say": "memory"})
        except DataError as error:
            if _is_of_memory(error):
                pipe.send(up, {"say": "memory"})
            else:
                refused = {"message": error.message, "code": error.code, "param": error.param}
                pipe.send(up, {"say": "refused", **refused})
    except pipe.PipeClosed:
        pass
    os._exit(0)


def _limit(memory: int, seconds: int) -> None:
    import pyarrow as pa

    # The pool that gives back what it no longer needs, and reserves nothing that the limit would count.
    pa.set_memory_pool(pa.system_memory_pool())
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def _read(told: Mapping[str, Any], down: BinaryIO, up: BinaryIO) -> None:
    file = io.BufferedReader(_Far(down, up, told["size"]), 64 << 10)
    wanted = None if told["wanted"] is None else Wanted(**told["wanted"])
    held: list[bytes] = []
    size = 0
    try:
        for number, row in open_rows(file, Form.PARQUET, wanted):
            held.append(packed(number, row))
            size += len(held[-1])
            # The first goes alone: it may be seen by it that nobody wants the second.
            if size > _FRAME or number == 1:
                pipe.send(up, framed(held))
                held, size = [], 0
    finally:  # those before a fault are told before it
        if held:
            pipe.send(up, framed(held))


def _is_of_memory(error: BaseException) -> bool:
    """Was it memory that ran out, whatever was said in its place?"""
    return isinstance(error.__context__, MemoryError)


class _Far(io.RawIOBase):
    """A file that is on the other side of the pipe."""

    def __init__(self, down: BinaryIO, up: BinaryIO, size: int | None) -> None:
        super().__init__()
        self._down = down
        self._up = up
        self._size = size  # None: it can be read only from its beginning on
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._size is not None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self._size is None:
            raise io.UnsupportedOperation
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError("before the beginning")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        if self._size is not None and self._at >= self._size:
            return 0
        pipe.send(self._up, {"say": "read", "at": self._at, "size": min(len(buffer), PIECE)})
        data = pipe.receive(self._down)
        if not isinstance(data, bytes) or len(data) > len(buffer):
            raise pipe.PipeClosed
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
