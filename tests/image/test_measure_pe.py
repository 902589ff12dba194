"""EFI programs: what of a file its Authenticode hash covers, what lies in memory, and what is refused."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.measure.errors import UnreadableProgram
from image.measure.pe import Program
from tests.kit.garbling import Edit, edits, garbled
from tests.kit.pinned_packages import pinned
from tests.kit.uefi import KERNEL, program

OPTIONAL = 0x80 + 24
CHECKSUM = OPTIONAL + 64
CERTIFICATES = OPTIONAL + 112 + 4 * 8
SIGNED = program(
    {".text": b"code" * 200, ".data": b"data" * 90}, signatures=b"a signature" * 8, trailing=b"more "
)


def changed(data: bytes, at: int, form: str, *values: object) -> bytes:
    found = bytearray(data)
    struct.pack_into(form, found, at, *values)
    return bytes(found)


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
def test_the_hash_leaves_out_the_checksum_and_the_signatures_and_nothing_else(bank: str) -> None:
    """Windows Authenticode Portable Executable Signature Format, "Calculating the PE Image Hash"."""
    covered = SIGNED[:CHECKSUM] + SIGNED[CHECKSUM + 4 : CERTIFICATES] + SIGNED[CERTIFICATES + 8 : -88]
    assert Program.parse(SIGNED).digest(bank) == hashlib.new(bank, covered).digest()


def test_a_signature_added_later_leaves_the_hash_as_it_was() -> None:
    parts = {".text": b"code" * 200}
    plain = program(parts, directories=16)
    signed = program(parts, signatures=b"x" * 64, checksum=0xDEADBEEF)
    assert plain != signed
    assert Program.parse(plain).digest("sha256") == Program.parse(signed).digest("sha256")


@given(at=st.integers(OPTIONAL + 112 + 16 * 8 + 80, len(SIGNED) - 1), by=st.integers(1, 255))
def test_each_byte_behind_the_headers_counts_but_those_of_the_signatures(at: int, by: int) -> None:
    other = changed(SIGNED, at, "B", SIGNED[at] ^ by)
    same = Program.parse(SIGNED).digest("sha256") == Program.parse(other).digest("sha256")
    assert same == (at >= len(SIGNED) - 88)


def test_sections_are_hashed_as_they_lie_in_the_file_not_as_the_headers_name_them() -> None:
    parts = {".b": b"second" * 100, ".a": b"first" * 100}
    found = program(parts, backwards=True)
    covered = found[:CHECKSUM] + found[CHECKSUM + 4 : CERTIFICATES] + found[CERTIFICATES + 8 :]
    assert Program.parse(found).digest("sha256") == hashlib.sha256(covered).digest()


def test_a_program_without_an_entry_for_signatures_is_hashed_whole_but_for_its_checksum() -> None:
    found = program(directories=4)
    covered = found[:CHECKSUM] + found[CHECKSUM + 4 :]
    assert Program.parse(found).digest("sha256") == hashlib.sha256(covered).digest()


def test_a_section_has_the_size_it_takes_in_memory() -> None:
    found = program({".a": b"12345", ".b": b"67890"}, in_memory={".a": 3, ".b": 700})
    cut, filled = (section.content(found) for section in Program.parse(found).sections)
    assert cut == b"123"
    assert filled == b"67890" + bytes(695)


def test_debians_signature_over_its_kernel_is_over_the_same_hash() -> None:
    """The kernel is signed for Secure Boot: the hash is in its signature, put there by Debian."""
    for kernel in map(Path.read_bytes, pinned("boot/vmlinuz-*")):
        assert kernel.rfind(Program.parse(kernel).digest("sha256")) > len(kernel) - 4096
        return
    pytest.skip("no kernel of Debian here: `make vm` brings it")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "begins with b''"),
        (b"\x7fELF" + bytes(999), "begins with b'\\x7fE'"),
        (KERNEL[:0x90], "cut short"),
        (KERNEL[:30], "cut short"),
        (changed(KERNEL, 0x80, "<4s", b"NE\0\0"), "NE"),
        (changed(KERNEL, 0x84, "<H", 0xAA64), "0xaa64"),
        (changed(KERNEL, 0x3C, "<I", 0xFFFFFFF0), "cut short"),
        (changed(KERNEL, OPTIONAL, "<H", 0x10B), "64 bits"),
        (changed(KERNEL, 0x94, "<H", 20), "64 bits"),
        (changed(KERNEL, OPTIONAL + 108, "<I", 17), "17 data directories"),
        (changed(KERNEL, OPTIONAL + 108, "<I", 0xFFFFFFFF), "data directories"),
        (changed(KERNEL, 0x86, "<H", 97), "97 sections"),
        (changed(KERNEL, OPTIONAL + 60, "<I", 64), "headers of 64 bytes"),
        (changed(KERNEL, OPTIONAL + 60, "<I", 1 << 30), "headers of 1073741824 bytes"),
        (KERNEL[:-1], "'.data' ends at"),
        (changed(KERNEL, OPTIONAL + 240 + 20, "<I", 0x10), "overlaps"),
        (changed(KERNEL, OPTIONAL + 240 + 40 + 20, "<I", 0x200), "overlaps"),
        (changed(KERNEL, OPTIONAL + 240, "<8s", b"\xff" * 8), "not ASCII"),
        (changed(KERNEL, OPTIONAL + 240 + 8, "<I", 0xF0000000), "bytes of memory"),
        (changed(KERNEL, CERTIFICATES, "<II", 0, 0x7FFFFFFF), "bytes of signatures"),
    ],
)
def test_a_program_that_breaks_its_format_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(UnreadableProgram) as refused:
        Program.parse(data)
    assert told in str(refused.value)


@given(edits())
def test_whatever_a_file_holds_it_is_read_or_refused(wishes: list[Edit]) -> None:
    data = garbled(SIGNED, wishes)
    try:
        found = Program.parse(data)
    except UnreadableProgram:
        return
    assert len(found.digest("sha384")) == 48
    assert all(len(section.content(data)) == section.size for section in found.sections)
