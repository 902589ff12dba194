"""
From a pinned root down to a leaf: the certificates of vendors who do nothing special (RFC 5280 §6, a
straight line).

Which certificates those are, and how each vendor signs, is said in `chain.py` of a platform; AMD's, which
have names and rules of their own, are traced in `snp/chain.py`. Whether one certificate signed another does
not depend on the time, so that is remembered for the last few, by their bytes; everything else is looked at
each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from .errors import UntrustedEvidence
from .walk import Finding, moment
from .x509 import Certificate, Scheme

REMEMBERED: Final = 256
"""Certificates, and signatures on them: each at most a few KiB, as the platforms allow them."""


def trace(
    path: Sequence[tuple[str, bytes]],
    roots: Mapping[bytes, str],
    scheme: Scheme,
    finding: Finding,
    *,
    times: Sequence[datetime],
    early: timedelta = timedelta(0),
) -> Certificate:
    """
    The leaf at the end of `path`: (name for errors, DER), the root first. Step 4 of SPEC §4.

    Every certificate is valid at each of `times`, or becomes so at most `early` after it. The first is one of
    `roots`, each vouches for the next with `scheme`, and the last may sign data and no certificates.
    """
    (root_name, root_der), *_ = path
    fingerprint = hashlib.sha256(root_der).digest()
    finding.expect(
        fingerprint in roots,
        "the root is pinned",
        found=fingerprint,
        wanted=set(roots),
        source=root_name,
        error=UntrustedEvidence,
        code="unpinned-root",
        message=f"the first certificate has SHA-256 {fingerprint.hex()}, which is none of the pinned roots "
        f"({', '.join(sorted(set(roots.values())))})",
    )
    certificates = [(name, _read(der, name)) for name, der in path]
    for name, certificate in certificates:
        for at in times:
            _expect_valid(name, certificate, at, early, finding)
    for below, ((issuer_name, issuer), (name, certificate)) in enumerate(
        zip(reversed(certificates[:-1]), reversed(certificates[1:]), strict=True)
    ):
        _expect_authority(issuer_name, issuer, below, finding)
        _expect_issued(issuer_name, issuer, name, certificate, scheme, finding)
    name, leaf = certificates[-1]
    finding.expect(
        not leaf.is_authority and leaf.may_sign_data,
        f"{name}: may sign data, and no certificates",
        found=leaf.may_sign_data and not leaf.is_authority,
        wanted=True,
        source=name,
        error=UntrustedEvidence,
        code="wrong-certificate-kind",
        message=f"the {name} ({leaf.common_name!a}) is no certificate for signing evidence",
    )
    return leaf


def _expect_valid(
    name: str, certificate: Certificate, at: datetime, early: timedelta, finding: Finding
) -> None:
    found = f"{moment(certificate.not_before)} to {moment(certificate.not_after)}"
    finding.expect(
        # Differences only: a certificate may name the first or the last moment that there is.
        certificate.not_before - at <= early and at <= certificate.not_after,
        f"{name}: valid",
        found=found,
        wanted=moment(at),
        source=name,
        error=UntrustedEvidence,
        code="certificate-not-valid-now",
        message=f"the {name} ({certificate.common_name!a}) is valid from {found}, "
        f"and the time is {moment(at)}",
    )


def _expect_authority(name: str, issuer: Certificate, below: int, finding: Finding) -> None:
    """RFC 5280 §4.2.1.9: may issue certificates, with `below` more authorities between it and the leaf."""
    may = issuer.is_authority and issuer.may_sign_certificates
    finding.expect(
        may and (issuer.path_length is None or below <= issuer.path_length),
        f"{name}: may issue certificates",
        found=f"at most {issuer.path_length} authorities below" if may else "no authority",
        wanted=f"{below} authorities below",
        source=name,
        error=UntrustedEvidence,
        code="wrong-certificate-kind",
        message=f"the {name} ({issuer.common_name!a}) may not issue certificates, "
        f"or not with {below} more authorities below it",
    )


def _expect_issued(
    issuer_name: str,
    issuer: Certificate,
    name: str,
    certificate: Certificate,
    scheme: Scheme,
    finding: Finding,
) -> None:
    finding.expect(
        certificate.issuer == issuer.subject,
        f"{name}: names its issuer",
        found=certificate.issuer == issuer.subject,
        wanted=True,
        source=name,
        error=UntrustedEvidence,
        code="wrong-issuer",
        message=f"the {name} ({certificate.common_name!a}) was not issued by {issuer.common_name!a}, "
        f"which came before it as the {issuer_name}; is the order right?",
    )
    signed = _signed(issuer.der, issuer_name, certificate.der, name, scheme)
    finding.expect(
        signed,
        f"{name}: signed by its issuer",
        found=f"{scheme.name}, {'valid' if signed else 'not valid'}",
        wanted=f"{scheme.name}, valid",
        source=name,
        error=UntrustedEvidence,
        code="bad-certificate-signature",
        message=f"the {name} ({certificate.common_name!a}) has no valid {scheme.name} signature "
        f"of {issuer.common_name!a}",
    )


@lru_cache(maxsize=REMEMBERED)
def _read(der: bytes, name: str) -> Certificate:
    return Certificate.parse(der, name)


@lru_cache(maxsize=REMEMBERED)
def _signed(issuer_der: bytes, issuer_name: str, der: bytes, name: str, scheme: Scheme) -> bool:
    return _read(der, name).signed.is_signed_by(_read(issuer_der, issuer_name).public_key, scheme)
