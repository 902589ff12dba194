"""
A zip archive of a few files that are in memory, piece by piece: stored as they are, sizes and sums up front.

Written by hand because the standard library, where it cannot seek back, writes sizes behind the data, which
some readers refuse for stored files. Format: PKWARE APPNOTE 6.3.3, with ZIP64 (§4.5.3) where 32 bits are too
few. The same files give the same bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Final

PIECE: Final = 256 << 10
_FULL: Final = 0xFFFF_FFFF
_TIME, _DATE = 0, 33  # 1 January 1980, 0:00, the earliest there is: when it was packed is nobody's business
_UTF8: Final = 0x0800
_VERSION: Final = 45  # ZIP64


def size(files: Mapping[str, bytes]) -> int:
    """How many bytes `zipped` gives."""
    unknown = dict.fromkeys(files, 0)
    heads = sum(len(_local(name, data, 0)) for name, data in files.items())
    return heads + sum(map(len, files.values())) + len(_end(files, unknown))


def zipped(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """The archive: each file behind its header, then the list of them."""
    sums = {}
    for name, data in files.items():
        sums[name] = zlib.crc32(data)
        yield _local(name, data, sums[name])
        whole = memoryview(data)
        for at in range(0, len(data), PIECE):
            yield bytes(whole[at : at + PIECE])
    yield _end(files, sums)


def _local(name: str, data: bytes, crc: int) -> bytes:
    encoded, large = name.encode(), len(data) >= _FULL
    extra = struct.pack("<HHQQ", 1, 16, len(data), len(data)) if large else b""
    length = _FULL if large else len(data)
    head = struct.pack(
        "<IHHHHHIIIHH",
        0x04034B50, _VERSION, _UTF8, 0, _TIME, _DATE, crc, length, length, len(encoded), len(extra),
    )  # fmt: skip
    return head + encoded + extra


def _end(files: Mapping[str, bytes], sums: Mapping[str, int]) -> bytes:
    """What stands at the end: an entry for each file, and where the entries are."""
    at, entries = 0, b""
    for name, data in files.items():
        entries += _entry(name, data, sums[name], at)
        at += len(_local(name, data, 0)) + len(data)
    count = len(files)
    sixty_four = struct.pack(
        "<IQHHIIQQQQ", 0x06064B50, 44, _VERSION, _VERSION, 0, 0, count, count, len(entries), at
    ) + struct.pack("<IIQI", 0x07064B50, 0, at + len(entries), 1)
    large = at >= _FULL
    last = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, len(entries), _FULL if large else at, 0)
    return entries + (sixty_four if large else b"") + last


def _entry(name: str, data: bytes, crc: int, at: int) -> bytes:
    encoded = name.encode()
    length, place, extra = len(data), at, b""
    if length >= _FULL:
        extra, length = struct.pack("<QQ", len(data), len(data)), _FULL
    if place >= _FULL:
        extra, place = extra + struct.pack("<Q", at), _FULL
    if extra:
        extra = struct.pack("<HH", 1, len(extra)) + extra
    head = struct.pack(
        "<IHHHHHHIIIHHHHHII",
        0x02014B50, _VERSION, _VERSION, _UTF8, 0, _TIME, _DATE, crc, length, length,
        len(encoded), len(extra), 0, 0, 0, 0, place,
    )  # fmt: skip
    return head + encoded + extra
