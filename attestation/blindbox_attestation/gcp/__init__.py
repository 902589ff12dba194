"""
Google Confidential Space: `authenticate` (is it genuine?), `judge` (acceptable?), and `appraise`: both.

What is proved is what Google says about a machine; the machine itself says nothing here. Whether a genuine
token is about *our* key and *our* question is step 8 of SPEC §4, in `verify.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from ..walk import Walk, moment
from . import chain
from .claims import GcpClaims
from .policy import GcpPolicy
from .token import Token

__all__ = ["GcpClaims", "GcpPolicy", "Token", "appraise", "authenticate", "judge"]


def authenticate(
    evidence: bytes, endorsements: Mapping[str, bytes], policy: GcpPolicy, *, now: datetime, walk: Walk
) -> GcpClaims:
    """
    Prove that Google's attestation service signed this token. SPEC §4, steps 3 to 7; of the policy, only
    what those need. Nothing beside the token is needed, and `endorsements` are not looked at.

    3. read the token                                             SPEC §4.6
    4. trace its certificates to a pinned root, valid at `now` and when it was issued
    5. (Google's revocation lists are not consulted)
    6. see that it is valid at `now`
    7. check the signature
    """
    with walk.step(3) as finding:
        token = Token.parse(evidence)
        finding.passed(f"a token of {len(evidence)} bytes")
    with walk.step(4) as finding:
        leaf = chain.trace(token, policy.roots, finding, now=now)
        finding.passed(f"{len(token.certificates)} certificates, the last {leaf.common_name}")
    with walk.step(5) as finding:
        finding.was_not_asked(
            "Google's revocation lists are not consulted; the leaf certificate lives for weeks"
        )
    with walk.step(6) as finding:
        chain.check_time(token, finding, now=now, skew=policy.clock_skew)
        finding.passed(f"Google speaks for the machine, until {moment(token.expires_at)}")
    with walk.step(7) as finding:
        chain.check_signature(token, leaf, finding)
        finding.passed("signed by Google, not by the hardware: RSA PKCS #1 v1.5 with the leaf certificate")
    return GcpClaims.of(token)


def judge(claims: GcpClaims, policy: GcpPolicy, *, walk: Walk) -> None:
    """Let the policy judge what Google says. SPEC §4, steps 9 to 13."""
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
    policy: GcpPolicy,
    *,
    now: datetime,
    walk: Walk | None = None,
) -> GcpClaims:
    """
    Judge a token on its own: SPEC §4, steps 3 to 7 and 9 to 13.

    It says nothing about any key: compare `nonces` yourself, or use `verify`. Raises `AttestationError`.
    """
    walk = Walk() if walk is None else walk
    claims = authenticate(evidence, endorsements, policy, now=now, walk=walk)
    judge(claims, policy, walk=walk)
    return claims
