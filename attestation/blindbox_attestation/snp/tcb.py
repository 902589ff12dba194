"""
Trusted computing base levels: how old the firmware and the microcode of an AMD processor may be.

Eight bytes in a report, whose meaning depends on the processor family (SPEC §4.1). They are compared part by
part: in the packed integer, a high microcode would hide a low bootloader.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ..errors import InvalidPolicy, MalformedEvidence

MILAN: Final = "Milan"
GENOA: Final = "Genoa"  # also Bergamo and Siena
TURIN: Final = "Turin"
FAMILIES: Final = (MILAN, GENOA, TURIN)

MODELS: Final = {
    MILAN: (0x19, (range(0x10),)),
    GENOA: (0x19, (range(0x10, 0x20), range(0xA0, 0xB0))),
    TURIN: (0x1A, (range(0x20),)),
}
"""Family → family and models of CPUID."""

STEPPINGS: Final = {
    MILAN: "^Milan/0[0-9a-f]/[0-9a-f]$",
    GENOA: "^Genoa/[1a][0-9a-f]/[0-9a-f]$",
    TURIN: "^Turin/[01][0-9a-f]/[0-9a-f]$",
}
"""Family → how a model and stepping of it is named, both in hexadecimal: "Genoa/a0/2"."""

TCB_SIZE: Final = 8
PARTS: Final = ("bootloader", "snp", "microcode", "tee", "fmc")

_OLD_LAYOUT: Final = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
LAYOUTS: Final = {
    MILAN: _OLD_LAYOUT,
    GENOA: _OLD_LAYOUT,
    TURIN: {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
}
"""Family → part → byte of the eight. The other bytes are reserved, and zero."""


def family_of(cpuid: bytes) -> str | None:
    """The product line of a processor, by family and model of CPUID; None for an unknown one."""
    for name, (family, models) in MODELS.items():
        if cpuid[0] == family and any(cpuid[1] in some for some in models):
            return name
    return None


def stepping_of(cpuid: bytes) -> str:
    """The name of a model and stepping, as in a policy: "Genoa/a0/2"."""
    return f"{family_of(cpuid)}/{cpuid[1]:02x}/{cpuid[2]:x}"


def family_named(name: str) -> str | None:
    """The family that a name is, or is a stepping of; None if it is neither."""
    for family, steppings in STEPPINGS.items():
        if name == family or re.fullmatch(steppings, name):
            return family
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """
    Security version numbers, 0 to 255 each. `fmc` is there on Turin only; `tee` is 0 on everything sold so
    far.
    """

    bootloader: int
    snp: int
    microcode: int
    tee: int = 0
    fmc: int = 0

    def __post_init__(self) -> None:
        for part in PARTS:
            value = getattr(self, part)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 255:
                raise InvalidPolicy(f"TCB part {part} is {value!r}, expected 0 to 255")

    @classmethod
    def parse(cls, data: bytes, family: str) -> Tcb:
        return _tcb(data, family)

    def encode(self, family: str) -> bytes:
        data = bytearray(TCB_SIZE)
        for part, at in LAYOUTS[family].items():
            data[at] = getattr(self, part)
        return bytes(data)

    def below(self, floor: Tcb) -> list[str]:
        """The parts that are lower than the floor's, in words; empty if there are none."""
        return [
            f"{part} {is_now} < {least}"
            for part, is_now, least in zip(PARTS, self._numbers, floor._numbers, strict=True)
            if is_now < least
        ]

    @property
    def _numbers(self) -> tuple[int, ...]:
        """In the order of `PARTS`."""
        return self.bootloader, self.snp, self.microcode, self.tee, self.fmc

    def __str__(self) -> str:
        return (
            f"bootloader {self.bootloader}, snp {self.snp}, microcode {self.microcode}, "
            f"tee {self.tee}, fmc {self.fmc}"
        )


@lru_cache(maxsize=64)  # a report has four, mostly the same
def _tcb(data: bytes, family: str) -> Tcb:
    layout = LAYOUTS[family]
    if any(byte for at, byte in enumerate(data) if at not in layout.values()):
        raise MalformedEvidence(
            f"reserved bytes of the TCB {data.hex()} are not zero for {family}", code="reserved-bits"
        )
    return Tcb(**{part: data[at] for part, at in layout.items()})
