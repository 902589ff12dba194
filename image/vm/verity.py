"""
A folder → one file: a squashfs, and after it the dm-verity tree that makes every block of it provable.

The file is laid out as `veritysetup format --hash-offset` does, so that `veritysetup verify` reads it:

    data blocks │ one block that begins with the verity superblock │ hash tree, its top first

Formats: Linux Documentation/admin-guide/device-mapper/verity.rst; the superblock of cryptsetup's
docs/on-disk-format (DMVerity, version 1, hash type 1: each hash is over the salt, then the block).
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from . import programs
from .errors import UnusableOutput
from .packages import Tree

BLOCK: Final = 4096
_DIGEST: Final = 32
_FAN_OUT: Final = BLOCK // _DIGEST
_CHUNK: Final = 1 << 20
_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")
_NAMES = uuid.UUID("6d1c7a0e-4a3b-5b0f-9f0e-0d4c2f6b8a11")  # of the UUIDs made here, chosen once

SQUASHFS: Final = (
    "-noappend",
    "-no-progress",
    "-quiet",
    "-no-xattrs",  # file capabilities among them: nothing in the machine gets any
    "-no-exports",
    "-reproducible",
    *("-all-time", str(programs.EPOCH), "-mkfs-time", str(programs.EPOCH)),
    *("-b", "131072"),
)
SYSTEM: Final = ("-comp", "zstd", "-Xcompression-level", "6")
WEIGHTS: Final = (
    # Weights hardly compress, and are read the faster for it; a tail shares its block with nobody.
    *("-comp", "zstd", "-noD", "-no-fragments"),
    # Whoever made the folder, and with whatever umask: these are read by everybody and written by nobody.
    *("-all-root", "-action", "chmod(a=rX)@true"),
)


@dataclass(frozen=True, slots=True)
class Volume:
    """A file that dm-verity opens, and what it needs to know for that."""

    file: Path
    root_hash: str  # SHA-256 in hex
    salt: str  # hex
    data_blocks: int  # of 4096 bytes; the superblock's block comes next, then the tree


def make(tree: Tree, folder: Path, file: Path, *, name: str, options: tuple[str, ...]) -> Volume:
    """
    `folder` as a volume in `file`, which must not be there yet.

    The salt and the UUID follow from `name`: they separate volumes of different kinds, and need no secret.
    """
    if file.exists():
        raise UnusableOutput(f"{file} is there already")
    command = [*tree.program("usr/bin/mksquashfs"), folder, file, *SQUASHFS, *options]
    programs.pinned("mksquashfs", command)
    return protect(file, name)


def protect(file: Path, name: str) -> Volume:
    """Fill the file up to whole blocks and append superblock and tree."""
    salt = hashlib.sha256(f"blindbox-{name}".encode()).digest()
    size = file.stat().st_size
    if size == 0:
        raise UnusableOutput(f"{file} is empty: there is nothing to protect")
    blocks = -(-size // BLOCK)
    with file.open("r+b") as data:
        data.truncate(blocks * BLOCK)
        root, levels = _tree(data, blocks, salt)
        data.seek(blocks * BLOCK)
        data.write(_superblock(name, blocks, salt).ljust(BLOCK, b"\0"))
        for level in levels:
            data.write(level)
        data.flush()
        os.fsync(data.fileno())
    return Volume(file, root.hex(), salt.hex(), blocks)


def _superblock(name: str, blocks: int, salt: bytes) -> bytes:
    return _SUPERBLOCK.pack(
        *(b"verity", 1, 1, uuid.uuid5(_NAMES, name).bytes, b"sha256", BLOCK, BLOCK, blocks, len(salt), salt)
    )


def _tree(data: BinaryIO, blocks: int, salt: bytes) -> tuple[bytes, list[bytes]]:
    """The root hash, and the levels of the tree in the order they are stored: top first."""
    salted = hashlib.sha256(salt)

    def hashes(chunk: bytes | memoryview) -> bytes:
        found = []
        for at in range(0, len(chunk), BLOCK):
            one = salted.copy()
            one.update(chunk[at : at + BLOCK])
            found.append(one.digest())
        return b"".join(found)

    data.seek(0)
    digests = bytearray()
    for at in range(0, blocks * BLOCK, _CHUNK):
        digests += hashes(memoryview(data.read(min(_CHUNK, blocks * BLOCK - at))))
    levels: list[bytes] = []
    while len(digests) > _DIGEST:
        level = bytes(digests).ljust(-(-len(digests) // (_FAN_OUT * _DIGEST)) * BLOCK, b"\0")
        levels.insert(0, level)
        digests = bytearray(hashes(memoryview(level)))
    return bytes(digests), levels
