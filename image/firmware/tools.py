"""
The compiler and all else that a build needs: Debian packages, pinned, unpacked into a folder of their own.

`packages.lock` is this part's own: who only builds the machine need not fetch a compiler. It pins what is
named here and all that it depends on, as apt resolves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from image.vm import packages
from image.vm.packages import SUITE, Apt, Package

PART: Final = "firmware"
LOCK: Final = Path(__file__).with_name("packages.lock")

WANTED: Final[Mapping[str, str]] = {
    "acpica-tools": "iasl, for the tables in the firmware",
    "base-files": "the links /bin, /lib, /lib64 and /sbin",
    "bash": "edksetup.sh",
    "binutils": "assembler and linker",
    "coreutils": "what scripts call",
    "dash": "/bin/sh",
    "findutils": "what scripts call",
    "g++": "the build's own tools",
    "gcc": "the firmware",
    "grep": "what scripts call",
    "libc6-dev": "the build's own tools",
    "make": "all",
    "nasm": "the first instructions",
    "patch": "Debian's patches and ours",
    "python3": "the build is described in it",
    "sed": "what scripts call",
    "tar": "the source",
    "uuid-dev": "the build's own tools",
    "xz-utils": "the source",
}
"""What is asked for, and for what."""

_HEADER = f"""\
# The Debian packages that build the firmware, from {SUITE}: name, version, SHA-256 of the .deb file.
# tools.py names the ones that are asked for. Written by `python -m image.firmware lock`. A change is a new
# measurement.
"""


def read(lock: Path = LOCK) -> tuple[Package, ...]:
    """The pinned packages. Raises `BadPackage`."""
    return packages.read(lock)


def unpack(wanted: tuple[Package, ...], into: Path) -> None:
    """Fetch what is not in the cache, and unpack all of it. Raises `BadPackage`."""
    files = packages.fetched(wanted, PART)
    # First the links from / into /usr, that nobody else makes a folder in their place.
    packages.unpack(sorted(wanted, key=lambda one: (one.name != "base-files", one.name)), files, into)


def write_lock(apt: Apt, lock: Path = LOCK) -> tuple[Package, ...]:
    """Pin the newest version of every package, and give what is pinned now."""
    packages.write(lock, _HEADER, apt.newest(apt.with_what_they_need(tuple(WANTED))))
    return read(lock)
