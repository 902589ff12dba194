"""
AMD's key distribution service: which certificates and lists it publishes, where, and how an answer is known
to be one.

Addresses: AMD 57230, "VCEK certificate and KDS interface", chapter 4. Every part of an address is checked
here: a family of the fixed list, hexadecimal of the right length, numbers of one byte. What is read is the
vendor's word about a chip; whether it proves anything is decided by `verify`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from blindbox_attestation.der import NotDer
from blindbox_attestation.errors import AttestationError
from blindbox_attestation.snp import chain
from blindbox_attestation.snp.report import KEY_NAMES, Report
from blindbox_attestation.snp.tcb import FAMILIES, LAYOUTS, TURIN, Tcb
from blindbox_attestation.walk import Finding
from blindbox_attestation.x509 import Certificate, RevocationList

from .cache import Published, Validity, WrongContent
from .download import Answer
from .pem import certificates

ADDRESS: Final = "https://kdsintf.amd.com"

_CERTIFICATE_LIMIT: Final = 16 * 1024
_LIST_LIMIT: Final = 256 * 1024
_NAMES: Final = {
    "bootloader": "blSPL",
    "tee": "teeSPL",
    "snp": "snpSPL",
    "microcode": "ucodeSPL",
    "fmc": "fmcSPL",
}
_INTERMEDIATES: Final = {"vcek": ("ask", "SEV-"), "vlek": ("asvk", "SEV-VLEK-")}

Roots = Mapping[bytes, str]


def issuers(address: str, leaf: str, family: str, roots: Roots) -> Published:
    """The intermediate and the root of a family: PEM, the root last. `leaf` is "vcek" or "vlek"."""

    def check(answer: Answer, now: datetime) -> Validity:
        intermediate, root = read_issuers(answer, leaf)
        for certificate, name in ((intermediate, _INTERMEDIATES[leaf][1]), (root, "ARK-")):
            _expect(certificate.common_name == name + family, f"a certificate of {certificate.common_name!a}")
        _expect(is_pinned(root, family, roots), f"its root {root.common_name!a} is not a pinned one")
        _expect(
            intermediate.signed.is_signed_by(root.public_key), "its root did not sign the other certificate"
        )
        return Validity(
            max(intermediate.not_before, root.not_before), min(intermediate.not_after, root.not_after)
        )

    url = f"{address}/{_leaf(leaf)}/v1/{_family(family)}/cert_chain"
    return Published(f"AMD's {family} certificates", url, _CERTIFICATE_LIMIT, _typed(check))


def read_issuers(answer: Answer, leaf: str) -> tuple[Certificate, Certificate]:
    """The two certificates, intermediate first. Raises `WrongContent`."""
    try:
        found = certificates(answer.body)
        _expect(len(found) == 2, f"{len(found)} certificates, expected 2")
        return Certificate.parse(found[0], _INTERMEDIATES[leaf][0]), Certificate.parse(found[1], "ark")
    except (ValueError, AttestationError) as error:
        raise WrongContent(str(error)) from error


def revocation_list(address: str, leaf: str, family: str, root: Certificate) -> Published:
    """The list of what a family's root has withdrawn: DER. It must be signed by `root`."""

    def check(answer: Answer, now: datetime) -> Validity:
        listed = RevocationList.parse(answer.body)
        genuine = listed.issuer == root.subject and listed.signed.is_signed_by(root.public_key)
        _expect(genuine, f"it is not a list of {root.common_name!a}")
        return Validity(listed.this_update, listed.next_update)

    url = f"{address}/{_leaf(leaf)}/v1/{_family(family)}/crl"
    return Published(f"AMD's revocation list for {family}", url, _LIST_LIMIT, _typed(check), renewed=True)


def chip_certificate(
    address: str, family: str, report: Report, issuer: Mapping[str, bytes], roots: Roots
) -> Published:
    """
    The VCEK of the chip that wrote `report`, for the firmware that it reports: DER. `issuer` has its ask
    and ark.

    Raises `WrongContent` if the report does not name a chip.
    """

    def check(answer: Answer, now: datetime) -> Validity:
        traced = chain.trace(report, {**issuer, "vcek": answer.body}, roots, now=now, finding=Finding())
        chain.check_endorsement(report, traced, allow_masked_chip_id=True, finding=Finding())
        return Validity(traced.leaf.not_before, traced.leaf.not_after)

    size = 8 if family == TURIN else 64
    _expect(any(report.chip_id) and not any(report.chip_id[size:]), "the report hides its chip id")
    try:
        tcb = Tcb.parse(report.reported_tcb, family)
    except AttestationError as error:
        raise WrongContent(str(error)) from error
    levels = "&".join(f"{_NAMES[part]}={getattr(tcb, part):02d}" for part in LAYOUTS[family])
    url = f"{address}/vcek/v1/{_family(family)}/{report.chip_id[:size].hex()}?{levels}"
    return Published("AMD's certificate of this chip", url, _CERTIFICATE_LIMIT, _typed(check))


def is_pinned(root: Certificate, family: str, roots: Roots) -> bool:
    return roots.get(hashlib.sha256(root.der).digest()) == family


def _leaf(leaf: str) -> str:
    _expect(leaf in KEY_NAMES.values(), f"no certificates are published for a {leaf!a}")
    return leaf


def _family(family: str) -> str:
    _expect(family in FAMILIES, f"no certificates are published for {family!a}")
    return family


def _expect(right: bool, otherwise: str) -> None:
    if not right:
        raise WrongContent(otherwise)


def _typed(check: Callable[[Answer, datetime], Validity]) -> Callable[[Answer, datetime], Validity]:
    """Whatever bytes come, the check says `WrongContent`."""

    def typed(answer: Answer, now: datetime) -> Validity:
        try:
            return check(answer, now)
        except (NotDer, AttestationError) as error:
            raise WrongContent(str(error)) from error

    return typed
