"""
What Intel TDX measures of our image: MRTD of the firmware, RTMR1 and RTMR2 of what it starts.

MRTD: Intel TDX Module Base Architecture Specification, "Measurement and Attestation": TDH.MEM.PAGE.ADD
measures the place of each page of 4 KiB, TDH.MR.EXTEND its content by chunks of 256 bytes. In the order of
QEMU 10.1 and Linux 6.16: section by section, page by page, a page's place before its content.

RTMR1 and RTMR2: UEFI 2.10, §38.4.1 gives them registers 2 to 6 and 8 to 15 of a TPM, in SHA-384. The firmware
of a TDX guest (EDK II's TdTcg2Dxe.c) writes the same events as that of a machine with a TPM, but for the
separator, which is measured once into a run-time register, and not once for each register of the TPM behind
it. RTMR0 (registers 1 and 7) depends on the machine's memory, processors and tables, and is not predicted.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Final

from blindbox_attestation.event_log import SEPARATOR, EventLog
from blindbox_attestation.tdx.rtmr import BANK

from .errors import UnreadableLog
from .events import Measured, extended
from .ovmf import PAGE, Firmware

CHUNK: Final = 256
REGISTERS: Final = {1: range(2, 7), 2: range(8, 16)}
"""RTMR → the registers of a TPM that it stands for."""
_SEPARATED: Final = 4
"""The register whose separator comes at the same place as RTMR1's: behind "Calling EFI Application …"."""


def mrtd(firmware: Firmware) -> bytes:
    """Raises `UnreadableFirmware`."""
    found = hashlib.sha384()
    for section in firmware.tdx_sections():
        for page in range(0, section.size, PAGE):
            found.update(_operation(b"MEM.PAGE.ADD", section.address + page))
            if section.content is None:
                continue
            for chunk in range(page, page + PAGE, CHUNK):
                found.update(_operation(b"MR.EXTEND", section.address + chunk))
                found.update(section.content[chunk : chunk + CHUNK])
    return found.digest()


def predicted(boot: Iterable[Measured]) -> dict[int, bytes]:
    """RTMR → the value it has once the kernel runs."""
    events = tuple(boot)
    return {
        rtmr: extended((event.digest(BANK) for event in events if event.register in registers), BANK)
        for rtmr, registers in REGISTERS.items()
    }


def of_tpm_log(log: EventLog) -> dict[int, bytes]:
    """
    RTMR → the value that the boot in a TPM's log would have left in it on a TDX machine.

    So that a boot in software says whether the prediction is right. A TDX guest's own log is read by
    `blindbox_attestation.tdx.rtmr.replay`. Raises `UnreadableLog`.
    """
    if BANK not in log.banks:
        raise UnreadableLog(f"it has no digests of {BANK}, only of {', '.join(log.banks)}")
    kept = [
        event
        for event in log.events
        if event.register == _SEPARATED or event.kind != SEPARATOR or not event.is_separator(BANK)
    ]
    return {
        rtmr: extended((event.digests[BANK] for event in kept if event.register in registers), BANK)
        for rtmr, registers in REGISTERS.items()
    }


def _operation(name: bytes, address: int) -> bytes:
    """What TDX hashes to say what it did: the operation's name, and the guest's address."""
    return struct.pack("<16sQ104x", name, address)
