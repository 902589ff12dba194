"""
From a token back to Google: certificates, its time, and the signature. Steps 4, 6 and 7 of SPEC §4.

Everything the peer sends is either verified here or not used. Whether an authentic token is acceptable is
decided in `policy.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from .. import certificate_path
from ..errors import UnboundKey, UntrustedEvidence
from ..walk import Finding, moment
from ..x509 import RSA_PKCS1_SHA256, Certificate, Signed
from .token import Token


def trace(token: Token, roots: Mapping[bytes, str], finding: Finding, *, now: datetime) -> Certificate:
    """
    Step 4: from the pinned root, which is equal to the last in the token, to the certificate that signed it.

    Each is valid now, and was when the token was issued.
    """
    leaf, intermediate, root = token.certificates
    path = (
        ("root certificate", root),
        ("intermediate certificate", intermediate),
        ("leaf certificate", leaf),
    )
    return certificate_path.trace(path, roots, RSA_PKCS1_SHA256, finding, times=(now, token.issued_at))


def check_time(token: Token, finding: Finding, *, now: datetime, skew: timedelta) -> None:
    """Step 6: the token is valid now (RFC 7519 §4.1.4 to §4.1.6)."""
    begins, ends = max(token.not_before, token.issued_at), token.expires_at
    finding.expect(
        begins - now <= skew and now - ends < skew,
        "time of the token",
        found=f"{moment(begins)} to {moment(ends)}",
        wanted=f"{moment(now)}, give or take {skew}",
        source="iat, nbf, exp",
        error=UnboundKey,
        code="token-not-valid-now",
        message=f"the token is valid from {moment(begins)} to {moment(ends)}, "
        f"and now is {moment(now)}. Is it an old one, or is this machine's clock wrong?",
    )


def check_signature(token: Token, leaf: Certificate, finding: Finding) -> None:
    """Step 7: RS256 (RFC 7518 §3.3), over header and payload as they came."""
    (algorithm,) = RSA_PKCS1_SHA256.spellings
    signed = Signed(token.signed, algorithm, token.signature)
    valid = signed.is_signed_by(leaf.public_key, RSA_PKCS1_SHA256)
    finding.expect(
        valid,
        "signature of the token",
        found="valid" if valid else "not valid",
        wanted="valid",
        source="signature",
        error=UntrustedEvidence,
        code="bad-signature",
        message="the token was not signed with the key of its leaf certificate",
    )
