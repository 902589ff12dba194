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
from functools import lru_cache
from typing import Final, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ..der import IA5_STRING, NotDer, Reader
from ..errors import MalformedEvidence, RevokedEvidence, UntrustedEvidence
from ..walk import Finding, day, moment
from ..x509 import ECDSA_WITH_SHA384, Certificate, RevocationList, Signed
from .report import KEY_NAMES, KEY_VCEK, KEY_VLEK, SIGNED_SIZE, Report
from .tcb import FAMILIES, LAYOUTS, Tcb

P384_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)
_REMEMBERED: Final = 64  # certificates, lists and links between them
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
    report: Report,
    endorsements: Mapping[str, bytes],
    roots: Mapping[bytes, str],
    *,
    now: datetime,
    finding: Finding,
) -> Chain:
    """
    Walk the three links from a pinned root to the chip's key.

    Which kind of leaf to expect is what the signed report says, not what was sent.
    """
    finding.expect(
        report.signing_key in _KINDS,
        "kind of signing key",
        found=KEY_NAMES.get(report.signing_key, f"kind {report.signing_key}"),
        wanted=tuple(KEY_NAMES.values()),
        source="report, FLAGS",
        error=UntrustedEvidence,
        code="wrong-certificate-kind",
        message=f"the report says it is signed by key kind {report.signing_key}, "
        "which is neither VCEK nor VLEK",
    )
    kind = _KINDS[report.signing_key]
    root = _endorsement(endorsements, "ark")
    fingerprint = hashlib.sha256(root.der).digest()
    finding.expect(
        fingerprint in roots,
        "root",
        found=fingerprint,
        wanted=frozenset(roots),
        source="ark, SHA-256",
        error=UntrustedEvidence,
        code="unpinned-root",
        message=f"the root {root.common_name!a} with SHA-256 {fingerprint.hex()} is not a pinned one",
    )
    family = roots[fingerprint]
    intermediate = _endorsement(endorsements, kind.intermediate)
    leaf = _endorsement(endorsements, kind.leaf)

    names = tuple(kind.intermediate_prefix + name for name in FAMILIES)
    right = intermediate.common_name in names and intermediate.is_authority
    _expect_kind(finding, right, kind.intermediate, intermediate, names)
    right = leaf.common_name == kind.leaf_name and not leaf.is_authority
    _expect_kind(finding, right, kind.leaf, leaf, kind.leaf_name)
    key = leaf.public_key
    finding.expect(
        isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP384R1),
        f"{kind.leaf} key",
        found=key.curve.name if isinstance(key, EllipticCurvePublicKey) else "RSA",
        wanted=SECP384R1.name,
        source=kind.leaf,
        error=UntrustedEvidence,
        code="wrong-certificate-kind",
        message=f"the {kind.leaf} certificate does not hold a P-384 key",
    )
    chain = (("ark", root), (kind.intermediate, intermediate), (kind.leaf, leaf))
    time = moment(now)
    for what, certificate in chain:
        valid = f"{day(certificate.not_before)} to {day(certificate.not_after)}"
        finding.expect(
            certificate.not_before <= now <= certificate.not_after,
            f"{what} validity",
            found=valid,
            wanted=time,
            source=what,
            error=UntrustedEvidence,
            code="certificate-not-valid-now",
            message=f"the {what} certificate is valid from {valid}, and now is {time}",
        )
    for (issuer_name, issuer), (what, certificate) in zip((chain[0], *chain), chain, strict=False):
        _expect_link(finding, issuer_name, issuer, what, certificate)
    finding.expect(
        intermediate.common_name == kind.intermediate_prefix + family,
        "family of the root",
        found=intermediate.common_name,
        wanted=kind.intermediate_prefix + family,
        source=kind.intermediate,
        error=UntrustedEvidence,
        code="wrong-issuer",
        message=f"{root.common_name!a} is the root of {family}, and issued {intermediate.common_name!a}",
    )
    return Chain(root, intermediate, leaf, family, cast(EllipticCurvePublicKey, key))


def _endorsement(endorsements: Mapping[str, bytes], what: str) -> Certificate:
    der = endorsements.get(what)
    if der is None:
        raise UntrustedEvidence(f"the {what} certificate was not sent", code="missing-endorsement")
    return _certificate(der, what)


def _expect_kind(finding: Finding, right: bool, what: str, certificate: Certificate, wanted: object) -> None:
    finding.expect(
        right,
        f"{what} certificate",
        found=certificate.common_name,
        wanted=wanted,
        source=what,
        error=UntrustedEvidence,
        code="wrong-certificate-kind",
        message=f"{certificate.common_name!a} was sent as the {what} certificate, which it is not",
    )


def _expect_link(
    finding: Finding, issuer_name: str, issuer: Certificate, what: str, certificate: Certificate
) -> None:
    finding.expect(
        certificate.issuer == issuer.subject and issuer.may_sign_certificates,
        f"{what} issuer",
        found=certificate.issuer == issuer.subject,
        wanted=True,
        source=what,
        error=UntrustedEvidence,
        code="wrong-issuer",
        message=f"the {what} certificate was not issued by {issuer.common_name!a}, "
        f"which was sent as the {issuer_name}",
    )
    signed = _signed(issuer_name, issuer.der, what, certificate.der)
    finding.expect(
        signed,
        f"{what} signature",
        found=signed,
        wanted=True,
        source=f"{what}, by the key of {issuer_name}",
        error=UntrustedEvidence,
        code="bad-certificate-signature",
        message=f"the signature of {issuer.common_name!a} on the {what} certificate is not valid",
    )


# The same few certificates come with every document. What does not depend on the time is worked out once for
# the same bytes; validity is asked anew each time, and a refusal to read is not remembered.


@lru_cache(maxsize=_REMEMBERED)
def _certificate(der: bytes, what: str) -> Certificate:
    return Certificate.parse(der, what)


@lru_cache(maxsize=_REMEMBERED)
def _signed(issuer_name: str, issuer: bytes, what: str, der: bytes) -> bool:
    """Whether the one certificate is signed with the key of the other."""
    return _certificate(der, what).signed.is_signed_by(_certificate(issuer, issuer_name).public_key)


@lru_cache(maxsize=_REMEMBERED)
def _endorsed(what: str, leaf: bytes, signing_key: int, family: str) -> Endorsement:
    return _read_extensions(_certificate(leaf, what).extensions, signing_key, family)


@lru_cache(maxsize=_REMEMBERED)
def _revocation_list(der: bytes) -> RevocationList:
    return RevocationList.parse(der)


@lru_cache(maxsize=_REMEMBERED)
def _signed_list(issuer: bytes, der: bytes) -> bool:
    return Signed.of(der).is_signed_by(_certificate(issuer, "ark").public_key)


# --- step 5: revocation -------------------------------------------------------------------------------------


def check_revocation(
    chain: Chain, endorsements: Mapping[str, bytes], *, now: datetime, finding: Finding
) -> RevocationList:
    """See that a current list of the root's does not name a certificate of the chain."""
    der = endorsements.get("crl")
    if der is None:
        raise RevokedEvidence(
            "the revocation list was not sent, and the policy requires one", code="crl-missing"
        )
    root = chain.root
    try:
        # A list may have thousands of entries: they are read, and kept, only if they are the root's.
        signed = root.may_sign_crls and _signed_list(root.der, der)
        listed = _revocation_list(der) if signed else None
    except NotDer as error:
        raise RevokedEvidence(
            f"the revocation list cannot be read: {error}", code="crl-bad-signature"
        ) from error
    genuine = listed is not None and listed.issuer == root.subject
    finding.expect(
        genuine,
        "revocation list signature",
        found=genuine,
        wanted=True,
        source="crl, by the key of ark",
        error=RevokedEvidence,
        code="crl-bad-signature",
        message=f"the revocation list is not one of {root.common_name!a}",
    )
    assert listed is not None
    valid = f"{day(listed.this_update)} to {day(listed.next_update)}"
    finding.expect(
        listed.this_update <= now <= listed.next_update,
        "revocation list validity",
        found=valid,
        wanted=moment(now),
        source="crl",
        error=RevokedEvidence,
        code="crl-not-valid-now",
        message=f"the revocation list is valid from {valid}, and now is {moment(now)}",
    )
    # The list speaks about what the root has issued: itself and the intermediates. Leaves all have serial 0.
    for certificate in (root, chain.intermediate):
        finding.expect(
            certificate.serial not in listed.revoked,
            f"{certificate.common_name} not revoked",
            found=f"serial {certificate.serial:#x}",
            wanted=f"none of {len(listed.revoked)} revoked serials",
            source="crl",
            error=RevokedEvidence,
            code="revoked",
            message=f"{certificate.common_name!a} with serial {certificate.serial:#x} has been revoked",
        )
    return listed


# --- step 6: the certificate endorses this chip at this TCB -------------------------------------------------


def check_endorsement(
    report: Report, chain: Chain, *, allow_masked_chip_id: bool, finding: Finding
) -> Endorsement:
    """See that the chip's certificate is about this family, this chip and the firmware that is reported."""
    endorsed = _endorsed(_KINDS[report.signing_key].leaf, chain.leaf.der, report.signing_key, chain.family)
    for source, who, family in (
        ("certificate, productName", "its certificate", endorsed.family),
        ("report, CPUID", "its CPUID", report.family),
    ):
        if family is None:
            finding.not_applicable("family by CPUID", f"a version {report.version} report has none")
            continue
        finding.expect(
            family == chain.family,
            f"family by {who.removeprefix('its ')}",
            found=family,
            wanted=chain.family,
            source=source,
            error=UntrustedEvidence,
            code="product-mismatch",
            message=f"the root is that of {chain.family}, {who} says {family}",
        )
    _check_chip(report, endorsed, allow_masked_chip_id, finding)
    reported = Tcb.parse(report.reported_tcb, chain.family)
    finding.expect(
        endorsed.tcb == reported,
        "firmware the certificate is for",
        found=endorsed.tcb,
        wanted=reported,
        source="certificate, TCB extensions",
        error=UntrustedEvidence,
        code="certificate-tcb-mismatch",
        message=f"the certificate is for firmware {endorsed.tcb}; the report says {reported}",
    )
    return endorsed


def _check_chip(report: Report, endorsed: Endorsement, may_hide: bool, finding: Finding) -> None:
    name = "chip the certificate is for"
    if endorsed.hwid is None:
        finding.not_applicable(name, "a VLEK is its cloud's, not one chip's")
    elif not any(report.chip_id):
        finding.expect(
            may_hide,
            "chip id shown",
            found="hidden",
            wanted="shown or hidden" if may_hide else "shown",
            source="report, CHIP_ID",
            error=UntrustedEvidence,
            code="chip-id-masked",
            message="the report hides its chip id, and the policy wants to see it",
        )
    else:
        finding.expect(
            report.chip_id == endorsed.hwid.ljust(len(report.chip_id), b"\x00"),
            name,
            found=endorsed.hwid,
            wanted=report.chip_id,
            source="certificate, hwID",
            error=UntrustedEvidence,
            code="chip-id-mismatch",
            message=f"the certificate is for chip {endorsed.hwid[:8].hex()}…, "
            f"the report is from {report.chip_id[:8].hex()}…",
        )


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


def check_signature(evidence: bytes, report: Report, key: EllipticCurvePublicKey, finding: Finding) -> None:
    """ECDSA P-384 over SHA-384 of the first 0x2A0 bytes, exactly as they came."""
    # ECDSA lets anybody put n − S in the place of S. What was signed stays the same, and so does all that is
    # believed; only `evidence_id` differs, which the enclave then does not know.
    r, s = _number(report.signature[:_PART_SIZE]), _number(report.signature[_PART_SIZE : 2 * _PART_SIZE])
    if any(report.signature[2 * _PART_SIZE :]):
        raise UntrustedEvidence("bytes after the signature are not zero", code="malformed-signature")
    signed = _is_signed(key, encode_dss_signature(r, s), evidence[:SIGNED_SIZE])
    finding.expect(
        signed,
        "signature of the chip",
        found=signed,
        wanted=True,
        source=f"report, bytes 0 to {SIGNED_SIZE - 1}",
        error=UntrustedEvidence,
        code="bad-signature",
        message="the chip's key did not sign this report",
    )


def _is_signed(key: EllipticCurvePublicKey, signature: bytes, content: bytes) -> bool:
    try:
        key.verify(signature, content, ECDSA_WITH_SHA384)
    except InvalidSignature:
        return False
    return True


def _number(data: bytes) -> int:
    value = int.from_bytes(data, "little")
    if not 1 <= value < P384_ORDER:  # so the 24 bytes above it are zero
        raise UntrustedEvidence("a number of the signature is out of range", code="malformed-signature")
    return value
