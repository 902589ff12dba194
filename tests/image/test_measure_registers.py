"""What a boot leaves in a TPM's registers and in TDX's, and a real log beside it, event by event."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from blindbox_attestation.event_log import EventLog
from blindbox_attestation.tdx import rtmr
from image.measure import events, log, pcr, tdx
from image.measure.errors import UnreadableLog
from image.measure.pe import Program
from image.measure.uki import Uki
from tests.kit import tpm
from tests.kit.tpm import ACTION, APPLICATION, IPL, Measurement, separator
from tests.kit.uefi import COMMAND_LINE, KERNEL, PARTS, uki

GPT_EVENT, TAG = 0x80000006, 6
TABLE = b"a partition table"
UKI = Uki.parse(uki())
BOOT = events.of_boot(UKI, TABLE)
BANKS = ("sha256", "sha384")


def hashed(data: bytes, bank: str = "sha256") -> bytes:
    return hashlib.new(bank, data).digest()


def chained(bank: str, *digests: bytes) -> bytes:
    value = bytes(hashlib.new(bank).digest_size)
    for digest in digests:
        value = hashed(value + digest, bank)
    return value


def covered(program: bytes) -> bytes:
    """What of these small programs Authenticode hashes (test_measure_pe.py)."""
    return program[: 0x98 + 64] + program[0x98 + 68 : 0x98 + 144] + program[0x98 + 152 :]


def section(name: str) -> tuple[Measurement, Measurement]:
    said = name.encode()
    return Measurement(11, IPL, said, said + b"\0"), Measurement(11, IPL, said, PARTS[name])


def logged() -> tuple[Measurement, ...]:
    """The boot as EDK II, the stub and the kernel log it; the kit writes it down from the specifications."""
    initrd = UKI.initrd
    return (
        Measurement(0, 0x8, b"the firmware"),
        tpm.secure_boot(b"\0"),
        separator(7),
        Measurement(1, 0x80000002, b"BootOrder"),
        Measurement(4, ACTION, b"Calling EFI Application from Boot Option"),
        *(separator(register) for register in range(7)),
        Measurement(5, GPT_EVENT, TABLE),
        Measurement(4, APPLICATION, b"\\EFI\\BOOT\\BOOTX64.EFI", covered(uki())),
        *(
            one
            for name in (".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat")
            for one in section(name)
        ),
        Measurement(4, APPLICATION, b"the kernel's path", covered(KERNEL)),
        Measurement(9, TAG, b"LOADED_IMAGE::LoadOptions", (COMMAND_LINE + "\0").encode("utf-16-le")),
        Measurement(9, TAG, b"Linux initrd", initrd),
        Measurement(5, ACTION, b"Exit Boot Services Invocation"),
        Measurement(5, ACTION, b"Exit Boot Services Returned with Success"),
    )


def read(boot: Sequence[Measurement], banks: Sequence[str] = ("sha1", *BANKS)) -> EventLog:
    return EventLog.parse(tpm.log_of(boot, banks=banks))


@pytest.mark.parametrize("bank", BANKS)
def test_the_registers_are_those_of_a_boot_as_firmware_stub_and_kernel_log_it(bank: str) -> None:
    found = pcr.predicted(BOOT, bank)
    registers = tpm.registers_of(logged(), bank)
    assert found == {register: registers[register] for register in (4, 11, 12)}
    assert found[12] == bytes(hashlib.new(bank).digest_size)
    assert log.registers(read(logged()))[bank] == found


def test_register_4_is_the_boot_a_separator_our_program_and_the_kernel_in_it() -> None:
    assert pcr.predicted(BOOT, "sha256")[4] == chained(
        "sha256",
        hashed(b"Calling EFI Application from Boot Option"),
        hashed(bytes(4)),
        Program.parse(uki()).digest("sha256"),
        Program.parse(KERNEL).digest("sha256"),
    )


def test_run_time_registers_of_tdx_are_those_of_the_same_boot_in_a_guests_own_log() -> None:
    """The log of a TDX guest has one separator for RTMR1, and register n of it is RTMR n − 1."""
    place = {**dict.fromkeys((1, 7), 1), **dict.fromkeys(range(2, 7), 2), **dict.fromkeys(range(8, 16), 3)}
    own = [
        Measurement(place[one.register], one.kind, one.data, one.digest_of)
        for one in logged()
        if one.register != 0 and (one.kind != tpm.SEPARATOR or one.register in (7, 4))
    ]
    _, first, second = rtmr.replay(read(own, ("sha384",)))
    assert tdx.predicted(BOOT) == {1: first, 2: second}


def test_a_log_of_a_boot_in_software_gives_the_run_time_registers_of_tdx() -> None:
    assert tdx.of_tpm_log(read(logged())) == tdx.predicted(BOOT)


def test_a_boot_as_predicted_has_no_differences() -> None:
    assert list(log.differences(read(logged()), BOOT)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        # an add-on beside the image: C-6, the command line is another, and register 12 is not zero
        (
            lambda boot: [*boot, Measurement(12, IPL, b"bb.debug=1")],
            "PCR 12 (sha256), event 1: wanted nothing more nothing",
        ),
        (lambda boot: [one for one in boot if one.data != b"Linux initrd"], "event 2: wanted the initrd"),
        (
            lambda boot: [
                Measurement(9, TAG, one.data, b"init=/bin/sh") if one.data.startswith(b"LOADED") else one
                for one in boot
            ],
            "PCR 9 (sha384), event 1: wanted the command line",
        ),
        (
            lambda boot: [
                Measurement(11, IPL, one.data, b"another") if one.digest_of == PARTS[".cmdline"] else one
                for one in boot
            ],
            "wanted the section .cmdline, its content",
        ),
        (
            lambda boot: [Measurement(4, ACTION, b"Calling EFI Application from Boot Option"), *boot],
            "PCR 4 (sha256), event 2: wanted the separator",
        ),
        (
            lambda boot: [*boot, Measurement(5, ACTION, b"Exit Boot Services Returned with Failure")],
            "PCR 5 (sha256), event 4",
        ),
    ],
)
def test_what_a_log_has_otherwise_is_named(change: object, told: str) -> None:
    assert callable(change)
    found = "\n".join(log.differences(read(change(logged())), BOOT))
    assert told in found


def test_each_part_of_the_image_shows_in_the_registers_that_name_it() -> None:
    """C-6: one character of the command line, one byte of initrd or kernel is another measurement."""
    honest = {**pcr.predicted(BOOT, "sha256"), **tdx.predicted(BOOT)}
    for changes in (
        {"cmdline": COMMAND_LINE.replace("-1", "-2").encode()},
        {"initrd": b"another initrd"},
        {"linux": KERNEL[:-1] + b"\1"},
        {"osrel": b"ID=blindbox\nNAME=Another\n"},
    ):
        boot = events.of_boot(Uki.parse(uki(**changes)), TABLE)
        other = {**pcr.predicted(boot, "sha256"), **tdx.predicted(boot)}
        assert {name for name in honest if honest[name] != other[name]} == {4, 11, 1, 2}


def test_another_partition_table_shows_in_rtmr1_and_in_no_register_of_the_policy() -> None:
    other = events.of_boot(UKI, b"another table")
    assert tdx.predicted(other)[1] != tdx.predicted(BOOT)[1]
    assert tdx.predicted(other)[2] == tdx.predicted(BOOT)[2]
    assert pcr.predicted(other, "sha384") == pcr.predicted(BOOT, "sha384")


def test_a_log_without_the_hash_that_is_asked_for_is_refused() -> None:
    with pytest.raises(UnreadableLog, match="no digests of sha384, only of sha1, sha256"):
        tdx.of_tpm_log(read(logged(), ("sha1", "sha256")))
    with pytest.raises(UnreadableLog, match="only of sha1"):
        log.registers(read(logged(), ("sha1",)))


def test_an_empty_log_leaves_the_registers_zero() -> None:
    empty = read(())
    assert log.registers(empty)["sha384"] == dict.fromkeys((4, 11, 12), bytes(48))
    assert next(log.differences(empty, BOOT)).startswith("PCR 4 (sha256), event 1: wanted that the firmware")
