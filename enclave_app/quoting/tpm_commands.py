"""
The eight TPM 2.0 commands that quoting needs, as bytes to a device and back.

It speaks and reads strictly; what is quoted, and with which key, is decided in `tpm.py` and `azure.py`.
Why not a library: docs/decisions/0008-raw-tpm-commands.md.

Sources: TCG "Trusted Platform Module Library", Part 2 "Structures" and Part 3 "Commands", revision 1.59; for
the device Linux drivers/char/tpm/tpm-dev-common.c. Keys and hierarchies are used with empty passwords, as
clouds hand them over.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from blindbox_attestation.vtpm.area import NEEDED

RSA: Final = 0x0001  # TPM_ALG_ID
SHA256: Final = 0x000B
SHA384: Final = 0x000C
NULL: Final = 0x0010
RSASSA: Final = 0x0014
ECDSA: Final = 0x0018
ECC: Final = 0x0023
NIST_P256: Final = 0x0003  # TPM_ECC_CURVE

OWNER: Final = 0x40000001  # TPM_RH
ENDORSEMENT: Final = 0x4000000B
_PASSWORD: Final = 0x40000009  # TPM_RS_PW

_USER_WITH_AUTH: Final = 1 << 6  # TPMA_OBJECT
_NO_DA: Final = 1 << 10

_NV_OWNER_WRITE: Final = 1 << 1  # TPMA_NV
_NV_OWNER_READ: Final = 1 << 17
_NV_NO_DA: Final = 1 << 25
_NV_STEP: Final = 512  # every TPM moves this much at once (TPM_PT_NV_BUFFER_MAX)

_NO_SESSIONS: Final = 0x8001  # TPM_ST
_SESSIONS: Final = 0x8002
_AUTHORISATION: Final = struct.pack(">IIHBH", 9, _PASSWORD, 0, 0, 0)
_AUTHORISED: Final = struct.pack(">HBH", 0, 1, 0)  # continueSession, as a password always answers
_HEADER = struct.Struct(">HII")
_MAX_RESPONSE: Final = 4096

_TRY_AGAIN: Final = frozenset({0x908, 0x90A, 0x920, 0x922})  # TPM_RC_YIELDED, TESTING, NV_RATE, RETRY
_NO_SUCH_HANDLE: Final = 0x18B  # TPM_RC_HANDLE, the first one
_UNINITIALIZED: Final = 0x14A  # TPM_RC_NV_UNINITIALIZED: defined, and never written
_PATIENCE: Final = 30.0  # seconds for one command


class TpmFailure(Exception):
    """The TPM said no, or nothing that can be read; `code` is its response code, if that is why."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class Transport(Protocol):
    """Carries one command at a time. Raises `OSError`."""

    def transmit(self, command: bytes) -> bytes: ...

    def close(self) -> None: ...


class Device:
    """The kernel's resource-managed TPM: each opening has keys of its own, which vanish with it."""

    def __init__(self, path: Path = Path("/dev/tpmrm0"), patience: float = _PATIENCE) -> None:
        self._patience = patience
        self._file = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)

    def transmit(self, command: bytes) -> bytes:
        os.write(self._file, command)
        deadline = time.monotonic() + self._patience
        response = b""
        while len(response) < _HEADER.size or len(response) < _HEADER.unpack_from(response)[1]:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._file], [], [], left)[0]:
                raise TimeoutError(f"the TPM did not answer within {self._patience:g} s")
            piece = os.read(self._file, _MAX_RESPONSE)
            if not piece or len(response) > _MAX_RESPONSE:
                raise ConnectionError("the TPM's answer has no end")
            response += piece
        return response

    def close(self) -> None:
        os.close(self._file)


class Reader:
    """The TPM's structures, from front to back: big endian, and nothing may be missing or left over."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise TpmFailure(f"the TPM's answer ends {size - len(self._data) + self._at} bytes too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def sized(self) -> bytes:
        """A TPM2B: two bytes of length, and as many bytes."""
        return self.take(self.number(2))

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        if self._at != len(self._data):
            raise TpmFailure(f"the TPM's answer has {len(self._data) - self._at} bytes too many")


@dataclass(frozen=True, slots=True)
class NvPublic:
    """What an NV index is: TPMS_NV_PUBLIC."""

    attributes: int
    size: int


class Tpm:
    """One open TPM. Not for two threads at once."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def close(self) -> None:
        self._transport.close()

    # Keys

    def read_public(self, handle: int) -> bytes | None:
        """The key's public area, TPMT_PUBLIC; None where there is no such key."""
        answer = self._look(0x173, handle)
        if answer is None:
            return None
        area = answer.sized()
        answer.sized()  # name
        answer.sized()  # qualified name
        answer.end()
        return area

    def create_primary(self, hierarchy: int, template: bytes) -> tuple[int, bytes]:
        """A handle to the key that grows from this template, and its public area."""
        no_secret = sized(sized(b"") + sized(b""))
        parameters = no_secret + sized(template) + sized(b"") + struct.pack(">I", 0)
        answer = self._call(0x131, [hierarchy], parameters, authorised=True, makes_handle=True)
        handle = answer.number(4)
        area = answer.sized()
        answer.sized()  # creation data
        answer.sized()  # its digest
        answer.take(6)  # the ticket's tag and hierarchy
        answer.sized()
        answer.sized()  # name
        answer.end()
        return handle, area

    # Registers

    def pcr_read(self, bank: int, registers: Iterable[int]) -> dict[int, bytes]:
        """The registers' values. Each command reads eight at most, so they may move in between."""
        wanted, values = sorted(registers), dict[int, bytes]()
        while len(values) < len(wanted):
            left = [register for register in wanted if register not in values]
            answer = self._call(0x17E, [], selection(bank, left))
            answer.number(4)  # the update counter
            told = _selected(answer, bank)
            digests = [answer.sized() for _ in range(answer.number(4))]
            answer.end()
            if not told or len(told) != len(digests) or not set(told) <= set(left):
                raise TpmFailure(f"the TPM does not keep registers {left} in bank {bank:#06x}")
            values.update(zip(told, digests, strict=True))
        return values

    def quote(self, key: int, extra_data: bytes, bank: int, registers: Iterable[int]) -> tuple[bytes, bytes]:
        """TPMS_ATTEST and TPMT_SIGNATURE over these registers and this data, by the key's own scheme."""
        parameters = sized(extra_data) + struct.pack(">H", NULL) + selection(bank, registers)
        answer = self._call(0x158, [key], parameters, authorised=True)
        return answer.sized(), answer.rest()

    # Non-volatile memory

    def nv_public(self, index: int) -> NvPublic | None:
        """None where there is no such index."""
        answer = self._look(0x169, index)
        if answer is None:
            return None
        public = Reader(answer.sized())
        answer.sized()  # name
        answer.end()
        public.take(4 + 2)  # index, algorithm of its name
        attributes = public.number(4)
        public.sized()  # policy
        found = NvPublic(attributes, public.number(2))
        public.end()
        return found

    def nv_read(self, index: int) -> bytes | None:
        """All that is there; None where there is no such index, or nothing in it."""
        public = self.nv_public(index)
        if public is None:
            return None
        by = OWNER if public.attributes & _NV_OWNER_READ else index
        data = b""
        while len(data) < public.size:
            size = min(_NV_STEP, public.size - len(data))
            try:
                answer = self._call(0x14E, [by, index], struct.pack(">HH", size, len(data)), authorised=True)
            except TpmFailure as failure:
                if failure.code == _UNINITIALIZED:
                    return None
                raise
            piece = answer.sized()
            answer.end()
            if len(piece) != size:
                raise TpmFailure(f"the TPM read {len(piece)} bytes of index {index:#010x}, asked for {size}")
            data += piece
        return data

    def nv_define(self, index: int, size: int) -> None:
        """Make an index that the owner reads and writes."""
        attributes = _NV_OWNER_WRITE | _NV_OWNER_READ | _NV_NO_DA
        public = struct.pack(">IHI", index, SHA256, attributes) + sized(b"") + struct.pack(">H", size)
        self._call(0x12A, [OWNER], sized(b"") + sized(public), authorised=True).end()

    def nv_write(self, index: int, data: bytes) -> None:
        """Write from the index's beginning, as its owner."""
        for at in range(0, len(data), _NV_STEP):
            piece = sized(data[at : at + _NV_STEP]) + struct.pack(">H", at)
            self._call(0x137, [OWNER, index], piece, authorised=True).end()

    # One command

    def _look(self, command: int, handle: int) -> Reader | None:
        """The answer about what this handle names; None where it names nothing."""
        try:
            return self._call(command, [handle])
        except TpmFailure as failure:
            if failure.code == _NO_SUCH_HANDLE:
                return None
            raise

    def _call(
        self,
        command: int,
        handles: Iterable[int],
        parameters: bytes = b"",
        *,
        authorised: bool = False,
        makes_handle: bool = False,
    ) -> Reader:
        """The answer's parameters; with `makes_handle` the new handle stands before them."""
        body = b"".join(struct.pack(">I", handle) for handle in handles)
        body += (_AUTHORISATION if authorised else b"") + parameters
        tag = _SESSIONS if authorised else _NO_SESSIONS
        request = _HEADER.pack(tag, _HEADER.size + len(body), command) + body
        deadline, pause = time.monotonic() + _PATIENCE, 0.01
        while True:
            response = Reader(self._transport.transmit(request))
            answered, size, code = response.number(2), response.number(4), response.number(4)
            answer = response.take(size - _HEADER.size) if size >= _HEADER.size else b""
            response.end()
            if code not in _TRY_AGAIN or time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
            pause *= 2
        if code:
            raise TpmFailure(f"the TPM refuses command {command:#x} with code {code:#x}", code)
        if answered != tag:
            raise TpmFailure(f"the TPM answers command {command:#x} with tag {answered:#06x}")
        if not authorised:
            return Reader(answer)
        response = Reader(answer)
        handle = response.take(4) if makes_handle else b""
        told = response.take(response.number(4))
        if response.rest() != _AUTHORISED:
            raise TpmFailure("the TPM's answer does not end with an empty authorisation")
        return Reader(handle + told)


def sized(data: bytes) -> bytes:
    """A TPM2B."""
    return struct.pack(">H", len(data)) + data


def selection(bank: int, registers: Iterable[int]) -> bytes:
    """TPML_PCR_SELECTION of one bank: three bytes, the lowest bit of the first is PCR 0."""
    bits = sum(1 << register for register in registers)
    return struct.pack(">IHB", 1, bank, 3) + bits.to_bytes(3, "little")


def restricted_signing_key(kind: int) -> bytes:
    """TPMT_PUBLIC of an attestation key: ECC on P-256 with ECDSA, or RSA-2048 with RSASSA, SHA-256 both."""
    attributes = sum(NEEDED.values()) | _USER_WITH_AUTH | _NO_DA
    head = struct.pack(">HHI", kind, SHA256, attributes) + sized(b"")
    if kind == ECC:
        return head + struct.pack(">5H", NULL, ECDSA, SHA256, NIST_P256, NULL) + sized(b"") + sized(b"")
    return head + struct.pack(">4HI", NULL, RSASSA, SHA256, 2048, 0) + sized(b"")


def _selected(answer: Reader, bank: int) -> list[int]:
    """The registers of a TPML_PCR_SELECTION of one bank, in their order."""
    found: list[int] = []
    for _ in range(answer.number(4)):
        algorithm, bits = answer.number(2), answer.take(answer.number(1))
        if algorithm == bank:
            found += [
                register for register in range(8 * len(bits)) if bits[register // 8] >> register % 8 & 1
            ]
    return found
