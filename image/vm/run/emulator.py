"""
QEMU, from pinned Debian packages: the same one wherever a machine is booted, with its own libraries.

QEMU 7.2, which Debian 12 has, would not do: its `cmpxchg16b` works out the flags from a state that is out of
date (target/i386/tcg/mem_helper.c), and two boots of five end in a kernel panic. Without that instruction
none does, but NumPy insists on x86-64-v2, thus on it.

The lock is of its own: who only builds a machine downloads no emulator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .. import packages
from ..packages import SUITE, Apt, Package

LOCK: Final = Path(__file__).with_name("packages.lock")
PROGRAM: Final = "usr/bin/qemu-system-x86_64"
DATA: Final = "usr/share/qemu"

WANTED: Final = ("qemu-system-x86", "qemu-system-data")  # the program; the ROM of its interrupt controller
LIBRARIES: Final = (
    *("libaio1t64", "libatomic1", "libblkid1", "libbpf1", "libc6", "libcap2", "libcapstone5", "libdaxctl1"),
    *("libelf1t64", "libfdt1", "libffi8", "libfuse3-4", "libglib2.0-0t64", "libgmp10", "libgnutls30t64"),
    *("libhogweed6t64", "libibverbs1", "libidn2-0", "libjpeg62-turbo", "libkmod2", "libmount1", "libndctl6"),
    *("libnettle8t64", "libnl-3-200", "libnl-route-3-200", "libnuma1", "libp11-kit0", "libpcre2-8-0"),
    *("libpixman-1-0", "libpmem1", "libpng16-16t64", "librdmacm1t64", "libsasl2-2", "libseccomp2"),
    *("libselinux1", "libslirp0", "libssl3t64", "libtasn1-6", "libudev1", "libunistring5", "liburing2"),
    *("libuuid1", "libvdeplug2t64", "libzstd1", "zlib1g"),
)
"""What the program is linked with: half of what apt would install with it, and no window, sound or PXE."""

_HEADER = f"""\
# QEMU and its libraries, Debian packages from {SUITE}: name, version, SHA-256 of the .deb file.
# emulator.py names them. Written by `python -m image.vm lock`. Nothing of it is measured.
"""


def read(lock: Path = LOCK) -> tuple[Package, ...]:
    """The pinned packages. Raises `BadPackage`."""
    return packages.read(lock)


def qemu() -> list[str]:
    """How to run it: fetched and unpacked in the cache, if it is not there yet. Raises `VmError`."""
    tree = packages.unpacked(LOCK)
    return [str(word) for word in (*tree.program(PROGRAM), "-L", tree.file(DATA))]


def write_lock(lock: Path = LOCK) -> tuple[Package, ...]:
    """Pin the newest version of every package, and give what is pinned now."""
    with Apt() as apt:
        packages.write(lock, _HEADER, apt.newest((*WANTED, *LIBRARIES)))
    return read(lock)
