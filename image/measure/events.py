"""
What one boot of our image measures, event by event, and the registers these events make.

    register   who measures         what
    4          the firmware         "Calling EFI Application from Boot Option", a separator
    5          the firmware         the disk's partition table
    4          the firmware         the unified kernel image
    11         the stub in it       name and content of each of its sections
    4          the firmware         the kernel, which the stub has it load
    9          the kernel           its command line, then its initrd
    5          the firmware         that it hands over to the kernel

The firmware: TCG PC Client Platform Firmware Profile 1.06, §3.3.4, in the order of EDK II (Tcg2Dxe.c,
DxeTpm2MeasureBootLib.c); the stub: systemd's "TPM2 PCR Measurements Made by systemd"; the kernel: Linux'
efi-stub-helper.c. This holds where the disk is the first thing that the firmware tries to boot from: an
attempt that fails before is an event of register 4 too.

Nothing is measured into register 12 (command lines and credentials from outside of the image) nor 13
(extensions from outside): whatever a host adds there shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .pe import Program
from .uki import Uki

CALLING: Final = b"Calling EFI Application from Boot Option"
LEAVING: Final = (b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success")
SEPARATOR: Final = bytes(4)


@dataclass(frozen=True, slots=True)
class Measured:
    """Something that is measured into a register of a TPM."""

    register: int
    what: str
    source: bytes | Program  # of a program, its Authenticode hash is what counts

    def digest(self, bank: str) -> bytes:
        if isinstance(self.source, Program):
            return self.source.digest(bank)
        return hashlib.new(bank, self.source).digest()


def of_boot(uki: Uki, partition_table: bytes) -> tuple[Measured, ...]:
    """What a boot measures into registers 4, 5, 9 and 11, in its order."""
    sections = (
        Measured(11, f"the section {name}, its {part}", content)
        for name, data in uki.sections
        for part, content in (("name", name.encode("ascii") + b"\0"), ("content", data))
    )
    return (
        Measured(4, "that the firmware boots", CALLING),
        Measured(4, "the separator", SEPARATOR),
        Measured(5, "the partition table", partition_table),
        Measured(4, "the unified kernel image", uki.program),
        *sections,
        Measured(4, "the kernel", uki.kernel),
        Measured(9, "the command line", uki.load_options),
        Measured(9, "the initrd", uki.initrd),
        *(Measured(5, "that the kernel takes over", said) for said in LEAVING),
    )


def extended(digests: Iterable[bytes], bank: str) -> bytes:
    """What a register that was zero holds after these digests."""
    value = bytes(hashlib.new(bank).digest_size)
    for digest in digests:
        value = hashlib.new(bank, value + digest).digest()
    return value
