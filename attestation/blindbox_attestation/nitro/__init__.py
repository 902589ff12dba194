"""
AWS Nitro Enclaves: `authenticate` (is it genuine?), `judge` (is it acceptable?), and `appraise`: both.

What is proved is what AWS's hypervisor says about an enclave. Whether genuine evidence is about *our* key
and *our* question is step 8 of SPEC §4, in `verify.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from ..walk import Walk, moment
from . import chain
from .claims import NitroClaims
from .document import Document
from .policy import NitroPolicy

__all__ = ["Document", "NitroClaims", "NitroPolicy", "appraise", "authenticate", "judge"]


def authenticate(
    evidence: bytes, endorsements: Mapping[str, bytes], policy: NitroPolicy, *, now: datetime, walk: Walk
) -> NitroClaims:
    """
    Prove that AWS's Nitro security module wrote this document. SPEC §4, steps 3 to 7; of the policy, only
    what those need. Nothing beside the document is needed, and `endorsements` are not looked at.

    3. read the document                                          SPEC §4.7
    4. trace its certificates to a pinned root, valid at `now`
    5. (AWS's revocation lists are not consulted)
    6. see that it was written just now
    7. check the signature
    """
    with walk.step(3) as finding:
        document = Document.parse(evidence)
        finding.passed(f"Nitro document of {document.module_id}")
    with walk.step(4) as finding:
        leaf = chain.trace(document, policy.roots, finding, now=now, skew=policy.clock_skew)
        finding.passed(f"{len(document.cabundle)} certificates above {leaf.common_name}")
    with walk.step(5) as finding:
        finding.was_not_asked(
            "AWS's revocation lists are not consulted; the leaf certificate lives for hours"
        )
    with walk.step(6) as finding:
        chain.check_age(document, finding, now=now, most=policy.max_age, skew=policy.clock_skew)
        finding.passed(f"written at {moment(document.timestamp)}")
    with walk.step(7) as finding:
        chain.check_signature(document, leaf, finding)
        finding.passed("ECDSA P-384 with the enclave's leaf certificate")
    return NitroClaims.of(document)


def judge(claims: NitroClaims, policy: NitroPolicy, *, walk: Walk) -> None:
    """Let the policy judge what the hypervisor says. SPEC §4, steps 9 to 13."""
    for number, check in (
        (9, policy.check_firmware),
        (10, policy.check_debug),
        (11, policy.check_part),
        (12, policy.check_launch),
        (13, policy.check_machine),
    ):
        with walk.step(number) as finding:
            check(claims, finding)


def appraise(
    evidence: bytes,
    endorsements: Mapping[str, bytes],
    policy: NitroPolicy,
    *,
    now: datetime,
    walk: Walk | None = None,
) -> NitroClaims:
    """
    Judge a document on its own: SPEC §4, steps 3 to 7 and 9 to 13.

    It says nothing about any key: compare `nonce` and `user_data` yourself, or use `verify`. Raises
    `AttestationError`.
    """
    walk = Walk() if walk is None else walk
    claims = authenticate(evidence, endorsements, policy, now=now, walk=walk)
    judge(claims, policy, walk=walk)
    return claims
