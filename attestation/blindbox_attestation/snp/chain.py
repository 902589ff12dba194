"""
From a report back to AMD: certificates, revocation, what the chip's certificate endorses, and the signature.

Steps 4 to 7 of SPEC §4. Everything the peer sends is either verified here or not used. Whether an authentic
report is acceptable is decided in `policy.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from ..der import IA5_STRING, NotDer, Reader
from ..errors import MalformedEvidence, RevokedEvidence, UntrustedEvidence
from ..x509 import Certificate, RevocationList
from .report import KEY_NAMES, KEY_VCEK, KEY_VLEK, SIGNED_SIZE, Report
from .tcb import FAMILIES, LAYOUTS, Tcb

P384_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)
_PART_SIZE = 72  # of R and of S in the report, little endian

_ARC: Final = "1.3.6.1.4.1.3704.1."  # AMD 57230, "VCEK certificate and KDS interface"
_PARTS: Final = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_UNUSED_PARTS: Final = ("3.4", "3.5", "3.6", "3.7")
_HWID_SIZE: Final = {"Milan": 64, "Genoa": 64, "Turin": 8}


@dataclass(frozen=True, slots=True)
class _Kind:
    """One way from a chip's key to AMD's root: what the certificates on it are called."""

    leaf: str
    leaf_name: str
    intermediate: str
    intermediate_prefix: str  # before the family


_KINDS: Final = {
    KEY_VCEK: _Kind("vcek", "SEV-VCEK", "ask", "SEV-"),
    KEY_VLEK: _Kind("vlek", "SEV-VLEK", "asvk", "SEV-VLEK-"),
}


@dataclass(frozen=True, slots=True)
class Chain:
    """Three certificates, of which the first is a pinned root and each vouches for the next."""

    root: Certificate
    intermediate: Certificate
    leaf: Certificate
    family: str
    leaf_key: EllipticCurvePublicKey

    def __str__(self) -> str:
        return " → ".join(one.common_name for one in (self.root, self.intermediate, self.leaf))


@dataclass(frozen=True, slots=True)
class Endorsement:
    """What AMD says about the chip, in the extensions of its certificate."""

    family: str
    tcb: Tcb
    hwid: bytes | None  # 64 bytes, 8 on Turin; only in a VCEK
    csp_id: str | None  # only in a VLEK


# --- step 4: certificates to a pinned root -----------------------------------------------------------------


def trace(
    report: Report, endorsements: Mapping[str, bytes], roots: Mapping[bytes, str], *, now: datetime
) -> Chain:
    """
    Walk the three links from a pinned root to the chip's key.

    Which kind of leaf to expect is what the signed report says, not what was sent.
    """
    kind = _KINDS.get(report.signing_key)
    if kind is None:
        raise UntrustedEvidence(
            f"the report says it is signed by key kind {report.signing_key}, which is neither VCEK nor VLEK",
            code="wrong-certificate-kind",
        )
    root = _endorsement(endorsements, "ark")
    fingerprint = hashlib.sha256(root.der).digest()
    family = roots.get(fingerprint)
    if family is None:
        raise UntrustedEvidence(
            f"the root {root.common_name!a} with SHA-256 {fingerprint.hex()} is not a pinned one",
            code="unpinned-root",
        )
    intermediate = _endorsement(endorsements, kind.intermediate)
    leaf = _endorsement(endorsements, kind.leaf)

    names = {kind.intermediate_prefix + name for name in FAMILIES}
    if intermediate.common_name not in names or not intermediate.is_authority:
        raise _wrong_kind(kind.intermediate, intermediate)
    if leaf.common_name != kind.leaf_name or leaf.is_authority:
        raise _wrong_kind(kind.leaf, leaf)
    key = leaf.public_key
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise UntrustedEvidence(
            f"the {kind.leaf} certificate does not hold a P-384 key", code="wrong-certificate-kind"
        )

    for what, certificate in (("ark", root), (kind.intermediate, intermediate), (kind.leaf, leaf)):
        if not certificate.not_before <= now <= certificate.not_after:
            raise UntrustedEvidence(
                f"the {what} certificate is valid from {certificate.not_before:%Y-%m-%d} to "
                f"{certificate.not_after:%Y-%m-%d}, and now is {now:%Y-%m-%d %H:%M}",
                code="certificate-not-valid-now",
            )
    _link("ark", root, "ark", root)
    _link("ark", root, kind.intermediate, intermediate)
    _link(kind.intermediate, intermediate, kind.leaf, leaf)
    if intermediate.common_name != kind.intermediate_prefix + family:
        raise UntrustedEvidence(
            f"{root.common_name!a} is the root of {family}, and issued {intermediate.common_name!a}",
            code="wrong-issuer",
        )
    return Chain(root, intermediate, leaf, family, key)


def _endorsement(endorsements: Mapping[str, bytes], what: str) -> Certificate:
    der = endorsements.get(what)
    if der is None:
        raise UntrustedEvidence(f"the {what} certificate was not sent", code="missing-endorsement")
    return Certificate.parse(der, what)


def _wrong_kind(what: str, certificate: Certificate) -> UntrustedEvidence:
    return UntrustedEvidence(
        f"{certificate.common_name!a} was sent as the {what} certificate, which it is not",
        code="wrong-certificate-kind",
    )


def _link(issuer_name: str, issuer: Certificate, what: str, certificate: Certificate) -> None:
    if certificate.issuer != issuer.subject or not issuer.may_sign_certificates:
        raise UntrustedEvidence(
            f"the {what} certificate was not issued by {issuer.common_name!a}, "
            f"which was sent as the {issuer_name}",
            code="wrong-issuer",
        )
    if not certificate.signed.is_signed_by(issuer.public_key):
        raise UntrustedEvidence(
            f"the signature of {issuer.common_name!a} on the {what} certificate is not valid",
            code="bad-certificate-signature",
        )


# --- step 5: revocation -------------------------------------------------------------------------------------


def check_revocation(chain: Chain, endorsements: Mapping[str, bytes], *, now: datetime) -> RevocationList:
    """See that a current list of the root's does not name a certificate of the chain."""
    der = endorsements.get("crl")
    if der is None:
        raise RevokedEvidence(
            "the revocation list was not sent, and the policy requires one", code="crl-missing"
        )
    try:
        listed = RevocationList.parse(der)
    except NotDer as error:
        raise RevokedEvidence(
            f"the revocation list cannot be read: {error}", code="crl-bad-signature"
        ) from error
    root = chain.root
    if (
        listed.issuer != root.subject
        or not root.may_sign_crls
        or not listed.signed.is_signed_by(root.public_key)
    ):
        raise RevokedEvidence(
            f"the revocation list is not one of {root.common_name!a}", code="crl-bad-signature"
        )
    if not listed.this_update <= now <= listed.next_update:
        raise RevokedEvidence(
            f"the revocation list is valid from {listed.this_update:%Y-%m-%d} to "
            f"{listed.next_update:%Y-%m-%d}, and now is {now:%Y-%m-%d %H:%M}",
            code="crl-not-valid-now",
        )
    # The list speaks about what the root has issued: itself and the intermediates. Leaves all have serial 0.
    for certificate in (root, chain.intermediate):
        if certificate.serial in listed.revoked:
            raise RevokedEvidence(
                f"{certificate.common_name!a} with serial {certificate.serial:#x} has been revoked",
                code="revoked",
            )
    return listed


# --- step 6: the certificate endorses this chip at this TCB -------------------------------------------------


def check_endorsement(report: Report, chain: Chain, *, allow_masked_chip_id: bool) -> Endorsement:
    """See that the chip's certificate is about this family, this chip and the firmware that is reported."""
    endorsed = _read_extensions(chain.leaf.extensions, report.signing_key, chain.family)
    for source, family in (("its certificate", endorsed.family), ("its CPUID", report.family)):
        if family is not None and family != chain.family:
            raise UntrustedEvidence(
                f"the root is that of {chain.family}, {source} says {family}", code="product-mismatch"
            )
    if endorsed.hwid is not None:
        if not any(report.chip_id):
            if not allow_masked_chip_id:
                raise UntrustedEvidence(
                    "the report hides its chip id, and the policy wants to see it", code="chip-id-masked"
                )
        elif report.chip_id != endorsed.hwid.ljust(len(report.chip_id), b"\x00"):
            raise UntrustedEvidence(
                f"the certificate is for chip {endorsed.hwid[:8].hex()}…, "
                f"the report is from {report.chip_id[:8].hex()}…",
                code="chip-id-mismatch",
            )
    reported = Tcb.parse(report.reported_tcb, chain.family)
    if endorsed.tcb != reported:
        raise UntrustedEvidence(
            f"the certificate is for firmware {endorsed.tcb}; the report says {reported}",
            code="certificate-tcb-mismatch",
        )
    return endorsed


def _read_extensions(extensions: Mapping[str, bytes], signing_key: int, family: str) -> Endorsement:
    parts = LAYOUTS[family]
    for suffix in _UNUSED_PARTS:
        if _ARC + suffix in extensions and _small_integer(extensions, suffix) != 0:
            raise _malformed(suffix, "is in use, which this verifier does not know")
    if "fmc" not in parts and _ARC + _PARTS["fmc"] in extensions:
        raise _malformed(_PARTS["fmc"], f"does not belong to {family}")
    tcb = Tcb(**{part: _small_integer(extensions, _PARTS[part]) for part in parts})
    product, _, stepping = _ia5(extensions, "2").partition("-")
    if stepping and not stepping.isalnum():
        raise _malformed("2", "is no product name")
    hwid: bytes | None = None
    csp_id: str | None = None
    if signing_key == KEY_VCEK:
        hwid = _value(extensions, "4")
        if len(hwid) != _HWID_SIZE[family]:
            raise _malformed("4", f"is {len(hwid)} bytes, expected {_HWID_SIZE[family]}")
    else:
        csp_id = _ia5(extensions, "5")
    for suffix, unwanted in (("5", signing_key == KEY_VCEK), ("4", signing_key == KEY_VLEK)):
        if unwanted and _ARC + suffix in extensions:
            raise _malformed(suffix, f"does not belong in a {KEY_NAMES[signing_key]}")
    return Endorsement(product, tcb, hwid, csp_id)


def _value(extensions: Mapping[str, bytes], suffix: str) -> bytes:
    try:
        return extensions[_ARC + suffix]
    except KeyError as error:
        raise _malformed(suffix, "is missing") from error


def _small_integer(extensions: Mapping[str, bytes], suffix: str) -> int:
    reader = Reader(_value(extensions, suffix))
    try:
        value = reader.integer()
        reader.end()
    except NotDer as error:
        raise _malformed(suffix, f"cannot be read: {error}") from error
    if not 0 <= value <= 255:
        raise _malformed(suffix, f"is {value}, expected 0 to 255")
    return value


def _ia5(extensions: Mapping[str, bytes], suffix: str) -> str:
    reader = Reader(_value(extensions, suffix))
    try:
        value = reader.take(IA5_STRING).decode("ascii")
        reader.end()
    except (NotDer, UnicodeDecodeError) as error:
        raise _malformed(suffix, f"cannot be read: {error}") from error
    return value


def _malformed(suffix: str, what: str) -> MalformedEvidence:
    return MalformedEvidence(f"the certificate's extension {_ARC}{suffix} {what}", code="malformed-extension")


# --- step 7: the signature ----------------------------------------------------------------------------------


def check_signature(evidence: bytes, report: Report, key: EllipticCurvePublicKey) -> None:
    """ECDSA P-384 over SHA-384 of the first 0x2A0 bytes, exactly as they came."""
    # ECDSA lets anybody put n − S in the place of S. What was signed stays the same, and so does all that is
    # believed; only `evidence_id` differs, which the enclave then does not know.
    r, s = _number(report.signature[:_PART_SIZE]), _number(report.signature[_PART_SIZE : 2 * _PART_SIZE])
    if any(report.signature[2 * _PART_SIZE :]):
        raise UntrustedEvidence("bytes after the signature are not zero", code="malformed-signature")
    try:
        key.verify(encode_dss_signature(r, s), evidence[:SIGNED_SIZE], ECDSA(SHA384()))
    except InvalidSignature as error:
        raise UntrustedEvidence("the chip's key did not sign this report", code="bad-signature") from error


def _number(data: bytes) -> int:
    value = int.from_bytes(data, "little")
    if not 1 <= value < P384_ORDER:  # so the 24 bytes above it are zero
        raise UntrustedEvidence("a number of the signature is out of range", code="malformed-signature")
    return value
