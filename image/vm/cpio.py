"""
cpio archives of the kind the kernel unpacks at boot, the same bytes for the same content.

Format: "newc", Linux Documentation/driver-api/early-userspace/buffer-format.rst and cpio(5). Everything
belongs to root and has the time 0; inode numbers count up.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .errors import UnusableOutput

_TRAILER: Final = "TRAILER!!!"
_LARGEST: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in the archive: a file, a folder or a link, as `mode` says (stat.S_IFREG, …)."""

    path: str  # below /, without a leading slash
    mode: int
    content: bytes = b""  # of a link: where it leads


def file(path: str, content: bytes, mode: int = 0o644) -> Entry:
    """A file."""
    return Entry(path, stat.S_IFREG | mode, content)


def folder(path: str, mode: int = 0o755) -> Entry:
    """A folder."""
    return Entry(path, stat.S_IFDIR | mode)


def link(path: str, to: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, to.encode())


def archive(entries: Iterable[Entry]) -> bytes:
    """All entries, sorted by path, so that a folder comes before what it holds. Raises `UnusableOutput`."""
    ordered = sorted(entries, key=lambda entry: entry.path)
    written = bytearray()
    folders = {""}
    for number, entry in enumerate(ordered, 1):
        above, _, name = entry.path.rpartition("/")
        if (
            not name
            or name in (".", "..")
            or entry.path.startswith("/")
            or "\0" in entry.path
            or above not in folders
        ):
            raise UnusableOutput(
                f"{entry.path!r} cannot stand in the archive: no folder {above!r} comes before it"
            )
        if entry.path in folders or (number > 1 and ordered[number - 2].path == entry.path):
            raise UnusableOutput(f"{entry.path!r} stands in the archive twice")
        if len(entry.content) > _LARGEST:
            raise UnusableOutput(f"{entry.path!r} is too large for the archive")
        if stat.S_ISDIR(entry.mode):
            folders.add(entry.path)
        _add(written, number, entry)
    _add(written, 0, Entry(_TRAILER, 0))
    return bytes(written)


def _add(written: bytearray, number: int, entry: Entry) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
    written += b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name
    written += bytes(-len(written) % 4)
    written += entry.content
    written += bytes(-len(written) % 4)
