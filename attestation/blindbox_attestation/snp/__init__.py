"""
AMD SEV-SNP: `authenticate` (is it genuine?), `judge` (is it acceptable?), and `appraise`, which is both.

Every platform has these three. They know nothing of documents: whether genuine evidence is about *our* key
and *our* question is step 8 of SPEC §4, in `verify.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from ..walk import Walk, day
from . import chain
from .claims import SnpClaims
from .policy import MilanWarning, SnpPolicy
from .report import KEY_NAMES, Report
from .tcb import Tcb

__all__ = ["MilanWarning", "Report", "SnpClaims", "SnpPolicy", "Tcb", "appraise", "authenticate", "judge"]


def authenticate(
    evidence: bytes, endorsements: Mapping[str, bytes], policy: SnpPolicy, *, now: datetime, walk: Walk
) -> SnpClaims:
    """
    Prove that a genuine AMD chip signed this report. SPEC §4, steps 3 to 7; of the policy, only what those
    need.

    3. read the report                                            SPEC §4.1
    4. trace its certificates to a pinned root, valid at `now`
    5. see that none of them is revoked
    6. see that they are about this chip and this firmware
    7. check the signature
    """
    with walk.step(3) as finding:
        report = Report.parse(evidence)
        finding.passed(f"SNP report, version {report.version}")
    with walk.step(4) as finding:
        certificates = chain.trace(report, endorsements, policy.roots, now=now, finding=finding)
        finding.passed(str(certificates))
    with walk.step(5) as finding:
        if policy.revocation == "required":
            listed = chain.check_revocation(certificates, endorsements, now=now, finding=finding)
            finding.passed(f"list of {day(listed.this_update)}, valid until {day(listed.next_update)}")
        else:
            finding.was_not_asked("the policy says that revocation is not checked")
    with walk.step(6) as finding:
        endorsed = chain.check_endorsement(
            report, certificates, allow_masked_chip_id=policy.allow_masked_chip_id, finding=finding
        )
        claims = SnpClaims.of(report, endorsed)
        chip = "hidden" if claims.chip_id is None else f"{claims.chip_id[:8].hex()}…"
        finding.passed(f"{endorsed.family}, chip {chip}, {endorsed.tcb}")
    with walk.step(7) as finding:
        chain.check_signature(evidence, report, certificates.leaf_key, finding)
        finding.passed(f"ECDSA P-384 with the {KEY_NAMES[report.signing_key]}")
    return claims


def judge(claims: SnpClaims, policy: SnpPolicy, *, walk: Walk) -> None:
    """Let the policy judge what the chip says. SPEC §4, steps 9 to 13."""
    for number, check in (
        (9, policy.check_tcb),
        (10, policy.check_guest_policy),
        (11, policy.check_requester),
        (12, policy.check_launch),
        (13, policy.check_machine),
    ):
        with walk.step(number) as finding:
            check(claims, finding)


def appraise(
    evidence: bytes,
    endorsements: Mapping[str, bytes],
    policy: SnpPolicy,
    *,
    now: datetime,
    walk: Walk | None = None,
) -> SnpClaims:
    """
    Judge a report on its own, without a document around it: SPEC §4, steps 3 to 7 and 9 to 13.

    What comes back was said by a genuine chip, about a guest the policy accepts. It says nothing about
    freshness, nor about any key: compare `report_data` yourself, or use `verify`. Raises `AttestationError`.
    """
    walk = Walk() if walk is None else walk
    claims = authenticate(evidence, endorsements, policy, now=now, walk=walk)
    judge(claims, policy, walk=walk)
    return claims
