"""
A disk's partition table, as the firmware measures it before it starts anything from that disk.

GUID Partition Table: UEFI 2.10, §5.3. The event is UEFI_GPT_DATA of TCG PC Client Platform Firmware Profile
1.06, §10.2.5: the first header, the number of partitions, and the entry of each. So the names, places and
GUIDs of the partitions are measured, and not a byte of what they hold.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import BinaryIO, Final

from .errors import UnreadableDisk

SECTOR: Final = 512
MAX_ENTRIES: Final = 1024

_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_SIGNATURE: Final = b"EFI PART"
_REVISION: Final = 0x00010000
_CRC: Final = slice(16, 20)
_ENTRY: Final = 128
_FARTHEST: Final = 1 << 40  # sectors; no disk is so large, and no seek fails for it


def event_data(disk: BinaryIO) -> bytes:
    """What firmware measures of the disk. Raises `UnreadableDisk`."""
    disk.seek(SECTOR)
    header = disk.read(_HEADER.size)
    if len(header) != _HEADER.size:
        raise UnreadableDisk("it is shorter than two sectors: is it cut short?")
    told = _HEADER.unpack(header)
    signature, revision, size, crc, _, place, other, _, _, _, table, count, entry, entries_crc = told
    if signature != _SIGNATURE or revision != _REVISION or size != _HEADER.size or place != 1:
        raise UnreadableDisk(
            f"its second sector begins with {signature!r}, and is no GPT header of revision 1.0"
        )
    if crc != zlib.crc32(header[: _CRC.start] + bytes(4) + header[_CRC.stop :]):
        raise UnreadableDisk("the checksum of its GPT header is wrong")
    if entry != _ENTRY or not 1 <= count <= MAX_ENTRIES or not 2 <= table <= _FARTHEST:
        raise UnreadableDisk(f"its GPT has {count} entries of {entry} bytes from sector {table} on")
    ends = disk.seek(0, os.SEEK_END)
    if ends < (other + 1) * SECTOR:
        raise UnreadableDisk(
            f"it is {ends} bytes, its second GPT header would end at {(other + 1) * SECTOR}: is it cut short?"
        )
    disk.seek(table * SECTOR)
    entries = disk.read(count * entry)
    if len(entries) != count * entry:
        raise UnreadableDisk("it ends within its partition table: is it cut short?")
    if entries_crc != zlib.crc32(entries):
        raise UnreadableDisk("the checksum of its partition table is wrong")
    used = [entries[at : at + entry] for at in range(0, len(entries), entry) if any(entries[at : at + 16])]
    return header + struct.pack("<Q", len(used)) + b"".join(used)
