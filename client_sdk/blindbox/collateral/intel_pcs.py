"""
Intel's provisioning certification service: what it publishes about TDX, where, and how an answer is known
to be one.

Addresses: Intel PCS API, version 4; a caching service (PCCS) has the same, and the root's list too. What is
signed is the exact text of the object inside an answer: it is cut out, never written anew. The five answers
together are the `collateral` of SPEC §4.3; whether it proves anything is decided by `verify`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from blindbox_attestation.der import OCTET_STRING, SEQUENCE, Reader
from blindbox_attestation.errors import AttestationError
from blindbox_attestation.x509 import Certificate

from .cache import Published, Validity, WrongContent
from .download import Answer
from .pem import certificates, encoded

ADDRESS: Final = "https://api.trustedservices.intel.com"
ROOT_LIST: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"

PLATFORM: Final = "platform"
PROCESSOR: Final = "processor"
_AUTHORITIES: Final = {PLATFORM: "Intel SGX PCK Platform CA", PROCESSOR: "Intel SGX PCK Processor CA"}
_SGX: Final = "1.2.840.113741.1.13.1"  # Intel, "SGX PCK Certificate and CRL Profile Specification", §1.3.5
_SGX_FMSPC: Final = _SGX + ".4"
_TCB_SIGNER: Final = "Intel SGX TCB Signing"

_TCB_CHAIN: Final = "TCB-Info-Issuer-Chain"
_QE_CHAIN: Final = "SGX-Enclave-Identity-Issuer-Chain"
_CRL_CHAIN: Final = "SGX-PCK-CRL-Issuer-Chain"

_JSON_LIMIT: Final = 256 * 1024
_LIST_LIMIT: Final = 512 * 1024

_FMSPC: Final = re.compile(r"[0-9A-F]{12}")
_INSIDE: Final = re.compile(r'\s*\{\s*"(tcbInfo|enclaveIdentity)"\s*:\s*')
_AFTER: Final = re.compile(r'\s*,\s*"signature"\s*:\s*"([0-9a-fA-F]{128})"\s*\}\s*')

Roots = Collection[bytes]
Check = Callable[[Answer, datetime], Validity]


@dataclass(frozen=True, slots=True)
class Signed:
    """A signed answer, taken apart. Nothing here has been verified."""

    text: str  # exactly what was signed
    signature: bytes  # 64 bytes, r ‖ s
    chain: str  # PEM of the signer and of the root

    @classmethod
    def read(cls, answer: Answer, inside: str, header: str) -> Signed:
        """`inside` is the key of the signed object. Raises `WrongContent`."""
        try:
            body = answer.body.decode("utf-8")
            before = _INSIDE.match(body)
            _expect(before is not None and before[1] == inside, f"an answer without {inside}")
            assert before is not None
            _, end = json.JSONDecoder().raw_decode(body, before.end())
            after = _AFTER.fullmatch(body, end)
            _expect(after is not None, f"an answer that does not end with the signature of {inside}")
            assert after is not None
        except (ValueError, RecursionError) as error:
            raise WrongContent("an answer that is not the JSON it should be") from error
        return cls(body[before.end() : end], bytes.fromhex(after[1]), _chain_text(answer, header))

    @classmethod
    def tcb_info(cls, answer: Answer) -> Signed:
        return cls.read(answer, "tcbInfo", _TCB_CHAIN)

    @classmethod
    def qe_identity(cls, answer: Answer) -> Signed:
        return cls.read(answer, "enclaveIdentity", _QE_CHAIN)


def tcb_info(address: str, fmspc: str, roots: Roots) -> Published:
    """
    Which firmware of this kind of platform is how good. `fmspc` is twelve upper-case hexadecimal digits.
    """

    def check(answer: Answer, now: datetime) -> Validity:
        signed = Signed.tcb_info(answer)
        told, validity = _checked(signed, roots)
        _expect(told.get("id") == "TDX", f"TCB info for {told.get('id')!a}")
        _expect(str(told.get("fmspc")).upper() == fmspc, f"TCB info for FMSPC {told.get('fmspc')!a}")
        return validity

    _expect(_FMSPC.fullmatch(fmspc) is not None, f"{fmspc!a} is no FMSPC")
    url = f"{address}/tdx/certification/v4/tcb?fmspc={fmspc}&update=standard"
    return Published("Intel's TCB info", url, _JSON_LIMIT, _typed(check), renewed=True, header=_TCB_CHAIN)


def qe_identity(address: str, roots: Roots) -> Published:
    """Which quoting enclave is Intel's."""

    def check(answer: Answer, now: datetime) -> Validity:
        told, validity = _checked(Signed.qe_identity(answer), roots)
        _expect(told.get("id") == "TD_QE", f"the identity of {told.get('id')!a}")
        return validity

    url = f"{address}/tdx/certification/v4/qe/identity?update=standard"
    return Published("Intel's QE identity", url, _JSON_LIMIT, _typed(check), renewed=True, header=_QE_CHAIN)


def pck_list(address: str, authority: str, roots: Roots) -> Published:
    """Which platforms' certificates have been withdrawn. `authority` is "platform" or "processor"."""

    def check(answer: Answer, now: datetime) -> Validity:
        issuer, _ = _issuers(_chain_text(answer, _CRL_CHAIN), _AUTHORITIES[authority], roots)
        return _list_of(issuer, answer)

    _expect(authority in _AUTHORITIES, f"no authority of Intel's is called {authority!a}")
    url = f"{address}/sgx/certification/v4/pckcrl?ca={authority}&encoding=der"
    return Published(
        "Intel's revocation list for platforms",
        url,
        _LIST_LIMIT,
        _typed(check),
        renewed=True,
        header=_CRL_CHAIN,
    )


def root_list(address: str, pck_answer: Answer) -> Published:
    """
    Which authorities have been withdrawn: the list of the root that `pck_answer`, which has been checked,
    names.
    """

    def check(answer: Answer, now: datetime) -> Validity:
        pem = certificates(_chain_text(pck_answer, _CRL_CHAIN).encode())
        return _list_of(x509.load_der_x509_certificate(pem[-1]), answer)

    url = ROOT_LIST if address == ADDRESS else f"{address}/sgx/certification/v4/rootcacrl"
    return Published("Intel's revocation list for authorities", url, _LIST_LIMIT, _typed(check), renewed=True)


def platform_of(pck_chain: bytes) -> tuple[str, str]:
    """
    FMSPC and authority of the platform that the certificates in a quote (PEM, the platform's first) are
    about.

    Only what may become part of an address: twelve hexadecimal digits, and one of two words. Raises
    `WrongContent`.
    """
    try:
        found = certificates(pck_chain.rstrip(b"\x00"))
        leaf = Certificate.parse(found[0], "PCK") if found else None
        issuer = Certificate.parse(found[1], "PCK CA") if len(found) > 1 else None
        _expect(leaf is not None and issuer is not None, "a quote without its certificates")
        assert leaf is not None
        assert issuer is not None
        entries = Reader(leaf.extensions[_SGX]).inside(SEQUENCE)
        while entries.more:
            entry = entries.inside(SEQUENCE)
            if entry.oid() == _SGX_FMSPC:
                fmspc = entry.take(OCTET_STRING).hex().upper()
                break
        else:
            raise WrongContent("a platform certificate without an FMSPC")
    except (ValueError, KeyError, AttestationError) as error:
        raise WrongContent("a quote whose certificates cannot be read") from error
    authorities = [authority for authority, name in _AUTHORITIES.items() if name == issuer.common_name]
    _expect(len(authorities) == 1, f"a platform certificate of {issuer.common_name!a}")
    _expect(_FMSPC.fullmatch(fmspc) is not None, f"an FMSPC of {len(fmspc) // 2} bytes")
    return fmspc, authorities[0]


def collateral(*, tcb: Answer, qe: Answer, pck: Answer, root: Answer) -> bytes:
    """The four answers as one endorsement: SPEC §4.3. Raises `WrongContent`."""
    tcb_signed, qe_signed = Signed.tcb_info(tcb), Signed.qe_identity(qe)
    return json.dumps(
        {
            "pck_crl_issuer_chain": _chain_text(pck, _CRL_CHAIN),
            "root_ca_crl": _list_der(root).hex(),
            "pck_crl": _list_der(pck).hex(),
            "tcb_info_issuer_chain": tcb_signed.chain,
            "tcb_info": tcb_signed.text,
            "tcb_info_signature": tcb_signed.signature.hex(),
            "qe_identity_issuer_chain": qe_signed.chain,
            "qe_identity": qe_signed.text,
            "qe_identity_signature": qe_signed.signature.hex(),
        }
    ).encode("utf-8")


# ── checks ────────────────────────────────────────────────────────────────────────────────────────────────


def _checked(signed: Signed, roots: Roots) -> tuple[dict[str, Any], Validity]:
    """What was signed, and until when it may be used; by a signer that a pinned root vouches for."""
    signer, root = _issuers(signed.chain, _TCB_SIGNER, roots)
    r, s = (int.from_bytes(half) for half in (signed.signature[:32], signed.signature[32:]))
    _key(signer).verify(encode_dss_signature(r, s), signed.text.encode("utf-8"), ECDSA(SHA256()))
    told = json.loads(signed.text)
    dates = [datetime.strptime(told[name], "%Y-%m-%dT%H:%M:%SZ") for name in ("issueDate", "nextUpdate")]
    since, until = (date.replace(tzinfo=UTC) for date in dates)
    for one in (signer, root):
        since, until = max(since, one.not_valid_before_utc), min(until, one.not_valid_after_utc)
    return told, Validity(since, until)


def _issuers(chain: str, name: str, roots: Roots) -> tuple[x509.Certificate, x509.Certificate]:
    """The two certificates of a chain: the one called `name`, and the pinned root that signed it."""
    found = certificates(chain.encode())
    _expect(len(found) == 2, f"an issuer chain of {len(found)} certificates, expected 2")
    _expect(hashlib.sha256(found[1]).digest() in roots, "an issuer chain whose root is not a pinned one")
    signer, root = (x509.load_der_x509_certificate(one) for one in found)
    called = [str(part.value) for part in signer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    _expect(called == [name], f"something signed by {called}, expected {name!a}")
    signer.verify_directly_issued_by(root)
    return signer, root


def _list_of(issuer: x509.Certificate, answer: Answer) -> Validity:
    listed = x509.load_der_x509_crl(_list_der(answer))
    genuine = listed.issuer == issuer.subject and listed.is_signature_valid(_key(issuer))
    _expect(genuine, f"a revocation list that is not one of {issuer.subject.rfc4514_string()!a}")
    _expect(listed.next_update_utc is not None, "a revocation list without an end")
    assert listed.next_update_utc is not None
    return Validity(listed.last_update_utc, listed.next_update_utc)


def _list_der(answer: Answer) -> bytes:
    """A caching service may send a list in hexadecimal, as text."""
    body = answer.body
    if re.fullmatch(rb"\s*(?:[0-9a-fA-F]{2})+\s*", body):
        return bytes.fromhex(body.decode("ascii").strip())
    return body


def _key(certificate: x509.Certificate) -> EllipticCurvePublicKey:
    key = certificate.public_key()
    _expect(isinstance(key, EllipticCurvePublicKey), "a signer without an elliptic curve key")
    assert isinstance(key, EllipticCurvePublicKey)
    return key


def _chain_text(answer: Answer, header: str) -> str:
    """The issuer chain, which comes URL-encoded in a header of the answer; in the usual spelling of PEM."""
    try:
        found = certificates(unquote_to_bytes(answer.headers.get(header, "")))
    except ValueError as error:
        raise WrongContent(f"an answer whose {header} cannot be read") from error
    _expect(bool(found), f"an answer without {header}")
    return "".join(map(encoded, found))


def _expect(right: bool, otherwise: str) -> None:
    if not right:
        raise WrongContent(otherwise)


def _typed(check: Check) -> Check:
    """Whatever bytes come, the check says `WrongContent`."""

    def typed(answer: Answer, now: datetime) -> Validity:
        try:
            return check(answer, now)
        except InvalidSignature as error:
            raise WrongContent("something whose signature is not valid") from error
        except (
            ValueError,
            KeyError,
            TypeError,
            RecursionError,
            UnsupportedAlgorithm,
            x509.InvalidVersion,
        ) as error:
            raise WrongContent(f"something that cannot be read ({error})") from error

    return typed
