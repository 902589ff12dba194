"""
From a quote back to Intel: certificates, revocation, and whose signature is on the collateral.

Steps 4 to 6 of SPEC §4 as far as certificates go; the signatures of the quote itself, and which firmware
level it has, are left to `dcap-qvl` (`dcap.py`), which goes over these certificates once more. What does not
depend on the time is worked out once for the same bytes: a machine sends the same certificates with every
quote.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode, b64encode
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ..der import OCTET_STRING, SEQUENCE, NotDer, Reader
from ..errors import MalformedEvidence, RevokedEvidence, UntrustedEvidence
from ..walk import Finding, day, moment
from ..x509 import ECDSA_WITH_SHA256, Certificate, PublicKey, RevocationList, Scheme, Signed
from .collateral import Collateral, QeIdentity, TcbInfo
from .quote import Quote

ROOT: Final = "Intel SGX Root CA"
PCK_AUTHORITIES: Final = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")
PCK: Final = "Intel SGX PCK Certificate"
TCB_SIGNING: Final = "Intel SGX TCB Signing"


def _p256_sha256(key: PublicKey, signature: bytes, content: bytes) -> bool:
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        return False
    key.verify(signature, content, ECDSA_WITH_SHA256)
    return True


INTEL: Final = Scheme(
    "ECDSA P-256 SHA-256",
    frozenset({bytes.fromhex("300a06082a8648ce3d040302")}),  # RFC 5758 §3.2
    _p256_sha256,
)

_SGX: Final = "1.2.840.113741.1.13.1"  # Intel, "SGX PCK Certificate and CRL Profile Specification", §1.3.5
_PPID, _PCE_ID, _FMSPC, _INSTANCE = "1", "3", "4", "6"
_SIZES: Final = {_PPID: 16, _PCE_ID: 2, _FMSPC: 6, _INSTANCE: 16}

_BLOCK: Final = re.compile(
    "-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=\n]+)\n-----END CERTIFICATE-----\n?", re.ASCII
)
_LINE: Final = 64
_MOST_CERTIFICATES: Final = 3
_CACHED: Final = 32


@dataclass(frozen=True, slots=True)
class Machine:
    """What Intel says about the machine, in its PCK certificate."""

    ppid: bytes  # 16 bytes, of the processor
    pce_id: bytes  # 2 bytes
    fmspc: bytes  # 6 bytes, the kind of machine
    instance: bytes | None  # 16 bytes, of a whole platform; not in certificates of the Processor CA


@dataclass(frozen=True, slots=True)
class Chains:
    """Every certificate that is relied on. All lead to one pinned root."""

    root: Certificate
    authority: Certificate  # the PCK CA
    pck: Certificate
    tcb_signer: Certificate
    identity_signer: Certificate
    listing_authority: Certificate  # the PCK CA as the collateral has it
    machine: Machine

    @property
    def distinct(self) -> tuple[Certificate, ...]:
        """Each certificate once: Intel signs both statements with the same key."""
        used = (
            self.root,
            self.authority,
            self.pck,
            self.tcb_signer,
            self.identity_signer,
            self.listing_authority,
        )
        return tuple({one.der: one for one in used}.values())

    def __str__(self) -> str:
        return " → ".join(one.common_name for one in (self.root, self.authority, self.pck))


# --- step 4: certificates to a pinned root -----------------------------------------------------------------


def pinned_root(quote: Quote, roots: Collection[bytes], finding: Finding) -> Certificate:
    """The last certificate in the quote, if its fingerprint is one that we pin."""
    root = _certificates(quote.pck_chain, "the quote")[-1]
    fingerprint = hashlib.sha256(root.der).digest()
    finding.expect(
        fingerprint in roots,
        "root",
        found=fingerprint,
        wanted=frozenset(roots),
        source="certificates in the quote",
        error=UntrustedEvidence,
        code="unpinned-root",
        message=f"the root {root.common_name!a} with SHA-256 {fingerprint.hex()} is not a pinned one",
    )
    return root


def trace(
    quote: Quote, collateral: Collateral, root: Certificate, *, now: datetime, finding: Finding
) -> Chains:
    """Walk every link from the pinned root to the machine's key, and to those that signed the collateral."""
    authority, pck, machine = _pck_chain(quote.pck_chain)
    listing = _collateral_chain(collateral.pck_crl_issuer_chain, PCK_AUTHORITIES, "pck_crl_issuer_chain")
    tcb = _collateral_chain(collateral.tcb_info_issuer_chain, (TCB_SIGNING,), "tcb_info_issuer_chain")
    identity = _collateral_chain(
        collateral.qe_identity_issuer_chain, (TCB_SIGNING,), "qe_identity_issuer_chain"
    )
    for what, last in (
        ("pck_crl_issuer_chain", listing[-1]),
        ("tcb_info_issuer_chain", tcb[-1]),
        ("qe_identity_issuer_chain", identity[-1]),
    ):
        if last.der != root.der:
            raise UntrustedEvidence(
                f"{what} of the collateral leads to another root than the quote's", code="unpinned-root"
            )
    chains = Chains(root, authority, pck, tcb[0], identity[0], listing[0], machine)
    for one in chains.distinct:
        _expect_valid(
            one.common_name,
            one.not_before,
            one.not_after,
            now,
            finding,
            UntrustedEvidence,
            "certificate-not-valid-now",
        )
    return chains


@lru_cache(maxsize=_CACHED)
def _pck_chain(pem: bytes) -> tuple[Certificate, Certificate, Machine]:
    """PCK CA, PCK certificate, and what that says; the root's fingerprint has been compared before."""
    chain = _certificates(pem, "the quote")
    if len(chain) != _MOST_CERTIFICATES:
        raise UntrustedEvidence(
            f"the quote has {len(chain)} certificates, expected {_MOST_CERTIFICATES}",
            code="wrong-certificate-kind",
        )
    pck, authority, root = chain
    _check_kind(pck, (PCK,), authority=False)
    _check_kind(authority, PCK_AUTHORITIES, authority=True)
    _check_root(root)
    _check_link(root, authority)
    _check_link(authority, pck)
    return authority, pck, _machine(pck)


@lru_cache(maxsize=_CACHED)
def _collateral_chain(pem: str, names: tuple[str, ...], what: str) -> tuple[Certificate, Certificate]:
    chain = _certificates(pem.encode("ascii"), what)
    if len(chain) != 2:
        raise UntrustedEvidence(
            f"{what} has {len(chain)} certificates, expected 2", code="wrong-certificate-kind"
        )
    first, root = chain
    _check_kind(first, names, authority=names == PCK_AUTHORITIES)
    _check_root(root)
    _check_link(root, first)
    return first, root


@lru_cache(maxsize=_CACHED)
def _certificates(pem: bytes, what: str) -> tuple[Certificate, ...]:
    """Certificates in PEM, in its strict spelling: lines of 64, nothing between the blocks (RFC 7468)."""
    try:
        text = pem.decode("ascii").rstrip("\n\x00")  # some quoting enclaves end the text as C does
        ders = [b64decode(body.replace("\n", ""), validate=True) for body in _BLOCK.findall(text)]
    except ValueError as error:
        raise _malformed_certificates(what) from error
    if not 1 <= len(ders) <= _MOST_CERTIFICATES or "\n".join(map(_pem, ders)) != text:
        raise _malformed_certificates(what)
    return tuple(map(_certificate, ders))


def _pem(der: bytes) -> str:
    text = b64encode(der).decode("ascii")
    lines = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
    return "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----"))


def _malformed_certificates(what: str) -> MalformedEvidence:
    return MalformedEvidence(
        f"the certificates of {what} are not one to {_MOST_CERTIFICATES} blocks of PEM",
        code="malformed-certificate",
    )


def _check_kind(certificate: Certificate, names: Collection[str], *, authority: bool) -> None:
    key = certificate.public_key
    if (
        certificate.common_name not in names
        or certificate.is_authority is not authority
        or not isinstance(key, EllipticCurvePublicKey)
        or not isinstance(key.curve, SECP256R1)
    ):
        raise UntrustedEvidence(
            f"{certificate.common_name!a} came where {' or '.join(names)} with a P-256 key was expected",
            code="wrong-certificate-kind",
        )


def _check_root(root: Certificate) -> None:
    _check_kind(root, (ROOT,), authority=True)
    _check_link(root, root)


def _check_link(issuer: Certificate, certificate: Certificate) -> None:
    if certificate.issuer != issuer.subject or not issuer.may_sign_certificates:
        raise UntrustedEvidence(
            f"{certificate.common_name!a} was not issued by {issuer.common_name!a}, which came after it",
            code="wrong-issuer",
        )
    if not _is_signed(issuer.der, certificate.der):
        raise UntrustedEvidence(
            f"the signature of {issuer.common_name!a} on {certificate.common_name!a} is not valid",
            code="bad-certificate-signature",
        )


@lru_cache(maxsize=_CACHED)
def _is_signed(issuer_der: bytes, der: bytes) -> bool:
    """The same root and its signature on itself come four times, in the quote and in the collateral."""
    return _certificate(der).signed.is_signed_by(_certificate(issuer_der).public_key, INTEL)


def _machine(pck: Certificate) -> Machine:
    value = pck.extensions.get(_SGX)
    if value is None:
        raise _malformed_extension("is missing")
    found: dict[str, bytes] = {}
    try:
        outer = Reader(value)
        entries = outer.inside(SEQUENCE)
        outer.end()
        while entries.more:
            entry = entries.inside(SEQUENCE)
            name = entry.oid().removeprefix(f"{_SGX}.")
            if name not in _SIZES:
                continue
            if name in found:
                raise _malformed_extension(f"has two fields .{name}")
            found[name] = entry.take(OCTET_STRING)
            entry.end()
            if len(found[name]) != _SIZES[name]:
                raise _malformed_extension(f".{name} has {len(found[name])} bytes, expected {_SIZES[name]}")
    except NotDer as error:
        raise _malformed_extension(f"cannot be read: {error}") from error
    for name in (_PPID, _PCE_ID, _FMSPC):
        if name not in found:
            raise _malformed_extension(f"has no field .{name}")
    return Machine(found[_PPID], found[_PCE_ID], found[_FMSPC], found.get(_INSTANCE))


def _malformed_extension(what: str) -> MalformedEvidence:
    return MalformedEvidence(f"the SGX extension of the PCK certificate {what}", code="malformed-extension")


# --- step 5: revocation -------------------------------------------------------------------------------------


def check_revocation(chains: Chains, collateral: Collateral, *, now: datetime, finding: Finding) -> None:
    """See that the root's current list and the PCK CA's name none of the certificates that are relied on."""
    others = tuple(one for one in chains.distinct if one is not chains.pck)
    _check_list("root_ca_crl", collateral.root_ca_crl, chains.root, others, now, finding)
    _check_list("pck_crl", collateral.pck_crl, chains.authority, (chains.pck,), now, finding)


def _check_list(
    what: str,
    der: bytes,
    issuer: Certificate,
    about: tuple[Certificate, ...],
    now: datetime,
    finding: Finding,
) -> None:
    listed = _list(what, der, issuer.der)
    _expect_valid(
        what, listed.this_update, listed.next_update, now, finding, RevokedEvidence, "crl-not-valid-now"
    )
    gone = [certificate for certificate in about if certificate.serial in listed.revoked]
    names = ", ".join(certificate.common_name for certificate in gone or about)
    finding.expect(
        not gone,
        f"nothing in {what}",
        found=f"{names}: {'revoked' if gone else 'not listed'}",
        wanted="not listed",
        source=what,
        error=RevokedEvidence,
        code="revoked",
        message="" if not gone else f"{names} with serial {gone[0].serial:#x} has been revoked by its issuer",
    )


@lru_cache(maxsize=_CACHED)
def _list(what: str, der: bytes, issuer_der: bytes) -> RevocationList:
    issuer = _certificate(issuer_der)
    try:
        # A list may have thousands of entries: they are read only if they are the issuer's.
        signed = issuer.may_sign_crls and Signed.of(der).is_signed_by(issuer.public_key, INTEL)
        listed = RevocationList.parse(der) if signed else None
    except NotDer as error:
        raise RevokedEvidence(f"{what} cannot be read: {error}", code="crl-bad-signature") from error
    if listed is None or listed.issuer != issuer.subject:
        raise RevokedEvidence(f"{what} is not a list of {issuer.common_name!a}", code="crl-bad-signature")
    return listed


@lru_cache(maxsize=_CACHED)
def _certificate(der: bytes) -> Certificate:
    return Certificate.parse(der, "Intel")


# --- step 6: Intel speaks about this kind of machine --------------------------------------------------------


def check_collateral(
    chains: Chains, collateral: Collateral, *, now: datetime, finding: Finding
) -> tuple[TcbInfo, QeIdentity]:
    """See that Intel signed the collateral, that it is in force, and about this kind of machine."""
    for what, text, signature, signer in (
        ("tcb_info", collateral.tcb_info, collateral.tcb_info_signature, chains.tcb_signer),
        ("qe_identity", collateral.qe_identity, collateral.qe_identity_signature, chains.identity_signer),
    ):
        signed = _is_statement_of(signer.der, text, signature)
        finding.expect(
            signed,
            f"{what} signed",
            found=signed,
            wanted=True,
            source="collateral",
            error=UntrustedEvidence,
            code="collateral-bad-signature",
            message=f"the signature of {signer.common_name!a} on {what} is not valid",
        )
    tcb_info, identity = TcbInfo.parse(collateral.tcb_info), QeIdentity.parse(collateral.qe_identity)
    for what, told in (("tcb_info", tcb_info.statement), ("qe_identity", identity.statement)):
        _expect_valid(
            what, told.issued, told.next_update, now, finding, UntrustedEvidence, "collateral-not-valid-now"
        )
    machine = chains.machine
    for name, found, wanted in (
        ("kind of TCB info", f"{tcb_info.statement.kind} {tcb_info.statement.version}", "TDX 3"),
        ("FMSPC", tcb_info.fmspc, machine.fmspc),
        ("PCE-ID", tcb_info.pce_id, machine.pce_id),
    ):
        finding.expect(
            found == wanted,
            name,
            found=found,
            wanted=wanted,
            source="tcb_info",
            error=UntrustedEvidence,
            code="collateral-mismatch",
        )
    finding.expect(
        identity.statement.kind == "TD_QE",
        "kind of QE identity",
        found=identity.statement.kind,
        wanted="TD_QE",
        source="qe_identity",
        error=UntrustedEvidence,
        code="qe-identity-mismatch",
    )
    return tcb_info, identity


@lru_cache(maxsize=_CACHED)
def _is_statement_of(signer_der: bytes, text: str, signature: bytes) -> bool:
    """Over the exact bytes that came: writing the JSON again could change their order."""
    half = len(signature) // 2
    r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
    try:
        return _p256_sha256(
            _certificate(signer_der).public_key, encode_dss_signature(r, s), text.encode("ascii")
        )
    except InvalidSignature:
        return False


# --- time ---------------------------------------------------------------------------------------------------


def _expect_valid(
    what: str,
    start: datetime,
    end: datetime,
    now: datetime,
    finding: Finding,
    error: type[UntrustedEvidence],
    code: str,
) -> None:
    valid = start <= now <= end
    finding.expect(
        valid,
        f"validity of {what}",
        found=f"{day(start)} to {day(end)}",
        wanted=moment(now),
        source=what,
        error=error,
        code=code,
        message=""
        if valid
        else f"{what} is valid from {moment(start)} to {moment(end)}, and now is {moment(now)}; "
        "is this machine's clock right, and the collateral a new one?",
    )
