"""
The TPM of an ordinary machine: `authenticate` (is it genuine?), `judge` (is it acceptable?), and `appraise`:
both.

What is proved is what the TPM's owner lets it say: on a virtual machine, the hypervisor. Whether a genuine
quote is about *our* key and *our* question is step 8 of SPEC §4, in `verify.py`. Azure's confidential
machines use the parts of this package under a processor's report: `azure/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from ..walk import Walk
from . import chain
from .boot import EventRule, Measured, MeasuredBoot
from .claims import TpmClaims
from .evidence import TpmEvidence
from .policy import TpmPolicy
from .quote import check_quote

__all__ = [
    "EventRule",
    "MeasuredBoot",
    "TpmClaims",
    "TpmEvidence",
    "TpmPolicy",
    "appraise",
    "authenticate",
    "judge",
]


def authenticate(
    evidence: bytes, endorsements: Mapping[str, bytes], policy: TpmPolicy, *, now: datetime, walk: Walk
) -> TpmClaims:
    """
    Prove that a TPM signed this quote with a key that a vendor, or the policy, vouches for. SPEC §4, steps 3
    to 7; of the policy, only what those need.

    3. read the quote, and the event log if the policy looks at it       SPEC §4.4
    4. trace the key to a pinned root, valid at `now`, or find it pinned
    5. (no vendor publishes a revocation list of these keys)
    6. see which machine the certificate is for
    7. check the key, the signature, and the registers under it
    """
    with walk.step(3) as finding:
        told = TpmEvidence.parse(evidence)
        quote = told.quote
        measured = Measured.read(quote.attest.bank, quote.pcrs, policy.boot.log_of(endorsements))
        finding.passed(f"TPM quote of {len(quote.attest.registers)} registers")
    leaf = None
    with walk.step(4) as finding:
        if policy.ak_keys is not None:
            chain.check_pinned(told.ak_public, policy.ak_keys, finding)
            finding.passed("a key that the policy pins")
        if policy.needs_chain:
            leaf = chain.trace(endorsements.get("ak_chain"), told.ak_public, policy.roots, finding, now=now)
            finding.passed(f"certified as {leaf.common_name}")
    with walk.step(5) as finding:
        finding.does_not_apply("nobody publishes a list of attestation keys of TPMs that were revoked")
    with walk.step(6) as finding:
        instance = None if leaf is None else chain.Instance.of(leaf)
        if leaf is None:
            finding.does_not_apply("a pinned key has no certificate")
        else:
            finding.passed(str(instance) if instance else "the certificate names no machine")
    with walk.step(7) as finding:
        chain.check_area(told, finding)
        check_quote(quote, told.key, finding)
        policy.boot.check_selection(quote.attest, finding)
        finding.passed(quote.signature.words)
    return TpmClaims.of(told, measured, instance)


def judge(claims: TpmClaims, policy: TpmPolicy, *, walk: Walk) -> None:
    """Let the policy judge what the quote says. SPEC §4, steps 9 to 13."""
    for number, check in (
        (9, policy.check_firmware),
        (10, policy.check_host),
        (11, policy.check_part),
        (12, policy.check_launch),
        (13, policy.check_machine),
    ):
        with walk.step(number) as finding:
            check(claims, finding)


def appraise(
    evidence: bytes,
    endorsements: Mapping[str, bytes],
    policy: TpmPolicy,
    *,
    now: datetime,
    walk: Walk | None = None,
) -> TpmClaims:
    """
    Judge a quote on its own, without a document around it: SPEC §4, steps 3 to 7 and 9 to 13.

    It says nothing about freshness, nor about any key: compare `extra_data` yourself, or use `verify`. Raises
    `AttestationError`.
    """
    walk = Walk() if walk is None else walk
    claims = authenticate(evidence, endorsements, policy, now=now, walk=walk)
    judge(claims, policy, walk=walk)
    return claims
