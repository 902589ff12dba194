"""
A unified kernel image: the stub, the kernel, its initrd and its command line in one EFI program.

The sections and what becomes of them: UAPI.5 "Unified Kernel Image" and systemd-stub(7). This module knows
what systemd-stub 257 makes of them, for that is what is measured: the command line as the kernel gets it, and
the initrd with the stub's own small archive behind it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from .errors import UnreadableProgram
from .pe import Program

MEASURED: Final = (
    ".linux",
    ".osrel",
    ".cmdline",
    ".initrd",
    ".ucode",
    ".splash",
    ".uname",
    ".sbat",
)
"""What the stub measures into PCR 11, in the order of systemd's src/fundamental/uki.c."""

_OTHERS: Final = (".dtb", ".pcrsig", ".pcrpkey", ".profile", ".dtbauto", ".hwids", ".efifw")
"""Sections that the stub knows too, and that our build never writes: they would change what is measured."""

_NEEDED: Final = (".linux", ".cmdline", ".initrd", ".osrel")
_COMMAND_LINE: Final = re.compile(rb"[ -~]{1,2047}")
"""Printable ASCII, and shorter than the kernel's COMMAND_LINE_SIZE of 2048 on x86."""

_OS_RELEASE: Final = ".extra", "os-release"


@dataclass(frozen=True, slots=True)
class Uki:
    """A unified kernel image. Nothing in it has been verified."""

    program: Program
    kernel: Program
    sections: tuple[tuple[str, bytes], ...]  # those that are measured, in their order
    command_line: str

    @classmethod
    def parse(cls, data: bytes) -> Uki:
        """Raises `UnreadableProgram`."""
        program = Program.parse(data)
        found: dict[str, bytes] = {}
        for section in program.sections:
            if section.name in found:
                raise UnreadableProgram(f"it has the section {section.name} twice")
            if section.name in _OTHERS:
                raise UnreadableProgram(
                    f"it has a section {section.name}, which our build does not write: it cannot be predicted"
                )
            found[section.name] = section.content(data)
        for name in _NEEDED:
            if not found.get(name):
                raise UnreadableProgram(f"it has no {name}: is it a unified kernel image?")
        try:
            kernel = Program.parse(found[".linux"])
        except UnreadableProgram as error:
            raise UnreadableProgram(f"the kernel in it cannot be read: {error}") from error
        sections = tuple((name, found[name]) for name in MEASURED if name in found)
        return cls(program, kernel, sections, _command_line(found[".cmdline"]))

    @property
    def load_options(self) -> bytes:
        """The command line as the stub hands it to the kernel: UTF-16 with a zero at its end."""
        return (self.command_line + "\0").encode("utf-16-le")

    @property
    def initrd(self) -> bytes:
        """
        What the kernel gets as its initrd, each archive filled up to a multiple of four bytes.

        Microcode first, the build's initrd, then .osrel as /.extra/os-release (generate_embedded_initrds()
        and combine_initrds() in systemd's stub.c).
        """
        found = dict(self.sections)
        parts = (found.get(".ucode", b""), found[".initrd"], _archive(*_OS_RELEASE, found[".osrel"]))
        return b"".join(_filled(part) for part in parts)


def _command_line(content: bytes) -> str:
    """As mangle_stub_cmdline() leaves it: without space around it."""
    text = content.rstrip(b"\0").strip(b" \n")
    if not _COMMAND_LINE.fullmatch(text):
        raise UnreadableProgram(
            f"its command line is {len(text)} bytes long, or not ASCII: wanted 1 to 2047 printable characters"
        )
    return text.decode("ascii")


def _archive(folder: str, name: str, content: bytes) -> bytes:
    """One file in the cpio format of an initrd, as pack_cpio_literal() in systemd's cpio.c writes it."""
    return b"".join(
        (
            _entry(1, 0o040555, folder, b""),
            _entry(2, 0o100444, f"{folder}/{name}", content),
            # The stub writes this one from a constant, with a capital B and no inode.
            b"070701" + b"00000000" * 4 + b"00000001" + b"00000000" * 6 + b"0000000B" + b"00000000",
            b"TRAILER!!!\0\0\0\0",
        )
    )


def _entry(inode: int, mode: int, path: str, content: bytes) -> bytes:
    """Owner, time and devices are zero, whoever builds and whenever."""
    name = path.encode("ascii") + b"\0"
    numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    return _filled(b"070701" + b"".join(b"%08x" % number for number in numbers) + name) + _filled(content)


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
