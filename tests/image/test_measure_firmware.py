"""Builds of OVMF: MRTD of TDX, launch digests of SEV-SNP, and what neither can start from."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from sevsnpmeasure import guest, vcpu_types
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmm_types import VMMType

from image.measure import snp, tdx
from image.measure.errors import UnreadableFirmware
from image.measure.ovmf import Firmware
from tests.kit.garbling import Edit, edits, garbled
from tests.kit.pinned_packages import pinned
from tests.kit.uefi import HASHES, PAGE, RESET, SNP, SNP_SECTIONS, TDX, TDX_SECTIONS, ovmf, uki

HONEST = ovmf()
DEBIAN = "14954040cc754ade0c625ac3470ea46d4c14318b5b1396de4ef77090203d76db"
"""SHA-256 of OVMF.fd in Debian's package ovmf 2025.02-8+deb13u1 …"""
DEBIAN_MRTD = "bdc6fb145880f06f", "8910e11"
"""… and how its MRTD begins and ends, worked out by another program."""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Firmware and a unified kernel image."""
    firmware, kernel = tmp_path / "OVMF.fd", tmp_path / "blindbox.efi"
    firmware.write_bytes(HONEST)
    kernel.write_bytes(uki())
    return firmware, kernel


# --- MRTD ---


def test_mrtd_is_the_place_of_every_page_and_the_content_of_those_that_are_extended() -> None:
    """Intel TDX Module Base Architecture Specification: TDH.MEM.PAGE.ADD and TDH.MR.EXTEND, one by one."""
    firmware = ovmf(tdx=((0x1000, PAGE, 0xFFFF1000, PAGE, 0, 1), (0, 0, 0x809000, 2 * PAGE, 2, 0)))
    said = b"MEM.PAGE.ADD\0\0\0\0" + struct.pack("<Q", 0xFFFF1000) + bytes(104)
    for chunk in range(0, PAGE, 256):
        said += b"MR.EXTEND\0\0\0\0\0\0\0" + struct.pack("<Q", 0xFFFF1000 + chunk) + bytes(104)
        said += firmware[0x1000 + chunk : 0x1100 + chunk]
    for page in (0x809000, 0x80A000):
        said += b"MEM.PAGE.ADD\0\0\0\0" + struct.pack("<Q", page) + bytes(104)
    assert tdx.mrtd(Firmware.parse(firmware)) == hashlib.sha384(said).digest()


def test_mrtd_of_debians_firmware_is_the_one_another_program_gives() -> None:
    for data in map(Path.read_bytes, pinned("usr/share/ovmf/OVMF.fd")):
        if hashlib.sha256(data).hexdigest() == DEBIAN:
            told = tdx.mrtd(Firmware.parse(data)).hex()
            assert (told[:16], told[-7:]) == DEBIAN_MRTD
            return
    pytest.skip("no OVMF 2025.02 of Debian here: `make vm` brings it")


def test_debians_firmware_is_refused_for_sev_snp_for_it_would_name_no_kernel() -> None:
    for data in map(Path.read_bytes, pinned("usr/share/ovmf/OVMF.fd")):
        with pytest.raises(UnreadableFirmware, match="the AmdSev build of OVMF has it"):
            Firmware.parse(data).check_snp()
        return
    pytest.skip("no OVMF of Debian here: `make vm` brings it")


def test_variables_that_are_not_extended_do_not_change_mrtd_and_code_does() -> None:
    variables, code = bytearray(HONEST), bytearray(HONEST)
    variables[0x100] ^= 1
    code[0x4000] ^= 1
    mrtd = tdx.mrtd(Firmware.parse(HONEST))
    assert tdx.mrtd(Firmware.parse(bytes(variables))) == mrtd
    assert tdx.mrtd(Firmware.parse(bytes(code))) != mrtd


def wrong(at: int, field: int, value: int) -> tuple[tuple[int, ...], ...]:
    """The sections of TDX with one number exchanged."""
    found = [list(section) for section in TDX_SECTIONS]
    found[at][field] = value
    return tuple(tuple(section) for section in found)


@pytest.mark.parametrize(
    ("firmware", "told"),
    [
        (b"", "it is 0 bytes"),
        (HONEST[:-1], "whole pages"),
        (HONEST[:-PAGE], "no table of OVMF"),
        (bytes(0x10000), "no table of OVMF"),
        (ovmf(tdx=None), "it tells nothing for TDX"),
        (ovmf(table={TDX: b"\0\1"}), "it tells nothing for TDX"),
        (ovmf(table={TDX: struct.pack("<I", 0x10001)}), "begins outside of it"),
        (ovmf(table={TDX: struct.pack("<I", 4)}), "begins outside of it"),
        (ovmf(tdx_head=struct.pack("<4sIII", b"TDVE", 144, 1, 4)), "b'TDVE'"),
        (ovmf(tdx_head=struct.pack("<4sIII", b"TDVF", 144, 2, 4)), "version 2"),
        (ovmf(tdx_head=struct.pack("<4sIII", b"TDVF", 145, 1, 4)), "145 bytes"),
        (ovmf(tdx_head=struct.pack("<4sIII", b"TDVF", 16 + 32 * 65, 1, 65)), "65 sections"),
        (ovmf(tdx=()), "0 sections"),
        (ovmf(tdx=wrong(0, 0, 0x3001)), "65536 bytes"),
        (ovmf(tdx=wrong(0, 1, 0xC000)), "49152 of them"),
        (ovmf(tdx=wrong(2, 1, 1)), "1 of them"),
        (ovmf(tdx=wrong(2, 2, 0x810001)), "at 0x810001"),
        (ovmf(tdx=wrong(2, 3, 0x10001)), "65537 bytes"),
        (ovmf(tdx=wrong(2, 3, 1 << 40)), "1099511627776 bytes"),
        (ovmf(tdx=wrong(2, 4, 4)), "of kind 4"),
        (ovmf(tdx=wrong(2, 5, 2)), "attributes 0x2"),
    ],
)
def test_firmware_that_tdx_cannot_start_from_is_refused(firmware: bytes, told: str) -> None:
    with pytest.raises(UnreadableFirmware) as refused:
        tdx.mrtd(Firmware.parse(firmware))
    assert told in str(refused.value)


# --- launch digests ---


def test_the_digests_are_those_of_sev_snp_measure_for_each_processor_and_number(
    files: tuple[Path, Path],
) -> None:
    """The chain that is continued from n to n + 1 gives what the tool gives for each number alone."""
    firmware, kernel = files
    found = snp.launch_digests(firmware, kernel)
    assert len(found) == len(set(found.values())) == 3 * 64
    for processor in snp.PROCESSORS:
        for number in (1, 2, 7, 64):
            assert found[f"{processor} x{number}"] == guest.calc_launch_digest(
                SevMode.SEV_SNP,
                number,
                vcpu_types.CPU_SIGS[processor],
                str(firmware),
                str(kernel),
                "",
                "",
                0x1,
                "",
                VMMType.QEMU,
            )


def test_another_program_or_another_firmware_is_another_digest(files: tuple[Path, Path]) -> None:
    firmware, kernel = files

    def digest() -> bytes:
        return snp.launch_digests(firmware, kernel, processors=["EPYC-Genoa"], most_vcpus=2)["EPYC-Genoa x2"]

    honest = digest()
    kernel.write_bytes(uki(cmdline=b"console=ttyS0 panic=-2"))
    another_line = digest()
    kernel.write_bytes(uki())
    firmware.write_bytes(HONEST[:0x200] + b"\0" + HONEST[0x201:])
    assert len({honest, another_line, digest()}) == 3


def section(at: int, **fields: int) -> tuple[tuple[int, int, int], ...]:
    """The sections of SEV-SNP with one number exchanged."""
    found = [dict(zip(("address", "size", "kind"), one, strict=True)) for one in SNP_SECTIONS]
    found[at].update(fields)
    return tuple((one["address"], one["size"], one["kind"]) for one in found)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"snp": SNP_SECTIONS[:-1]}, "no page for the kernel's hashes"),
        ({"snp": (*SNP_SECTIONS, SNP_SECTIONS[-1])}, "no page for the kernel's hashes"),
        ({"snp": None}, "it tells nothing for SEV-SNP"),
        ({"table": {HASHES: None}}, "it has not a place for the kernel's hashes"),
        ({"table": {HASHES: struct.pack("<II", 0, 0x400)}}, "it has not a place for the kernel's hashes"),
        ({"table": {HASHES: struct.pack("<II", 0x810000, 0x400)}}, "lie at 0x810000"),
        ({"table": {HASHES: struct.pack("<II", 0x80FFF0, 0x400)}}, "lie at 0x80fff0"),
        ({"table": {RESET: None}}, "it has not a reset vector"),
        ({"table": {RESET: bytes(4)}}, "it has not a reset vector"),
        ({"table": {SNP: struct.pack("<I", 0xFFFFFFFF)}}, "begins outside of it"),
        ({"snp_head": struct.pack("<4sIII", b"BSEV", 76, 1, 5)}, "b'BSEV'"),
        ({"snp_head": struct.pack("<4sIII", b"ASEV", 76, 2, 5)}, "version 2"),
        ({"snp_head": struct.pack("<4sIII", b"ASEV", 75, 1, 5)}, "75 bytes"),
        ({"snp_head": struct.pack("<4sIII", b"ASEV", 16 + 12 * 65, 1, 65)}, "65 sections"),
        ({"snp": section(0, kind=9)}, "of kind 9"),
        ({"snp": section(0, size=0x9001)}, "36865 bytes"),
        ({"snp": section(0, address=0x800001)}, "at 0x800001"),
        ({"snp": section(0, size=0xFFFFF000)}, "4294963200 bytes"),
        ({"snp": section(1, size=0x2000)}, "kind 2"),
        ({"snp": section(4, size=0x2000)}, "kind 16"),
    ],
)
def test_firmware_that_measures_no_kernel_or_breaks_its_format_is_refused(
    files: tuple[Path, Path], changes: dict[str, Any], told: str
) -> None:
    firmware, kernel = files
    firmware.write_bytes(ovmf(**changes))
    with pytest.raises(UnreadableFirmware) as refused:
        snp.launch_digests(firmware, kernel)
    assert told in str(refused.value)


# --- the table at the end ---


@pytest.mark.parametrize(
    ("at", "value", "told"),
    [
        (-32 - 18, struct.pack("<H", 17), "no table of OVMF"),
        (-32 - 18, struct.pack("<H", 0xFFFF), "no table of OVMF"),
        (-32 - 36, struct.pack("<H", 17), "17 bytes long"),
        (-32 - 36, struct.pack("<H", 0x7000), "28672 bytes long"),
        (-32 - 36, struct.pack("<H", 30), "an entry of its table"),
    ],
)
def test_a_table_that_does_not_add_up_is_refused(at: int, value: bytes, told: str) -> None:
    found = bytearray(HONEST)
    found[at : at + len(value)] = value
    with pytest.raises(UnreadableFirmware) as refused:
        Firmware.parse(bytes(found))
    assert told in str(refused.value)


def test_an_entry_that_is_there_twice_is_refused() -> None:
    found = bytearray(HONEST)
    tail = bytes(found[-32 - 18 - 22 : -32 - 18])  # the last entry, of TDX
    at = found.index(SNP.bytes_le) + 16 - 22
    found[at : at + 22] = tail
    with pytest.raises(UnreadableFirmware, match="twice"):
        Firmware.parse(bytes(found))


TAIL = 0x1100
"""All that is read of a firmware lies in its last pages; the rest is just hashed."""


@given(edits())
def test_whatever_firmware_holds_it_is_read_or_refused(wishes: Sequence[Edit]) -> None:
    data = HONEST[:-TAIL] + garbled(HONEST[-TAIL:], wishes)[:TAIL].rjust(TAIL, b"\0")
    try:
        firmware = Firmware.parse(data)
    except UnreadableFirmware:
        return
    for read in (firmware.check_snp, firmware.tdx_sections):
        try:
            read()
        except UnreadableFirmware:
            continue


@given(edits())
def test_whatever_passes_the_check_sev_snp_measure_can_measure(
    tmp_path_factory: pytest.TempPathFactory, wishes: Sequence[Edit]
) -> None:
    folder = tmp_path_factory.mktemp("firmware")
    firmware, kernel = folder / "OVMF.fd", folder / "blindbox.efi"
    kernel.write_bytes(b"any program")
    small = ovmf(size=0x2000, tdx=None)
    firmware.write_bytes(small[:-TAIL] + garbled(small[-TAIL:], wishes)[:TAIL].rjust(TAIL, b"\0"))
    try:
        found = snp.launch_digests(firmware, kernel, processors=["EPYC-Turin"], most_vcpus=2)
    except UnreadableFirmware:
        return
    assert len(found) == 2
