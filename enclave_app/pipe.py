"""
What the app and its own child processes say to each other: frames over pipes, no files, no pickles.

    frame = kind (1 byte: J for JSON, B for bytes) ‖ u64 length ‖ payload

A message is a JSON object with `say`; weights are a frame of bytes. Who says what is told in
`training/sft.py` and `engines/worker.py`.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import Any, BinaryIO, Final

MOST: Final = 16 << 30
_HEAD = struct.Struct(">cQ")


class PipeClosed(Exception):
    """The other side has gone."""


def ends() -> tuple[BinaryIO, BinaryIO]:
    """
    Of the process that this is, the ends from and to whoever started it: `child.running`.

    From now on its standard output goes nowhere: what libraries print must not get between the frames.
    """
    up = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return sys.stdin.buffer, up


def send(pipe: BinaryIO, message: dict[str, Any] | bytes) -> None:
    """Write a frame."""
    kind, data = (b"B", message) if isinstance(message, bytes) else (b"J", json.dumps(message).encode())
    try:
        pipe.write(_HEAD.pack(kind, len(data)))
        pipe.write(data)
        pipe.flush()
    except (BrokenPipeError, ValueError) as error:
        raise PipeClosed from error


def receive(pipe: BinaryIO, *, most: int = MOST) -> Any:
    """Read a frame of at most so many bytes: the JSON value, or the bytes."""
    kind, length = _HEAD.unpack(_exactly(pipe, _HEAD.size))
    if kind not in (b"J", b"B") or length > most:
        raise PipeClosed("not a frame")
    data = _exactly(pipe, length)
    return data if kind == b"B" else json.loads(data)


def _exactly(pipe: BinaryIO, length: int) -> bytes:
    data = pipe.read(length)
    if data is None or len(data) != length:
        raise PipeClosed
    return data
