"""
What a build of OVMF tells its host about itself, in tables at the end of the file.

A table of (GUID, data) ends 48 bytes before the end and is read backwards (OvmfPkg/ResetVector/Ia16/
ResetVectorVtf0.asm in EDK II). Two of its entries point at lists of memory that the host has to prepare and
measure before the guest starts: for SEV-SNP (OvmfSevMetadata.asm) and for TDX (Intel's "TDX Virtual Firmware
Design Guide", §11). A file with another list than these, or one that points outside of itself, is refused.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import Final

from .errors import UnreadableFirmware

PAGE: Final = 4096
MAX_SIZE: Final = 64 << 20
MAX_SECTIONS: Final = 64
MAX_MEMORY: Final = 1 << 30
"""Of all sections together: hashing more than that would only keep the caller waiting."""

_RESET_VECTOR: Final = 32  # what follows the table
_ENTRY: Final = struct.Struct("<H16s")
_TABLE: Final = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
SNP_METADATA: Final = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
SNP_HASHES: Final = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
SNP_RESET: Final = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
TDX_METADATA: Final = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")

_SNP_LIST: Final = struct.Struct("<4sIII")
_SNP_SECTION: Final = struct.Struct("<III")
_SNP_KINDS: Final = (1, 2, 3, 4, 0x10)  # memory, secrets, CPUID, SVSM's calling area, hashes of the kernel
_SNP_KERNEL_HASHES: Final = 0x10
_SNP_SINGLE: Final = (2, 3, 0x10)  # one page each

_TDX_SECTION: Final = struct.Struct("<IIQQII")
_TDX_KINDS: Final = range(4)  # code, variables, hand-off block, memory: QEMU prepares no others (tdx.c)
_TDX_ATTRIBUTES: Final = (0, 1)  # 1: the content is measured, not just its place


@dataclass(frozen=True, slots=True)
class TdxSection:
    """Memory that the host fills before the guest starts."""

    address: int
    size: int
    content: bytes | None  # where it is measured; else its place is measured alone


@dataclass(frozen=True, slots=True)
class Firmware:
    """A build of OVMF. Nothing in it has been verified."""

    data: bytes
    table: dict[uuid.UUID, bytes]

    @classmethod
    def parse(cls, data: bytes) -> Firmware:
        """Raises `UnreadableFirmware`."""
        if not PAGE <= len(data) <= MAX_SIZE or len(data) % PAGE:
            raise UnreadableFirmware(
                f"it is {len(data)} bytes, wanted whole pages of {PAGE}, at most {MAX_SIZE}"
            )
        ends = len(data) - _RESET_VECTOR
        size, name = _ENTRY.unpack_from(data, ends - _ENTRY.size)
        if name != _TABLE.bytes_le or not _ENTRY.size <= size <= ends:
            raise UnreadableFirmware("it has no table of OVMF at its end: is it OVMF, and whole?")
        at, first = ends - _ENTRY.size, ends - size
        found: dict[uuid.UUID, bytes] = {}
        while at > first:
            if at - first < _ENTRY.size:
                raise UnreadableFirmware("its table at the end breaks off")
            size, name = _ENTRY.unpack_from(data, at - _ENTRY.size)
            if not _ENTRY.size <= size <= at - first:
                raise UnreadableFirmware(f"an entry of its table is {size} bytes long, of {at - first}")
            guid = uuid.UUID(bytes_le=name)
            if guid in found:
                raise UnreadableFirmware(f"its table has {guid} twice")
            found[guid] = data[at - size : at - _ENTRY.size]
            at -= size
        return cls(data, found)

    def check_snp(self) -> None:
        """
        See that SEV-SNP can start it with the kernel's hashes measured, and that it is what can be predicted.

        Debian's own OVMF lacks the page for the hashes: with it the launch digest would name no kernel.
        """
        for guid, what in ((SNP_HASHES, "a place for the kernel's hashes"), (SNP_RESET, "a reset vector")):
            if not self._number(guid):
                raise UnreadableFirmware(f"it has not {what} for SEV-SNP; the AmdSev build of OVMF has it")
        at = self._list(SNP_METADATA, _SNP_LIST.size, "SEV-SNP")
        signature, size, version, count = _SNP_LIST.unpack_from(self.data, at)
        if signature != b"ASEV" or version != 1 or size != _SNP_LIST.size + count * _SNP_SECTION.size:
            raise UnreadableFirmware(
                f"its list for SEV-SNP is {signature!r} of version {version}, {size} bytes"
            )
        if count > MAX_SECTIONS or at + size > len(self.data):
            raise UnreadableFirmware(f"its list for SEV-SNP has {count} sections, more than it holds")
        hashes = self._number(SNP_HASHES)
        pages = []
        memory = 0
        for number in range(count):
            address, size, kind = _SNP_SECTION.unpack_from(
                self.data, at + _SNP_LIST.size + number * _SNP_SECTION.size
            )
            memory += size
            if kind not in _SNP_KINDS or address % PAGE or size % PAGE or memory > MAX_MEMORY:
                raise UnreadableFirmware(
                    f"a section for SEV-SNP of kind {kind}, {size} bytes at {address:#x}"
                )
            if kind in _SNP_SINGLE and size != PAGE:
                raise UnreadableFirmware(
                    f"its section of kind {kind} for SEV-SNP is {size} bytes, wanted {PAGE}"
                )
            if kind == _SNP_KERNEL_HASHES:
                pages.append(address)
        if len(pages) != 1:
            raise UnreadableFirmware(
                "it has no page for the kernel's hashes in its list for SEV-SNP: the launch digest names "
                "no kernel; take the AmdSev build of OVMF"
            )
        if not pages[0] <= hashes <= pages[0] + PAGE - 256:
            raise UnreadableFirmware(f"the kernel's hashes are to lie at {hashes:#x}, outside of their page")

    def tdx_sections(self) -> tuple[TdxSection, ...]:
        """The memory that a TDX host prepares, in its order. Raises `UnreadableFirmware`."""
        at = self._list(TDX_METADATA, 16, "TDX")
        signature, size, version, count = _SNP_LIST.unpack_from(self.data, at)
        if signature != b"TDVF" or version != 1 or size != 16 + count * _TDX_SECTION.size:
            raise UnreadableFirmware(f"its list for TDX is {signature!r} of version {version}, {size} bytes")
        if not 1 <= count <= MAX_SECTIONS or at + size > len(self.data):
            raise UnreadableFirmware(f"its list for TDX has {count} sections, more than it holds")
        found = []
        memory = 0
        for number in range(count):
            told = _TDX_SECTION.unpack_from(self.data, at + 16 + number * _TDX_SECTION.size)
            begins, stored, address, size, kind, attributes = told
            memory += size
            if kind not in _TDX_KINDS or address % PAGE or size % PAGE or memory > MAX_MEMORY:
                raise UnreadableFirmware(f"a section for TDX of kind {kind}, {size} bytes at {address:#x}")
            if attributes not in _TDX_ATTRIBUTES:
                raise UnreadableFirmware(
                    f"a section for TDX with the attributes {attributes:#x}, wanted 0 or 1"
                )
            if begins + stored > len(self.data) or (stored != size and (stored or attributes)):
                raise UnreadableFirmware(
                    f"a section for TDX of {size} bytes, {stored} of them from {begins} on in a file of "
                    f"{len(self.data)} bytes"
                )
            content = self.data[begins : begins + size] if attributes else None
            found.append(TdxSection(address, size, content))
        return tuple(found)

    def _list(self, guid: uuid.UUID, size: int, platform: str) -> int:
        """Where in the file a list of sections begins: an entry tells it from the end."""
        from_end = self._number(guid)
        if not from_end:
            raise UnreadableFirmware(f"it tells nothing for {platform}: it cannot start such a guest")
        at = len(self.data) - from_end
        if not 0 <= at <= len(self.data) - size:
            raise UnreadableFirmware(f"its list for {platform} begins outside of it")
        return at

    def _number(self, guid: uuid.UUID) -> int:
        """What an entry of the table begins with; 0 if there is none, or not so much of it."""
        entry = self.table.get(guid, b"")
        return int.from_bytes(entry[:4], "little") if len(entry) >= 4 else 0
