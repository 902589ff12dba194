"""
Trusted computing base levels: how old the firmware and the microcode of an AMD processor may be.

Eight bytes in a report, whose meaning depends on the processor family (SPEC §4.1). They are compared part by
part: in the packed integer, a high microcode would hide a low bootloader.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from ..errors import InvalidPolicy, MalformedEvidence

MILAN: Final = "Milan"
GENOA: Final = "Genoa"  # also Bergamo and Siena
TURIN: Final = "Turin"
FAMILIES: Final = (MILAN, GENOA, TURIN)

TCB_SIZE: Final = 8

_OLD_LAYOUT: Final = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
LAYOUTS: Final = {
    MILAN: _OLD_LAYOUT,
    GENOA: _OLD_LAYOUT,
    TURIN: {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
}
"""Family → part → byte of the eight. The other bytes are reserved, and zero."""


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
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 255:
                raise InvalidPolicy(f"TCB part {field.name} is {value!r}, expected 0 to 255")

    @classmethod
    def parse(cls, data: bytes, family: str) -> Tcb:
        layout = LAYOUTS[family]
        if any(byte for at, byte in enumerate(data) if at not in layout.values()):
            raise MalformedEvidence(
                f"reserved bytes of the TCB {data.hex()} are not zero for {family}", code="reserved-bits"
            )
        return cls(**{part: data[at] for part, at in layout.items()})

    def encode(self, family: str) -> bytes:
        data = bytearray(TCB_SIZE)
        for part, at in LAYOUTS[family].items():
            data[at] = getattr(self, part)
        return bytes(data)

    def below(self, floor: Tcb) -> list[str]:
        """The parts that are lower than the floor's, in words; empty if there are none."""
        found: list[str] = []
        for field in fields(self):
            is_now, least = getattr(self, field.name), getattr(floor, field.name)
            if is_now < least:
                found.append(f"{field.name} {is_now} < {least}")
        return found

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self))
