"""
EFI programs: from bytes to sections, and the hash by which firmware measures one.

Microsoft's "PE Format" for the layout, "Windows Authenticode Portable Executable Signature Format" and TCG PC
Client Platform Firmware Profile 1.06, §10.2.3 for the hash: all of the file but its checksum, the entry that
points at signatures, and the signatures. Only programs of 64 bits for x86 are read, the one kind that starts
here; what is cut short, points outside of the file or overlaps is refused.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .errors import UnreadableProgram

MAX_SECTIONS: Final = 96
"""Windows' limit ("PE Format", COFF file header); ours have about fifteen."""

_PE: Final = b"PE\0\0"
_AMD64: Final = 0x8664
_PE32_PLUS: Final = 0x20B
_SECURITY: Final = 4  # the entry of the data directories that points at signatures

_COFF: Final = struct.Struct("<4sHHIIIHH")
_SECTION: Final = struct.Struct("<8sIIIIIIHHI")
_CHECKSUM: Final = 64  # offsets in the optional header
_SIZE_OF_HEADERS: Final = 60
_NUMBER_OF_DIRECTORIES: Final = 108
_DIRECTORIES: Final = 112
_DIRECTORY: Final = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a program, as its header tells it."""

    name: str
    size: int  # in memory
    begins: int  # in the file …
    stored: int  # … and how many bytes of it lie there

    def content(self, data: bytes) -> bytes:
        """What lies in memory once the program is loaded: cut, or filled up with zeros, to its size."""
        return data[self.begins : self.begins + min(self.stored, self.size)].ljust(self.size, b"\0")


@dataclass(frozen=True, slots=True)
class Program:
    """An EFI program. Nothing in it has been verified."""

    data: bytes
    sections: tuple[Section, ...]
    _checksum: int  # where in the file the checksum lies, …
    _certificates: int  # … the entry of the signatures, or 0, …
    _headers: int  # … and where the headers end
    _signatures: int  # bytes of signatures at the end of the file

    @classmethod
    def parse(cls, data: bytes) -> Program:
        """Raises `UnreadableProgram`."""
        if data[:2] != b"MZ":
            raise UnreadableProgram(f"it begins with {data[:2]!r}, an EFI program with b'MZ'")
        coff = int.from_bytes(_at(data, 0x3C, 4), "little")
        signature, machine, count, _, _, _, optional_size, _ = _COFF.unpack(_at(data, coff, _COFF.size))
        if signature != _PE or machine != _AMD64:
            raise UnreadableProgram(
                f"its header is {signature!r} for machine {machine:#06x}, wanted {_PE!r} for {_AMD64:#06x} "
                "(x86-64)"
            )
        optional = _at(data, coff + _COFF.size, optional_size)
        begins = coff + _COFF.size
        if optional_size < _DIRECTORIES or int.from_bytes(optional[:2], "little") != _PE32_PLUS:
            raise UnreadableProgram("its optional header is not that of a program of 64 bits (PE32+)")
        headers = int.from_bytes(optional[_SIZE_OF_HEADERS : _SIZE_OF_HEADERS + 4], "little")
        directories = int.from_bytes(optional[_NUMBER_OF_DIRECTORIES:_DIRECTORIES], "little")
        if directories > 16 or _DIRECTORIES + 8 * directories > optional_size:
            raise UnreadableProgram(f"it tells of {directories} data directories, more than its header holds")
        table = begins + optional_size
        if count > MAX_SECTIONS or not table + _SECTION.size * count <= headers <= len(data):
            raise UnreadableProgram(
                f"{count} sections and headers of {headers} bytes do not fit a file of {len(data)}"
            )
        certificates = signatures = 0
        if directories > _SECURITY:
            entry = _DIRECTORIES + _SECURITY * _DIRECTORY.size
            certificates = begins + entry
            _, signatures = _DIRECTORY.unpack_from(optional, entry)
        sections = tuple(_sections(data, table, count, headers))
        if signatures > len(data) - headers - sum(section.stored for section in sections):
            raise UnreadableProgram(
                f"it tells of {signatures} bytes of signatures, more than follow its sections"
            )
        return cls(data, sections, begins + _CHECKSUM, certificates, headers, signatures)

    def digest(self, algorithm: str) -> bytes:
        """The Authenticode hash, step by step as EDK II's Tcg2Dxe works it out (MeasureBootPeCoff.c)."""
        found = hashlib.new(algorithm, self.data[: self._checksum])
        after = self._checksum + 4
        if self._certificates:
            found.update(self.data[after : self._certificates])
            after = self._certificates + _DIRECTORY.size
        found.update(self.data[after : self._headers])
        done = self._headers
        for section in sorted(self.sections, key=lambda one: one.begins):
            if section.stored:
                found.update(self.data[section.begins : section.begins + section.stored])
                done += section.stored
        found.update(self.data[done : max(done, len(self.data) - self._signatures)])
        return found.digest()


def _sections(data: bytes, table: int, count: int, headers: int) -> Iterator[Section]:
    ends = headers
    found = []
    for number in range(count):
        name, size, _, stored, begins, *_ = _SECTION.unpack_from(data, table + number * _SECTION.size)
        try:
            text = name.rstrip(b"\0").decode("ascii")
        except UnicodeDecodeError as error:
            raise UnreadableProgram(f"a section's name is not ASCII: {name!r}") from error
        if size > len(data) + 0x1000_0000:
            raise UnreadableProgram(f"its section {text!a} takes {size} bytes of memory")
        found.append(Section(text, size, begins if stored else 0, stored))
    for section in sorted(found, key=lambda one: one.begins):
        if not section.stored:
            continue
        if section.begins < ends:
            raise UnreadableProgram(f"its section {section.name!a} overlaps what is before it")
        ends = section.begins + section.stored
        if ends > len(data):
            raise UnreadableProgram(
                f"its section {section.name!a} ends at {ends}, and the file at {len(data)}: is it cut short?"
            )
    yield from found


def _at(data: bytes, begins: int, size: int) -> bytes:
    found = data[begins : begins + size]
    if len(found) != size:
        raise UnreadableProgram(f"it ends at {len(data)} bytes, within its headers: is it cut short?")
    return found
