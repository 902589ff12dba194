"""
What UEFI firmware starts and is: EFI programs, unified kernel images, disks with partitions, builds of OVMF.

All as small as their formats allow, written from the specifications and not from the code that reads them, so
that one field at a time can be made wrong.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

ALIGNED: Final = 512
SECTOR: Final = 512
PAGE: Final = 4096

ESP: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX: Final = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")

ROOT_WORD: Final = f"blindbox.root={'ab' * 32},{'cd' * 32},4321"
COMMAND_LINE: Final = f"console=ttyS0 panic=-1 {ROOT_WORD}"


def _up(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def program(
    sections: Mapping[str, bytes] | None = None,
    *,
    signatures: bytes = b"",
    trailing: bytes = b"",
    directories: int = 16,
    checksum: int = 0,
    in_memory: Mapping[str, int] | None = None,
    backwards: bool = False,
) -> bytes:
    """A PE32+ file for x86-64; `backwards` stores the sections in the reverse order of their headers."""
    told = {".text": b"\xc3" * 100} if sections is None else dict(sections)
    optional = bytearray(112 + 8 * directories)
    headers = _up(0x80 + 24 + len(optional) + 40 * len(told))
    places: dict[str, int] = {}
    body = b""
    for name in reversed(told) if backwards else told:
        places[name] = headers + len(body)
        body += told[name].ljust(_up(len(told[name])), b"\0")
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<III", optional, 56, 0x10000, headers, checksum)
    struct.pack_into("<I", optional, 108, directories)
    end = headers + len(body) + len(trailing)
    if signatures:
        struct.pack_into("<II", optional, 112 + 8 * 4, end, len(signatures))
    table = b"".join(
        struct.pack(
            "<8sIIIIIIHHI",
            name.encode(),
            (in_memory or {}).get(name, len(data)),
            0x1000 * (number + 1),
            _up(len(data)),
            places[name],
            *(0, 0, 0, 0, 0x40000040),
        )
        for number, (name, data) in enumerate(told.items())
    )
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, len(told), 0, 0, 0, len(optional), 0x22)
    start = b"MZ" + bytes(58) + struct.pack("<I", 0x80) + bytes(64)
    return (start + coff + bytes(optional) + table).ljust(headers, b"\0") + body + trailing + signatures


KERNEL: Final = program({".text": b"a kernel" * 99, ".data": b"its data"})
PARTS: Final = {
    ".text": b"the stub's code" * 50,
    ".sbat": b"sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n",
    ".osrel": b"ID=blindbox\nNAME=BlindBox\n",
    ".cmdline": COMMAND_LINE.encode(),
    ".uname": b"6.12.0-cloud-amd64",
    ".initrd": b"an initrd, compressed\x00\x01",
    ".linux": KERNEL,
}


def uki(**changes: bytes | None) -> bytes:
    """A unified kernel image; `cmdline=b"…"` exchanges a section, `osrel=None` leaves it out."""
    parts: dict[str, bytes] = dict(PARTS)
    for name, data in changes.items():
        if data is None:
            del parts[f".{name}"]
        else:
            parts[f".{name}"] = data
    return program(parts)


def disk(
    holds: bytes = b"",
    *,
    entries: int = 128,
    partitions: Sequence[tuple[uuid.UUID, str]] = ((ESP, "blindbox-esp"), (LINUX, "blindbox-root")),
    **changes: Any,
) -> bytes:
    """A disk with a GPT, whose first partition holds these bytes; `changes` are fields of the header."""
    first = 2 + entries * 128 // SECTOR
    sectors = -(-len(holds) // SECTOR) + 8
    table = b"".join(
        struct.pack(
            "<16s16sQQQ72s",
            kind.bytes_le,
            uuid.uuid5(kind, name).bytes_le,
            first + number * sectors,
            first + (number + 1) * sectors - 1,
            0,
            name.encode("utf-16-le"),
        )
        for number, (kind, name) in enumerate(partitions)
    ).ljust(entries * 128, b"\0")
    last = first + sectors * max(1, len(partitions))
    told = {
        "signature": b"EFI PART",
        "revision": 0x00010000,
        "size": 92,
        "crc": None,
        "place": 1,
        "table": 2,
        "count": entries,
        "entry": 128,
        "entries_crc": zlib.crc32(table),
        **changes,
    }

    def header(crc: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(
                told["signature"],
                told["revision"],
                told["size"],
                crc,
                0,
                told["place"],
                last,
                first,
                last - 1,
            ),
            *(LINUX.bytes_le, told["table"], told["count"], told["entry"], told["entries_crc"]),
        )

    crc = zlib.crc32(header(0)) if told["crc"] is None else told["crc"]
    begins = bytes(SECTOR) + header(crc).ljust(SECTOR, b"\0") + table
    return (begins + holds).ljust((last + 1) * SECTOR, b"\0")


SNP_SECTIONS: Final = (
    (0x800000, 0x9000, 1),
    (0x80D000, 0x1000, 2),
    (0x80E000, 0x1000, 3),
    (0x810000, 0x10000, 1),
    (0x80F000, 0x1000, 0x10),
)
"""(address, size, kind), as the AmdSev build of OVMF has them."""
TDX_SECTIONS: Final = (
    (0x3000, 0xD000, 0xFFFF3000, 0xD000, 0, 1),
    (0x0000, 0x3000, 0xFFFF0000, 0x3000, 1, 0),
    (0, 0, 0x810000, 0x10000, 3, 0),
    (0, 0, 0x809000, 0x2000, 2, 0),
)
"""(offset, stored, address, size, kind, attributes), as the IntelTdx build of OVMF has them."""

_TABLE: Final = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
HASHES: Final = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
RESET: Final = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
SNP: Final = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
TDX: Final = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")


def ovmf(
    *,
    size: int = 0x10000,
    snp: Sequence[tuple[int, int, int]] | None = SNP_SECTIONS,
    tdx: Sequence[tuple[int, int, int, int, int, int]] | None = TDX_SECTIONS,
    table: Mapping[uuid.UUID, bytes | None] | None = None,
    snp_head: bytes | None = None,
    tdx_head: bytes | None = None,
) -> bytes:
    """A build of OVMF; `table` exchanges entries at its end, or takes one away."""
    found = bytearray((bytes(range(251)) * (size // 251 + 1))[:size])
    entries: dict[uuid.UUID, bytes | None] = {
        HASHES: struct.pack("<II", 0x80FC00, 0x400),
        RESET: struct.pack("<I", 0x80B004),
    }
    if snp is not None:
        head = (
            struct.pack("<4sIII", b"ASEV", 16 + 12 * len(snp), 1, len(snp)) if snp_head is None else snp_head
        )
        found[-0x1000 : -0x1000 + 16 + 12 * len(snp)] = head + b"".join(
            struct.pack("<III", *one) for one in snp
        )
        entries[SNP] = struct.pack("<I", 0x1000)
    if tdx is not None:
        head = (
            struct.pack("<4sIII", b"TDVF", 16 + 32 * len(tdx), 1, len(tdx)) if tdx_head is None else tdx_head
        )
        found[-0x800 : -0x800 + 16 + 32 * len(tdx)] = head + b"".join(
            struct.pack("<IIQQII", *one) for one in tdx
        )
        entries[TDX] = struct.pack("<I", 0x800)
    entries.update(table or {})
    said = b"".join(
        data + struct.pack("<H16s", len(data) + 18, guid.bytes_le)
        for guid, data in entries.items()
        if data is not None
    )
    said += struct.pack("<H16s", len(said) + 18, _TABLE.bytes_le)
    found[-32 - len(said) : -32] = said
    return bytes(found)
