"""
The source: Debian's package edk2, its tarballs pinned by SHA-256, and our patches.

Debian's patches and then ours are applied where the build runs (`inside.sh`), by the pinned `patch`. Each of
ours says at its head why it is there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from image.vm import packages
from image.vm.errors import BadPackage
from image.vm.packages import SUITE, Apt, SourceFile

from .tools import PART

PACKAGE: Final = "edk2"
LOCK: Final = Path(__file__).with_name("source.lock")
PATCHES: Final = Path(__file__).with_name("patches")

_LINE = re.compile(
    r"(?P<package>[a-z0-9][a-z0-9.+-]+) (?P<version>[0-9A-Za-z.:+~-]+) "
    r"(?P<name>[a-z0-9][A-Za-z0-9.+~_-]+\.tar\.(?:xz|gz|bz2)) (?P<sha256>[0-9a-f]{64})"
)
_HEADER = f"""\
# The source of the firmware, from {SUITE}: package, version, file, SHA-256.
# Written by `python -m image.firmware lock`. A change is a new measurement.
"""


def read(lock: Path = LOCK) -> tuple[SourceFile, ...]:
    """The pinned tarballs: one of the authors, one of Debian. Raises `BadPackage`."""
    try:
        lines = lock.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadPackage(f"{lock} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise BadPackage(f"{lock}, line {number}: {line[:80]!r} is not PACKAGE VERSION FILE SHA256")
        found.append(SourceFile(**match.groupdict()))
    kinds = sorted(".".join(one.name.rsplit(".", 3)[-3:-1]) for one in found)
    if kinds != ["debian.tar", "orig.tar"] or len({(one.package, one.version) for one in found}) != 1:
        raise BadPackage(f"{lock} is to pin the .orig.tar and the .debian.tar of one version of {PACKAGE}")
    return tuple(found)


def fetched(files: tuple[SourceFile, ...]) -> Path:
    """The folder of the cache where each tarball lies under its SHA-256. Raises `BadPackage`."""
    folder = packages.cache(PART) / "source"
    folder.mkdir(exist_ok=True)
    if not all(packages.is_right(folder / one.sha256, one.sha256) for one in files):
        with Apt(PART, sources=True) as apt:
            apt.fetch_source(files, folder)
    return folder


def patches() -> list[Path]:
    """Ours, in the order in which they apply."""
    return sorted(PATCHES.glob("*.patch"))


def write_lock(apt: Apt, lock: Path = LOCK) -> tuple[SourceFile, ...]:
    """Pin the newest version, and give what is pinned now."""
    lines = [f"{one.package} {one.version} {one.name} {one.sha256}\n" for one in apt.newest_source(PACKAGE)]
    beside = lock.with_name(f"{lock.name}.part")
    beside.write_text(_HEADER + "".join(lines), "utf-8")
    beside.replace(lock)
    return read(lock)
