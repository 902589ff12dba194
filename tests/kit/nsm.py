"""
A Nitro security module behind its ioctl: it reads the question out of the caller's memory, and writes the
answer there.

`sign` makes the document from the three values of the question. What the real driver and module check is
checked: the answer's room, the form of the question, the sizes of its values (aws-nitro-enclaves-nsm-api).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import pytest

from blindbox_attestation import cbor

Sign = Callable[[bytes | None, bytes | None, bytes | None], bytes]
MOST = {"user_data": 512, "nonce": 512, "public_key": 1024}


class FakeNsm:
    """`sign(user_data, nonce, public_key)` gives a document; `error` is answered in its place."""

    def __init__(self, sign: Sign, *, error: str | None = None) -> None:
        self.sign = sign
        self.error = error
        self.asked: list[dict[str, bytes | None]] = []

    def ask(self, request: bytes) -> bytes:
        if self.error is not None:
            return cbor.encode({"Error": self.error})
        question: Any = cbor.parse(request)
        assert set(question) == {"Attestation"}
        values = question["Attestation"]
        assert set(values) == set(MOST)
        for name, value in values.items():
            assert value is None or 0 < len(value) <= MOST[name]
        self.asked.append(values)
        document = self.sign(values["user_data"], values["nonce"], values["public_key"])
        return cbor.encode({"Attestation": {"document": document}})

    def behind_the_ioctl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer ioctls on any file as the kernel's driver answers them on /dev/nsm."""

        def ioctl(file: BinaryIO, number: int, raw: bytearray) -> int:
            os.fstat(file.fileno())
            if number != 0xC0200A00:
                raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
            at, size, room_at, room = struct.unpack("=QQQQ", raw)
            if size > 0x1000 or room < 0x3000:
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
            answer = self.ask(ctypes.string_at(at, size))
            ctypes.memmove(room_at, answer, len(answer))
            struct.pack_into("=QQQQ", raw, 0, at, size, room_at, len(answer))
            return 0

        monkeypatch.setattr(fcntl, "ioctl", ioctl)
