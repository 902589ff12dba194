"""
From a document back to AWS: certificates, its age, and the signature. Steps 4, 6 and 7 of SPEC §4.

Everything the peer sends is either verified here or not used. Whether an authentic document is acceptable is
decided in `policy.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from .. import certificate_path
from ..errors import UnboundKey, UntrustedEvidence
from ..walk import Finding, moment
from ..x509 import P384_SHA384, Certificate, Signed
from .document import SIGNATURE_SIZE, Document

P384_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)


def trace(
    document: Document, roots: Mapping[bytes, str], finding: Finding, *, now: datetime, skew: timedelta
) -> Certificate:
    """
    Step 4: from the pinned root, first of the bundle, to the certificate of this enclave.

    The last of them are minutes old, so that they may begin `skew` in the future of a slow clock. None may be
    over: that is what they are short-lived for.
    """
    count = len(document.cabundle)
    path = [
        (f"certificate {at} of {count} in the cabundle", der) for at, der in enumerate(document.cabundle, 1)
    ]
    path.append(("leaf certificate", document.certificate))
    leaf = certificate_path.trace(path, roots, P384_SHA384, finding, times=(now,), early=skew)
    key = leaf.public_key
    finding.expect(
        isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP384R1),
        "leaf certificate: key",
        found=f"{type(key).__name__.removesuffix('PublicKey')} of {key.key_size} bits",
        wanted="EllipticCurve of 384 bits",
        source="leaf certificate",
        error=UntrustedEvidence,
        code="wrong-certificate-kind",
    )
    return leaf


def check_age(
    document: Document, finding: Finding, *, now: datetime, most: timedelta, skew: timedelta
) -> None:
    """Step 6: the security module wrote it just now."""
    told = document.timestamp
    finding.expect(
        -skew <= now - told <= most,
        "age of the document",
        found=moment(told),
        wanted=f"at most {most} before {moment(now)}, or {skew} after it",
        source="timestamp",
        error=UnboundKey,
        code="outside-validity",
        message=f"the document was written at {moment(told)}, and now is "
        f"{moment(now)}; it may be {most} old. Is it an old one, or is this machine's clock wrong?",
    )


def check_signature(document: Document, leaf: Certificate, finding: Finding) -> None:
    """Step 7: ES384 (RFC 9053 §2.1), r and s of 48 bytes each, over header and payload as they came."""
    half = SIGNATURE_SIZE // 2
    r, s = (int.from_bytes(part, "big") for part in (document.signature[:half], document.signature[half:]))
    if not 0 < r < P384_ORDER or not 0 < s < P384_ORDER:
        raise UntrustedEvidence(
            "the signature of the document is out of range for P-384", code="malformed-signature"
        )
    # s and n − s are both valid for the same r, and the module gives either: a signature is not an identity.
    (algorithm,) = P384_SHA384.spellings
    signed = Signed(document.signed, algorithm, encode_dss_signature(r, s))
    valid = signed.is_signed_by(leaf.public_key, P384_SHA384)
    finding.expect(
        valid,
        "signature of the document",
        found="valid" if valid else "not valid",
        wanted="valid",
        source="signature",
        error=UntrustedEvidence,
        code="bad-signature",
        message="the document was not signed with the key of its leaf certificate",
    )
