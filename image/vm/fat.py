"""
A FAT32 file system that holds a few files, the same bytes for the same files.

Source: Microsoft, "FAT: General Overview of On-Disk Format" 1.03 (fatgen103). FAT32 because UEFI §13.3 wants
it of a system partition on a disk; clusters of one sector because a small FAT32 has no choice: it is one by
having 65,525 clusters or more. Names are of the old kind, eight letters and three: all that firmware looks
for is EFI/BOOT/BOOTX64.EFI.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Final

from .errors import UnusableOutput

SECTOR: Final = 512
LEAST: Final = 34 << 20  # bytes: with fewer clusters it would be a FAT16
_RESERVED: Final = 32  # sectors before the first table
_TABLES: Final = 2
_ROOT: Final = 2  # the first cluster there is
_END: Final = 0x0FFFFFFF
_DIRECTORY: Final = 0x10
_ARCHIVE: Final = 0x20
_DATE: Final = (2026 - 1980) << 9 | 1 << 5 | 1  # 1 January 2026
_NAME = re.compile(r"[A-Z0-9_-]{1,8}(?:\.[A-Z0-9_-]{1,3})?")
_ENTRY = struct.Struct("<11sBBBHHHHHHHI")
_BOOT = struct.Struct("<3s8sHBHBHHBHHHIIIHHIHH12xBxBI11s8s")


def image(files: Mapping[str, bytes], size: int, *, label: str, serial: int, hidden: int) -> bytes:
    """
    A file system of `size` bytes with these files, by path ("EFI/BOOT/BOOTX64.EFI").

    `hidden` is how many sectors of the disk come before it. Raises `UnusableOutput` for what has no room.
    """
    if size < LEAST or size % SECTOR:
        raise UnusableOutput(f"a FAT32 of {size} bytes; wanted are {LEAST} or more, in sectors of {SECTOR}")
    sectors = size // SECTOR
    # A sector of a table tells of 128 clusters, the first one also of two that do not exist: solved for what
    # the tables themselves leave over.
    table = -(-(sectors - _RESERVED + _ROOT) // (SECTOR // 4 + _TABLES))
    clusters = sectors - _RESERVED - _TABLES * table
    volume = _Volume(clusters)
    volume.write(_tree(files), _label(label))
    boot = _boot_sector(sectors, table, _label(label), serial, hidden)
    information = _information(clusters - volume.used, _ROOT + volume.used)
    start = bytearray(_RESERVED * SECTOR)
    for at in (0, 6):  # both sectors, and where fatgen103 wants their copies
        start[at * SECTOR : (at + 2) * SECTOR] = boot + information
    tables = volume.table().ljust(table * SECTOR, b"\0") * _TABLES
    return bytes(start) + tables + bytes(volume.data).ljust(clusters * SECTOR, b"\0")


Folder = dict[str, "Folder | bytes"]


def _tree(files: Mapping[str, bytes]) -> Folder:
    root: Folder = {}
    for path, content in sorted(files.items()):
        *above, name = path.split("/")
        folder = root
        for part in above:
            below = folder.setdefault(_checked(part), {})
            if isinstance(below, bytes):
                raise UnusableOutput(f"{path}: {part} is a file")
            folder = below
        if folder.setdefault(_checked(name), content) is not content:
            raise UnusableOutput(f"{path} is a folder, too")
    return root


class _Volume:
    """The clusters, filled from the first on."""

    def __init__(self, clusters: int) -> None:
        self.data = bytearray()
        self._clusters = clusters
        self._chains: list[int] = []  # the length of each chain of clusters, in their order

    @property
    def used(self) -> int:
        return sum(self._chains)

    def write(self, root: Folder, label: bytes) -> None:
        """The whole tree. The root comes first, where every reader looks for it."""
        self._folder(root, 0, label)

    def table(self) -> bytes:
        """Each cluster's successor: files lie in one piece."""
        entries = [0x0FFFFFF8, _END]
        for length in self._chains:
            first = len(entries)
            entries += [*range(first + 1, first + length), _END]
        return struct.pack(f"<{len(entries)}I", *entries)

    def _folder(self, folder: Folder, parent: int, label: bytes = b"") -> int:
        """Write a folder and what is in it; where it begins."""
        entries = 1 if label else 2
        first = self._reserve((entries + len(folder)) * _ENTRY.size)
        # ".." of a folder in the root says 0, and not where the root begins.
        own = [_entry(label, 0x08, 0, 0)] if label else [_entry(b".", _DIRECTORY, first, 0)]
        own += [] if label else [_entry(b"..", _DIRECTORY, 0 if parent == _ROOT else parent, 0)]
        for name, content in folder.items():
            if isinstance(content, bytes):
                at = self._file(content)
                own.append(_entry(_short(name), _ARCHIVE, at, len(content)))
            else:
                own.append(_entry(_short(name), _DIRECTORY, self._folder(content, first), 0))
        at = (first - _ROOT) * SECTOR
        self.data[at : at + len(own) * _ENTRY.size] = b"".join(own)
        return first

    def _file(self, content: bytes) -> int:
        if not content:
            return 0
        first = self._reserve(len(content))
        at = (first - _ROOT) * SECTOR
        self.data[at : at + len(content)] = content
        return first

    def _reserve(self, size: int) -> int:
        first, length = _ROOT + self.used, -(-size // SECTOR)
        if self.used + length > self._clusters:
            raise UnusableOutput(f"the files need more than the {self._clusters} clusters of the file system")
        self._chains.append(length)
        self.data += bytes(length * SECTOR)
        return first


def _boot_sector(sectors: int, table: int, label: bytes, serial: int, hidden: int) -> bytes:
    fields = _BOOT.pack(
        *(
            b"\xeb\x58\x90",
            b"BLINDBOX",
            SECTOR,
            1,
            _RESERVED,
            _TABLES,
            0,
            0,
            0xF8,
            0,
            63,
            255,
            hidden,
            sectors,
        ),
        *(table, 0, 0, _ROOT, 1, 6, 0x80, 0x29, serial, label, b"FAT32   "),
    )
    return fields.ljust(510, b"\0") + b"\x55\xaa"


def _information(free: int, next_free: int) -> bytes:
    return struct.pack("<4s480x4sII12x4s", b"RRaA", b"rrAa", free, next_free, b"\0\0\x55\xaa")


def _entry(name: bytes, attributes: int, first: int, size: int) -> bytes:
    return _ENTRY.pack(
        *(name.ljust(11), attributes, 0, 0, 0, _DATE, _DATE, first >> 16, 0, _DATE, first & 0xFFFF, size)
    )


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UnusableOutput(f"{name!r} is not a name of eight capital letters or digits and three")
    return name


def _short(name: str) -> bytes:
    stem, _, ending = name.partition(".")
    return stem.encode().ljust(8) + ending.encode().ljust(3)


def _label(label: str) -> bytes:
    if not re.fullmatch(r"[A-Z0-9 _-]{1,11}", label):
        raise UnusableOutput(f"{label!r} is not a label of at most eleven capital letters or digits")
    return label.encode().ljust(11)
