"""
X.509 certificates and revocation lists: from bytes to frozen values, and one signature check.

This module reads, and checks one signature at a time; which certificate may vouch for which is decided in
`chain.py` of each platform. How a certificate has to be signed is the caller's to say, as a `Scheme`; what
it says of itself is only compared with that. Only what hardware vendors use is read (RFC 5280): an unknown
critical extension, a second extension of one kind, or DER with a second spelling is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS, PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import load_der_public_key

from .der import OCTET_STRING, SEQUENCE, SET, NotDer, Reader
from .errors import MalformedEvidence

PublicKey = RSAPublicKey | EllipticCurvePublicKey

PSS_SHA384: Final = frozenset(
    bytes.fromhex(text)
    for text in (
        # rsassaPss { sha384, mgf1 with sha384, salt 48 } (RFC 4055 §3.1), the trailer field left out …
        "304106092a864886f70d01010a3034a00f300d06096086480165030402020500a11c301a06092a864886f70d010108"
        "300d06096086480165030402020500a203020130",
        # … or written out, as older AMD certificates do
        "304606092a864886f70d01010a3039a00f300d06096086480165030402020500a11c301a06092a864886f70d010108"
        "300d06096086480165030402020500a203020130a303020101",
    )
)
"""The two spellings of the one signature algorithm that is accepted; hash and salt are part of the bytes."""

SALT_SIZE: Final = 48

ECDSA_SHA384: Final = frozenset({bytes.fromhex("300a06082a8648ce3d040303")})  # RFC 5758 §3.2
PKCS1_SHA256: Final = frozenset({bytes.fromhex("300d06092a864886f70d01010b0500")})  # RFC 4055 §5

SMALLEST_RSA: Final = 2048

# Made once: to make one takes a while, and the first one in a process loads what it needs.
ECDSA_WITH_SHA256: Final = ECDSA(SHA256())
ECDSA_WITH_SHA384: Final = ECDSA(SHA384())
_PSS_SHA384: Final = PSS(MGF1(SHA384()), SALT_SIZE)

_BASIC_CONSTRAINTS = "2.5.29.19"
_KEY_USAGE = "2.5.29.15"
_UNDERSTOOD = frozenset({_BASIC_CONSTRAINTS, _KEY_USAGE})
_COMMON_NAME = "2.5.4.3"
_DIGITAL_SIGNATURE = 1 << 15  # RFC 5280 §4.2.1.3: bits 0, 5 and 6
_KEY_CERT_SIGN = 1 << 15 - 5
_CRL_SIGN = 1 << 15 - 6


@dataclass(frozen=True, slots=True)
class Scheme:
    """The one way in which a vendor signs: key, padding and hash, all fixed beforehand."""

    name: str
    spellings: frozenset[bytes]  # DER of the AlgorithmIdentifier
    verify: Callable[[PublicKey, bytes, bytes], bool]  # (key, signature, content); may raise InvalidSignature


def _rsa_4096_pss_sha384(key: PublicKey, signature: bytes, content: bytes) -> bool:
    if not isinstance(key, RSAPublicKey) or key.key_size != 4096:
        return False
    key.verify(signature, content, _PSS_SHA384, SHA384())
    return True


def _p384_sha384(key: PublicKey, signature: bytes, content: bytes) -> bool:
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        return False
    key.verify(signature, content, ECDSA_WITH_SHA384)
    return True


def _rsa_pkcs1_sha256(key: PublicKey, signature: bytes, content: bytes) -> bool:
    if not isinstance(key, RSAPublicKey) or key.key_size < SMALLEST_RSA:
        return False
    key.verify(signature, content, PKCS1v15(), SHA256())
    return True


RSA_4096_PSS_SHA384: Final = Scheme("RSA-4096 PSS SHA-384", PSS_SHA384, _rsa_4096_pss_sha384)  # AMD
P384_SHA384: Final = Scheme("ECDSA P-384 SHA-384", ECDSA_SHA384, _p384_sha384)  # AWS Nitro
RSA_PKCS1_SHA256: Final = Scheme("RSA PKCS #1 v1.5 SHA-256", PKCS1_SHA256, _rsa_pkcs1_sha256)  # Google


@dataclass(frozen=True, slots=True)
class Signed:
    """What was signed, how it says it was signed, and the signature: the outer shape of both kinds."""

    content: bytes  # the exact bytes under the signature
    algorithm: bytes  # DER of the AlgorithmIdentifier
    signature: bytes

    @classmethod
    def of(cls, der: bytes) -> Signed:
        """Of a certificate or a list, before anything in it is read. Raises `NotDer`."""
        return _outer(der)[1]

    def is_signed_by(self, issuer: PublicKey, scheme: Scheme = RSA_4096_PSS_SHA384) -> bool:
        """Whether the issuer's key signed it in this way, and in no other."""
        try:
            return self.algorithm in scheme.spellings and scheme.verify(issuer, self.signature, self.content)
        except InvalidSignature:
            return False


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as it came. Nothing here has been verified."""

    der: bytes
    signed: Signed
    serial: int
    issuer: bytes  # DER of the Name
    subject: bytes  # DER of the Name
    common_name: str
    not_before: datetime
    not_after: datetime
    public_key: PublicKey
    is_authority: bool
    path_length: int | None
    may_sign_certificates: bool
    may_sign_crls: bool
    may_sign_data: bool  # says so, or does not say what its key is for
    extensions: Mapping[str, bytes]  # by dotted OID, all that this module does not interpret itself

    @classmethod
    def parse(cls, der: bytes, what: str) -> Certificate:
        """`what` names the certificate in errors."""
        try:
            return _certificate(der)
        except (NotDer, ValueError, UnsupportedAlgorithm) as error:
            raise MalformedEvidence(
                f"the {what} certificate cannot be read: {error}", code="malformed-certificate"
            ) from (error)


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A CRL as it came. Nothing here has been verified."""

    signed: Signed
    issuer: bytes  # DER of the Name
    this_update: datetime
    next_update: datetime
    revoked: frozenset[int]

    @classmethod
    def parse(cls, der: bytes) -> RevocationList:
        """Raises `NotDer`: what an unreadable list means is the caller's to say."""
        content, signed = _outer(der)
        if content.integer() != 1:
            raise NotDer("a CRL that is not of version 2")
        _same_algorithm(content, signed)
        issuer = content.whole(SEQUENCE)
        this_update, next_update = content.time(), content.time()
        revoked: set[int] = set()
        if content.next_is(SEQUENCE):
            entries = content.inside(SEQUENCE)
            while entries.more:
                entry = entries.inside(SEQUENCE)
                revoked.add(entry.integer())
                entry.time()
                if entry.more:
                    _of_an_entry(entry.take(SEQUENCE))
                entry.end()
        if content.more:
            wrapper = content.inside(0xA0)
            # A delta or partial list says so in a critical extension (RFC 5280 §5.2.4, §5.2.5): refused.
            _extensions(wrapper.inside(SEQUENCE), understood=frozenset())
            wrapper.end()
        content.end()
        return cls(signed, issuer, this_update, next_update, frozenset(revoked))


@lru_cache(maxsize=64)  # mostly one reason, for all entries
def _of_an_entry(extensions: bytes) -> None:
    _extensions(Reader(extensions), understood=frozenset())


def _outer(der: bytes) -> tuple[Reader, Signed]:
    reader = Reader(der)
    body = reader.inside(SEQUENCE)
    reader.end()
    content = body.whole(SEQUENCE)
    signed = Signed(content, body.whole(SEQUENCE), body.bits())
    body.end()
    return Reader(content).inside(SEQUENCE), signed


def _same_algorithm(content: Reader, signed: Signed) -> None:
    """RFC 5280 §4.1.1.2: the copy outside the signature must be the same as the signed one."""
    if content.whole(SEQUENCE) != signed.algorithm:
        raise NotDer("two different signature algorithms")


def _certificate(der: bytes) -> Certificate:
    content, signed = _outer(der)
    version = content.inside(0xA0)
    if version.integer() != 2:
        raise NotDer("not a version 3 certificate")
    version.end()
    serial = content.integer()
    _same_algorithm(content, signed)
    issuer = content.whole(SEQUENCE)
    validity = content.inside(SEQUENCE)
    not_before, not_after = validity.time(), validity.time()
    validity.end()
    subject = content.whole(SEQUENCE)
    public_key = load_der_public_key(content.whole(SEQUENCE))
    if not isinstance(public_key, RSAPublicKey | EllipticCurvePublicKey):
        raise NotDer("neither an RSA nor an elliptic curve key")
    extensions: dict[str, bytes] = {}
    if content.more:
        wrapper = content.inside(0xA3)
        extensions = _extensions(wrapper.inside(SEQUENCE), understood=_UNDERSTOOD)
        wrapper.end()
    content.end()
    is_authority, path_length = _basic_constraints(extensions.pop(_BASIC_CONSTRAINTS, None))
    stated_usage = extensions.pop(_KEY_USAGE, None)
    usage = _key_usage(stated_usage)
    return Certificate(
        der=der,
        signed=signed,
        serial=serial,
        issuer=issuer,
        subject=subject,
        common_name=_common_name(subject),
        not_before=not_before,
        not_after=not_after,
        public_key=public_key,
        is_authority=is_authority,
        path_length=path_length,
        may_sign_certificates=bool(usage & _KEY_CERT_SIGN),
        may_sign_crls=bool(usage & _CRL_SIGN),
        may_sign_data=stated_usage is None or bool(usage & _DIGITAL_SIGNATURE),
        extensions=MappingProxyType(extensions),
    )


def _extensions(reader: Reader, *, understood: frozenset[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    while reader.more:
        extension = reader.inside(SEQUENCE)
        name = extension.oid()
        critical = extension.next_is(0x01) and extension.boolean()
        if critical and name not in understood:
            raise NotDer(f"a critical extension that is not understood: {name}")
        if name in found:
            raise NotDer(f"two extensions of one kind: {name}")
        found[name] = extension.take(OCTET_STRING)
        extension.end()
    return found


def _basic_constraints(value: bytes | None) -> tuple[bool, int | None]:
    if value is None:
        return False, None
    outer = Reader(value)
    reader = outer.inside(SEQUENCE)
    outer.end()
    authority = reader.next_is(0x01) and reader.boolean()
    path_length = reader.integer() if reader.more else None
    reader.end()
    return authority, path_length


def _key_usage(value: bytes | None) -> int:
    if value is None:
        return 0
    reader = Reader(value)
    usage = reader.flags()
    reader.end()
    return usage


def _common_name(name: bytes) -> str:
    names: list[str] = []
    parts = Reader(name).inside(SEQUENCE)
    while parts.more:
        part = parts.inside(SET)
        attribute = part.inside(SEQUENCE)
        kind, text = attribute.oid(), attribute.text()
        attribute.end()
        part.end()
        if kind == _COMMON_NAME:
            names.append(text)
    if len(names) != 1:
        raise NotDer(f"a subject with {len(names)} common names")
    return names[0]
