"""
What an authentic SNP report says, in words: the values that `policy.py` judges and that a caller may look at.

Claims are made only from a report whose signature leads to a pinned root.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..binding import Bound, report_data, same
from .chain import Endorsement
from .report import KEY_NAMES, Report
from .tcb import Tcb, stepping_of


@dataclass(frozen=True, slots=True)
class SnpClaims:
    """What the chip says about the guest, the firmware and itself."""

    family: str  # "Milan", "Genoa" or "Turin"
    stepping: str | None  # with model and stepping, as in "Genoa/a0/2"; a version 2 report does not tell
    measurement: bytes  # 48 bytes, SHA-384 of the launched guest
    report_data: bytes  # 64 bytes, chosen by the guest
    host_data: bytes  # 32 bytes, chosen by the host
    guest_policy: int
    guest_svn: int
    vmpl: int
    platform_info: int
    reported_tcb: Tcb
    committed_tcb: Tcb
    current_tcb: Tcb
    launch_tcb: Tcb
    signing_key: str  # "vcek" or "vlek"
    chip_id: bytes | None  # 64 bytes; None if the report hides it
    csp_id: str | None  # the cloud that holds the VLEK
    id_key_digest: bytes  # 48 bytes, zero without an ID block
    author_key_digest: bytes  # 48 bytes, zero without an author key
    has_author_key: bool
    has_migration_agent: bool
    report_version: int

    @classmethod
    def of(cls, report: Report, endorsed: Endorsement) -> SnpClaims:
        """The claims of a report that `chain.py` has found authentic."""
        family = endorsed.family
        return cls(
            family=family,
            stepping=stepping_of(report.cpuid) if report.version >= 3 else None,
            measurement=report.measurement,
            report_data=report.report_data,
            host_data=report.host_data,
            guest_policy=report.policy,
            guest_svn=report.guest_svn,
            vmpl=report.vmpl,
            platform_info=report.platform_info,
            reported_tcb=Tcb.parse(report.reported_tcb, family),
            committed_tcb=Tcb.parse(report.committed_tcb, family),
            current_tcb=Tcb.parse(report.current_tcb, family),
            launch_tcb=Tcb.parse(report.launch_tcb, family),
            signing_key=KEY_NAMES[report.signing_key],
            chip_id=report.chip_id if any(report.chip_id) else None,
            csp_id=endorsed.csp_id,
            id_key_digest=report.id_key_digest,
            author_key_digest=report.author_key_digest,
            has_author_key=bool(report.flags & 1),
            has_migration_agent=report.report_id_ma != b"\xff" * len(report.report_id_ma),
            report_version=report.version,
        )

    def speaks_for(self, bound: Bound) -> bool:
        """Whether REPORT_DATA is the binding, and zeros after it."""
        return same(self.report_data, report_data(bound.digest))

    def carries(self, value: bytes) -> bool:
        """Whether REPORT_DATA is this value, and zeros after it."""
        return same(self.report_data, value.ljust(len(self.report_data), b"\x00"))
