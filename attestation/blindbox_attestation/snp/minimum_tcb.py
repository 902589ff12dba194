"""
The oldest AMD firmware that fixes what is publicly known, as dated data: a help for writing a policy.

AMD has no service that says "up to date", so somebody has to collect its bulletins. Nothing here is applied
by itself: a policy names its own floors. Microcode is counted anew for each stepping, so its numbers are by
family, model and stepping of CPUID; a part for which no number could be sourced is left out, not guessed.

The bulletins are at https://www.amd.com/en/resources/product-security/bulletin/ and give a "TCB Value for
Attestation". They were not read themselves: each entry says in which public text its number is quoted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from .tcb import FAMILIES, LAYOUTS, PARTS, Tcb, family_named

COLLECTED: Final = "2026-11-21"


@dataclass(frozen=True, slots=True)
class Fix:
    """From which level on one kind of processor has one fix."""

    processor: str  # a family, or a stepping of it
    parts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Bulletin:
    """What one bulletin of AMD's asks for, as far as a report can show it."""

    name: str
    published: str  # as exactly as it is known
    about: str
    quoted_in: str
    fixes: tuple[Fix, ...]


BULLETINS: Final = (
    Bulletin(
        "AMD-SB-3015",
        "2024-12",
        "BadRAM, CVE-2024-21944: memory that answers at two addresses",
        "two verifiers with one floor for each family; require PLATFORM_INFO bit 5 too",
        (Fix("Milan", {"snp": 0x17}), Fix("Genoa", {"snp": 0x16})),
    ),
    Bulletin(
        "AMD-SB-3019",
        "2025-02-03",
        "EntrySign, CVE-2024-56161: microcode that anybody can sign",
        "fwupd (fixed microcode by CPUID), and a verifier's review of 2026-10-08 (SNP of Genoa)",
        (
            Fix("Milan/01/1", {"microcode": 0xDB}),  # 0x0A0011DB: the TCB holds the low byte of a revision
            Fix("Milan/01/2", {"microcode": 0x44}),  # 0x0A001244, Milan-X
            Fix("Genoa/11/1", {"microcode": 0x54}),  # 0x0A101154
            Fix("Genoa/11/2", {"microcode": 0x4F}),  # 0x0A10124F, Genoa-X
            Fix("Genoa/a0/2", {"microcode": 0x19}),  # 0x0AA00219, Bergamo and Siena
            Fix("Genoa", {"snp": 0x17}),
        ),
    ),
    Bulletin(
        "AMD-SB-3020",
        "2025-10-14",
        "RMPocalypse, CVE-2025-0033: the RMP is written to while it is set up",
        "a verifier's review of 2026-10-08",
        (
            Fix("Genoa", {"snp": 0x1B}),
            Fix("Genoa/11/1", {"microcode": 0x56}),
            Fix("Genoa/11/2", {"microcode": 0x51}),
            Fix("Turin", {"snp": 0x04}),
            Fix("Turin/02/1", {"microcode": 0x50}),
        ),
    ),
    Bulletin(
        "AMD-SB-3027",
        "2026",
        "StackWarp, CVE-2025-29943: a sibling thread moves the stack pointer",
        "a verifier's review of 2026-10-08",
        (
            Fix("Genoa/11/1", {"microcode": 0x56}),
            Fix("Genoa/11/2", {"microcode": 0x51}),
            Fix("Turin/02/1", {"microcode": 0x51}),
        ),
    ),
    Bulletin(
        "AMD-SB-3016",
        "2026-04-14",
        "CVE-2023-20585: the IOMMU writes into guest memory",
        "a verifier's tests of 2026-09-30",
        (Fix("Milan", {"snp": 0x1B}), Fix("Genoa", {"snp": 0x1B})),
    ),
    Bulletin(
        "AMD-SB-3030",
        "2026-05-12",
        "BreakFAST, CVE-2025-61971: registers that route memory are left open",
        "a verifier's floors of 2026-09-11",
        (Fix("Milan", {"snp": 0x1D}),),
    ),
)

WITHOUT_A_NUMBER: Final = {
    "AMD-SB-3005": "CacheWarp, CVE-2023-20592: no TCB value found; its microcode came before EntrySign's",
    "AMD-SB-3019": "SNP of Milan and all of Turin: no TCB value found",
    "AMD-SB-3020": "Milan, Bergamo and Siena: no microcode value found",
    "AMD-SB-3027": "Milan, Bergamo and Siena: no value found; a guest without SMT is not concerned",
    "AMD-SB-3030": "Genoa and Turin: no TCB value found",
    "AMD-SB-3034": "Fabricked, CVE-2025-54510: AMD took its TCB values back on 2026-09-24",
    "AMD-SB-3045": "MilanLaunchy and BadFuse (arXiv 2605.12990): no floor helps; name no Milan",
}
"""What is known to be missing above."""


def floors() -> Mapping[str, Tcb]:
    """Processor → the highest number of each part that any bulletin asks of it; 0 where none was found."""
    named = {fix.processor for bulletin in BULLETINS for fix in bulletin.fixes}
    found: dict[str, Tcb] = {}
    for name in sorted(named, key=lambda name: (FAMILIES.index(str(family_named(name))), name)):
        asked = [
            fix.parts
            for bulletin in BULLETINS
            for fix in bulletin.fixes
            if fix.processor in (name, family_named(name))
        ]
        parts = [part for part in PARTS if part in LAYOUTS[str(family_named(name))]]
        found[name] = Tcb(**{part: max((one.get(part, 0) for one in asked), default=0) for part in parts})
    return MappingProxyType(found)
