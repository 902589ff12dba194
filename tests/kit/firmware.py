"""The firmware that a build has left in the cache, and what a host may bring for it to start."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from image.firmware import build, store


def built(which: str) -> Path:
    """`snp` or `tdx`, of the present recipe; skips the test where nobody has built it: that takes minutes."""
    file = store.found(build.FILES[which], store.recipe())
    if file is None:
        pytest.skip(f"no {build.FILES[which]} of the present recipe in the cache: `make firmware` builds it")
    return file


def program(says: bytes, subsystem: int = 10) -> bytes:
    """
    A program for EFI that writes to the first serial port, and returns: an application (10) or a driver (11).

    PE32+ in its smallest form (Microsoft's "PE Format"): headers, code, and an empty list of relocations.
    """
    code = b"\x66\xba\xf8\x03"  # mov dx, 0x3f8
    for letter in says:
        code += b"\xb0" + bytes([letter]) + b"\xee"  # mov al, letter; out dx, al
    code += b"\x31\xc0\xc3"  # xor eax, eax; ret: EFI_SUCCESS
    assert len(code) <= 0x200
    headers = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    headers += struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 2, 0, 0, 0, 240, 0x2022)
    headers += struct.pack("<HBBIIIII", 0x20B, 0, 0, 0x200, 0x200, 0, 0x1000, 0x1000)
    headers += struct.pack(
        "<QII16xIIIHHQQQQII", 0, 0x1000, 0x200, 0x3000, 0x200, 0, subsystem, 0, *[0] * 5, 16
    )
    headers += bytes(5 * 8) + struct.pack("<II", 0x2000, 12) + bytes(10 * 8)
    headers += struct.pack("<8sIIII12xI", b".text", 0x200, 0x1000, 0x200, 0x200, 0x60000020)
    headers += struct.pack("<8sIIII12xI", b".reloc", 12, 0x2000, 0x200, 0x400, 0x42000040)
    relocations = struct.pack("<IIHH", 0x1000, 12, 0, 0)
    return b"".join(part.ljust(0x200, b"\0") for part in (headers, code, relocations))


def option_rom(driver: bytes, vendor: int, device: int) -> bytes:
    """The ROM of a PCI device, with an EFI driver in it (UEFI Specification, "PCI Option ROMs")."""
    units = -(-(0x38 + len(driver)) // 512)
    header = struct.pack("<2sHIHHH8xHH", b"\x55\xaa", units, 0xEF1, 11, 0x8664, 0, 0x38, 0x1C)
    about = struct.pack("<4sHHHHB3xHHBB", b"PCIR", vendor, device, 0, 0x18, 0, units, 0, 3, 0x80)
    return (header.ljust(0x1C, b"\0") + about.ljust(0x1C, b"\0") + driver).ljust(0x10000, b"\0")
