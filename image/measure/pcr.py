"""
The registers of a TPM that name our image, in the banks that clouds quote.

PCR 4 is the programs that were started, 11 the parts of the unified kernel image, 12 whatever came to the
kernel from outside of it: nothing, so zero. The others belong to the platform (0 to 3, 7), or say over again
what these say (5, 9).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .events import Measured, extended

BANKS: Final = ("sha256", "sha384")
REGISTERS: Final = (4, 11, 12)


def predicted(boot: Iterable[Measured], bank: str) -> dict[int, bytes]:
    """Register → the value it has once the kernel runs."""
    events = tuple(boot)
    return {
        register: extended((event.digest(bank) for event in events if event.register == register), bank)
        for register in REGISTERS
    }
