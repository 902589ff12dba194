"""
What a TDX guest was allowed to share with its host: TDATTRIBUTES, XFAM and service machines (SPEC §4, step
10).

Bits: Intel, "TDX Module ABI Specification", table ATTRIBUTES. Every bit that is not known here is refused.
"""

from __future__ import annotations

from typing import Final

from ..errors import DebugAllowed
from ..walk import Finding

UNDER_DEBUG: Final = 0xFF  # TUD: with any of these eight the guest is open to its host
SEPT_VE_DISABLE: Final = 1 << 28  # no page can vanish under the guest's feet
MIGRATABLE: Final = 1 << 29
PKS: Final = 1 << 30
KEY_LOCKER: Final = 1 << 31
PERFMON: Final = 1 << 63  # counters that tell the host what the guest does

_ALLOWED: Final = SEPT_VE_DISABLE | PKS | KEY_LOCKER


def check(
    td_attributes: int, xfam: int, mrservicetd: bytes | None, xfam_allowed: int | None, finding: Finding
) -> None:
    """See that the host cannot look inside. No policy takes any of the first five back."""
    finding.expect(
        not td_attributes & UNDER_DEBUG,
        "debugging",
        found=f"{td_attributes & UNDER_DEBUG:#x}",
        wanted="0x0",
        source="TDATTRIBUTES",
        error=DebugAllowed,
        message="the guest was started for debugging: its host can read its memory",
    )
    finding.expect(
        not td_attributes & MIGRATABLE,
        "may be moved to another machine",
        found=bool(td_attributes & MIGRATABLE),
        wanted=False,
        source="TDATTRIBUTES",
        code="migration-allowed",
        message="the guest may be moved to another machine by a migration service",
    )
    if mrservicetd is None:
        finding.not_applicable("service machine", "a quote with a TD 1.0 body does not tell")
    else:
        finding.expect(
            not any(mrservicetd),
            "service machine",
            found=mrservicetd,
            wanted="none: zeros",
            source="MRSERVICETD",
            code="service-td",
            message=f"a service machine is bound to the guest: {mrservicetd.hex()}",
        )
    finding.expect(
        bool(td_attributes & SEPT_VE_DISABLE),
        "SEPT_VE_DISABLE",
        found=bool(td_attributes & SEPT_VE_DISABLE),
        wanted=True,
        source="TDATTRIBUTES",
        code="td-attributes",
        message="SEPT_VE_DISABLE is not set: the host can take pages away and see what the guest does then",
    )
    unknown = td_attributes & ~(_ALLOWED | UNDER_DEBUG | MIGRATABLE)
    finding.expect(
        not unknown,
        "other attributes",
        found=f"{unknown:#x}",
        wanted="0x0",
        source="TDATTRIBUTES",
        code="td-attributes",
        message=f"TDATTRIBUTES has bits that are not accepted: {unknown:#x}"
        + (" (PERFMON: the host may count what the guest does)" if unknown & PERFMON else ""),
    )
    if xfam_allowed is None:
        finding.not_asked("processor features", found=f"{xfam:#x}", source="XFAM")
    else:
        finding.expect(
            not xfam & ~xfam_allowed,
            "processor features",
            found=f"{xfam:#x}",
            wanted=f"bits of {xfam_allowed:#x}",
            source="XFAM",
            code="td-attributes",
        )
