"""
The disk: a GUID partition table, and the forms in which clouds take a disk.

    disk.raw       as it is: QEMU, AWS (a snapshot's blocks)
    disk.vhd       the same and a footer, "fixed" in Microsoft's words: Azure
    disk.tar.gz    an archive with disk.raw: Google

Formats: UEFI 2.10 §5 (GPT, protective MBR); "Virtual Hard Disk Image Format Specification" 1.0 (2006);
"Manually import boot disks" of Compute Engine. All three clouds count disks in GiB: the disk is a whole
number of them, so that its end, where the second table has to be, is the same everywhere. What is not used is
a hole in the file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import tarfile
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from . import fat, programs
from .errors import UnusableOutput
from .packages import Tree

SECTOR: Final = 512
ALIGNED: Final = 1 << 20  # where partitions begin
WHOLE: Final = 1 << 30
ESP_SIZE: Final = 64 << 20  # or more, if the program is larger
SETTINGS_SIZE: Final = 1 << 20
FORMS: Final = ("vhd", "tar.gz")

ESP: Final = "blindbox-esp"
ROOT: Final = "blindbox-root"
MODELS: Final = "blindbox-models"
SETTINGS: Final = "blindbox-settings"

EFI_SYSTEM: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_DATA: Final = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
_NAMES: Final = uuid.UUID("0b1d9e3c-5f7a-5c2e-8a46-93d1c7e2f450")  # of the GUIDs made here, chosen once

_ENTRIES: Final = 128
_ENTRY = struct.Struct("<16s16sQQQ72s")
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_TABLE_SECTORS: Final = _ENTRIES * _ENTRY.size // SECTOR

_VHD = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")


@dataclass(frozen=True, slots=True)
class Partition:
    """A name, a kind, and what is in it; `size` is filled up with zeros."""

    name: str
    kind: uuid.UUID
    size: int
    content: bytes | Path = b""


@dataclass(frozen=True, slots=True)
class Placed:
    """A partition and where on the disk it lies, in sectors; `last` belongs to it."""

    partition: Partition
    first: int
    last: int


def make(program: Path, root: Path, models: Path | None, file: Path) -> None:
    """Write the disk of a machine: its program, its volumes, and room for settings."""
    partitions = [
        Partition(ESP, EFI_SYSTEM, *_system(program)),
        Partition(ROOT, LINUX_DATA, root.stat().st_size, root),
    ]
    if models is not None:
        partitions.append(Partition(MODELS, LINUX_DATA, models.stat().st_size, models))
    partitions.append(Partition(SETTINGS, LINUX_DATA, SETTINGS_SIZE))
    write(partitions, file)


def write(partitions: Sequence[Partition], file: Path) -> None:
    """A disk with these partitions, each beginning at a whole MiB."""
    placed, end = place(partitions)
    sectors = _up(end + (_TABLE_SECTORS + 1) * SECTOR, WHOLE) // SECTOR
    table = b"".join(map(_entry, placed)).ljust(_ENTRIES * _ENTRY.size, b"\0")
    with file.open("xb") as disk:
        disk.truncate(sectors * SECTOR)
        disk.write(_protective_mbr(sectors))
        disk.write(_header(1, sectors - 1, 2, sectors, table))
        disk.write(table)
        for one in placed:
            disk.seek(one.first * SECTOR)
            if isinstance(one.partition.content, bytes):
                disk.write(one.partition.content)
            else:
                with one.partition.content.open("rb") as content:
                    copy(content, disk)
        disk.seek((sectors - 1 - _TABLE_SECTORS) * SECTOR)
        disk.write(table)
        disk.write(_header(sectors - 1, 1, sectors - 1 - _TABLE_SECTORS, sectors, table))
        disk.flush()
        os.fsync(disk.fileno())


def place(partitions: Sequence[Partition]) -> tuple[list[Placed], int]:
    """Where each partition lies, and the byte after the last. Raises `UnusableOutput`."""
    if len(partitions) > _ENTRIES or len({one.name for one in partitions}) < len(partitions):
        raise UnusableOutput(f"a disk has at most {_ENTRIES} partitions, each with a name of its own")
    placed, at = [], ALIGNED
    for one in partitions:
        size = len(one.content) if isinstance(one.content, bytes) else one.content.stat().st_size
        if not max(size, 1) <= one.size or len(one.name.encode("utf-16-le")) > 72:
            raise UnusableOutput(f"partition {one.name} has {one.size} bytes for {size}")
        end = _up(at + one.size, ALIGNED)
        placed.append(Placed(one, at // SECTOR, end // SECTOR - 1))
        at = end
    return placed, at


def vhd(disk: Path, file: Path) -> None:
    """The disk as Azure takes it."""
    size = disk.stat().st_size
    with file.open("xb") as out, disk.open("rb") as raw:
        copy(raw, out)
        out.truncate(size)
        out.seek(size)
        out.write(vhd_footer(size, _digest(disk)[:16]))
        out.flush()
        os.fsync(out.fileno())


def vhd_footer(size: int, identity: bytes) -> bytes:
    """The 512 bytes that make a raw disk of `size` bytes a fixed VHD."""
    cylinders, heads, sectors = vhd_geometry(size)

    def packed(checksum: int) -> bytes:
        # Features: the reserved bit, which is always set. Made 0 seconds after 2000. By "win ": of creators
        # that they do not know, readers take the geometry's word for the size, which falls short of it.
        made = (0, b"win ", 0x00010000, b"Wi2k")
        return _VHD.pack(
            *(b"conectix", 2, 0x00010000, 0xFFFFFFFFFFFFFFFF, *made, size, size),
            *(cylinders, heads, sectors, 2, checksum, identity, 0),
        )

    return packed(~sum(packed(0)) & 0xFFFFFFFF)


def vhd_geometry(size: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors a track: the calculation of the VHD specification's appendix."""
    total = min(size // SECTOR, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        sectors, heads = 255, 16
        return total // sectors // heads, heads, sectors
    sectors = 17
    tracks = total // sectors
    heads = max((tracks + 1023) // 1024, 4)
    if tracks >= heads * 1024 or heads > 16:
        sectors, heads = 31, 16
        tracks = total // sectors
    if tracks >= heads * 1024:
        sectors, heads = 63, 16
        tracks = total // sectors
    return tracks // heads, heads, sectors


def archive(tree: Tree, disk: Path, file: Path) -> None:
    """The disk as Google takes it: `disk.raw` alone, in tar's GNU form, under gzip."""
    with Path(f"{file}.tar").open("x+b") as tar:
        Path(tar.name).unlink()  # it has no name from here on, and is gone when it is closed
        entry = tarfile.TarInfo("disk.raw")
        entry.size, entry.mode, entry.mtime = disk.stat().st_size, 0o644, programs.EPOCH
        header = entry.tobuf(tarfile.GNU_FORMAT)
        tar.write(header)
        with disk.open("rb") as raw:
            copy(raw, tar)
        tar.truncate(_up(len(header) + entry.size + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE))
        tar.seek(0)
        with file.open("xb") as out:
            command = [*tree.program("usr/bin/gzip"), "-n", "-6", "-c"]
            programs.pinned("gzip", command, stdin=tar, stdout=out)
            os.fsync(out.fileno())


def copy(source: IO[bytes], to: IO[bytes]) -> None:
    """All of a file to where `to` stands; its holes stay holes, if there is nothing there yet."""
    start, size, at = to.tell(), os.fstat(source.fileno()).st_size, 0
    while at < size:
        try:
            at = os.lseek(source.fileno(), at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole up to the end
                raise
            break
        end = os.lseek(source.fileno(), at, os.SEEK_HOLE)
        to.seek(start + at)
        while at < end:
            chunk = os.pread(source.fileno(), min(end - at, 1 << 22), at)
            to.write(chunk)
            at += len(chunk)
    to.seek(start + size)


def _system(program: Path) -> tuple[int, bytes]:
    """The size and the bytes of the partition that firmware starts from."""
    content = program.read_bytes()
    # Beside the program: the tables, which take an 64th, and three folders.
    size = max(ESP_SIZE, _up(len(content) + len(content) // 32 + (1 << 20), ALIGNED))
    files = {"EFI/BOOT/BOOTX64.EFI": content}
    return size, fat.image(files, size, label="BLINDBOX", serial=0x0B11DB0C, hidden=ALIGNED // SECTOR)


def _entry(one: Placed) -> bytes:
    name = one.partition.name
    return _ENTRY.pack(
        *(one.partition.kind.bytes_le, uuid.uuid5(_NAMES, name).bytes_le),
        *(one.first, one.last, 0, name.encode("utf-16-le")),
    )


def _header(own: int, other: int, table_at: int, sectors: int, table: bytes) -> bytes:
    first, last = 2 + _TABLE_SECTORS, sectors - 2 - _TABLE_SECTORS

    def packed(crc: int) -> bytes:
        return _HEADER.pack(
            *(b"EFI PART", 0x00010000, _HEADER.size, crc, 0, own, other, first, last),
            *(uuid.uuid5(_NAMES, "disk").bytes_le, table_at, _ENTRIES, _ENTRY.size, zlib.crc32(table)),
        )

    return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\0")


def _protective_mbr(sectors: int) -> bytes:
    """One partition of type EE over all of the disk, or as much of it as an MBR can say."""
    entry = struct.pack("<B3sB3sII", 0, b"\0\x02\0", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    return (bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa"


def _digest(file: Path) -> bytes:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").digest()


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
