"""
A whole fake AWS: a root and four certificates below it, which sign real-shaped Nitro documents.

With it a lie can be *well signed*. Nobody trusts it but a policy that is given its root as an argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from blindbox_attestation import cbor
from blindbox_attestation.binding import Bound, transcript_bytes
from blindbox_attestation.evidence import NITRO, AttestationDocument, Transcript
from blindbox_attestation.nitro import NitroPolicy
from blindbox_attestation.nitro.document import COSE_SIGN1
from tests.kit import NOON

CHAIN: Final = ("root", "regional", "zonal", "instance", "leaf")
COMMON_NAMES: Final = {
    "root": "aws.nitro-enclaves",
    "regional": "0123456789abcdef.eu-nowhere-1.aws.nitro-enclaves",
    "zonal": "fedcba9876543210.zonal.eu-nowhere-1.aws.nitro-enclaves",
    "instance": "i-0123456789abcdef0.eu-nowhere-1.aws.nitro-enclaves",
    "leaf": "i-0123456789abcdef0-enc0123456789abcdef.eu-nowhere-1.aws",
}
LIVES: Final = {
    "root": (timedelta(days=2000), timedelta(days=9000)),
    "regional": (timedelta(days=5), timedelta(days=15)),
    "zonal": (timedelta(days=1), timedelta(days=5)),
    "instance": (timedelta(hours=1), timedelta(hours=23)),
    "leaf": (timedelta(seconds=4), timedelta(hours=3)),
}
"""How long before and after NOON each certificate is valid."""

INSTANCE: Final = "i-0123456789abcdef0"
ROLE: Final = "arn:aws:iam::123456789012:role/nobody"
PROTECTED: Final = cbor.encode({1: -35})


def pcr(text: str) -> bytes:
    """A register with something in it."""
    return hashlib.sha384(bytes(48) + text.encode("ascii")).digest()


PCRS: Final = {
    **dict.fromkeys(range(16), bytes(48)),
    0: pcr("image"),
    1: pcr("kernel"),
    2: pcr("application"),
    3: pcr(ROLE),
    4: pcr(INSTANCE),
    8: pcr("signer"),
}


@cache
def ec_key(name: str, curve: type[ec.EllipticCurve] = ec.SECP384R1) -> ec.EllipticCurvePrivateKey:
    """The key of that name, the same in every run."""
    secret = int.from_bytes(hashlib.sha384(name.encode()).digest()[: curve().key_size // 8]) >> 8
    return ec.derive_private_key(secret, curve())


def name_of(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Nobody's Cloud"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


class FakeAws:
    """A cloud nobody has heard of."""

    def __init__(self, name: str = "ours") -> None:
        self.name = name

    def key(self, what: str) -> ec.EllipticCurvePrivateKey:
        return ec_key(f"{self.name} {what}")

    def certificate(
        self,
        what: str,
        *,
        common_name: str | None = None,
        issuer: str | None = None,
        signer: ec.EllipticCurvePrivateKey | None = None,
        public_key: Any = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        authority: bool | None = None,
        path_length: int | None = -1,
        cert_sign: bool | None = None,
        digital_signature: bool = True,
        hash_algorithm: HashAlgorithm | None = None,
        critical: bool = False,
    ) -> bytes:
        """A certificate as AWS would make it, except for what is asked to be otherwise."""
        depth = CHAIN.index(what)
        above = CHAIN[max(depth - 1, 0)]
        before, after = LIVES[what]
        authority = what != "leaf" if authority is None else authority
        if path_length == -1:
            path_length = None if what == "root" else max(3 - depth, 0)
        usage = dict.fromkeys(
            (
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(name_of(common_name or COMMON_NAMES[what]))
            .issuer_name(name_of(issuer or COMMON_NAMES[above]))
            .public_key(public_key or self.key(what).public_key())
            .serial_number(100 + depth)
            .not_valid_before(not_before or NOON - before)
            .not_valid_after(not_after or NOON + after)
            .add_extension(
                x509.BasicConstraints(authority, path_length if authority else None), critical=True
            )
            .add_extension(
                x509.KeyUsage(
                    key_cert_sign=authority if cert_sign is None else cert_sign,
                    digital_signature=digital_signature,
                    content_commitment=what == "leaf",
                    **usage,
                ),
                critical=authority,
            )
        )
        if critical:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
            builder = builder.add_extension(unknown, critical=True)
        return builder.sign(signer or self.key(above), hash_algorithm or SHA384()).public_bytes(Encoding.DER)

    def bundle(self, **changes: bytes) -> list[bytes]:
        """The certificates above the leaf, the root first."""
        return [changes.get(what) or _certificate(self.name, what) for what in CHAIN[:-1]]

    def told(self, **changes: Any) -> dict[int | str, Any]:
        """What the security module says; None under a name that is not optional leaves it out."""
        told: dict[int | str, Any] = {
            "module_id": f"{INSTANCE}-enc0123456789abcdef",
            "digest": "SHA384",
            "timestamp": int(NOON.timestamp() * 1000),
            "pcrs": PCRS,
            "certificate": _certificate(self.name, "leaf"),
            "cabundle": self.bundle(),
            "public_key": None,
            "user_data": None,
            "nonce": None,
        }
        return {**told, **changes}

    def sign(
        self,
        payload: bytes,
        *,
        protected: bytes = PROTECTED,
        unprotected: Mapping[int | str, Any] | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
        hash_algorithm: HashAlgorithm | None = None,
        tagged: bool = False,
        context: str = "Signature1",
    ) -> bytes:
        """COSE_Sign1 over any bytes."""
        content = cbor.encode((context, protected, b"", payload))
        r, s = decode_dss_signature(
            (key or self.key("leaf")).sign(content, ec.ECDSA(hash_algorithm or SHA384()))
        )
        signature = r.to_bytes(48, "big") + s.to_bytes(48, "big")
        cose = cbor.encode((protected, unprotected or {}, payload, signature))
        return (bytes((0xC0 | COSE_SIGN1,)) if tagged else b"") + cose

    def document(self, *, leave_out: Sequence[str] = (), **changes: Any) -> bytes:
        """A well-signed document; `changes` are what the module says."""
        told = self.told(**changes)
        return self.sign(cbor.encode({name: one for name, one in told.items() if name not in leave_out}))

    def answer(self, bound: Bound, **changes: Any) -> bytes:
        """The document of an honest enclave that has this key and was asked this question."""
        asked = {
            "user_data": bound.digest,
            "nonce": bound.nonce or None,
            "public_key": hashlib.sha384(bound.key_config).digest(),
        }
        return self.document(**{**asked, **changes})

    def whole(self, transcript: Transcript, **changes: Any) -> bytes:
        """The attestation document (SPEC §2) of an honest enclave; `changes` are what the module says."""
        bound = Bound.of(transcript_bytes(NITRO, transcript), transcript)
        return AttestationDocument(NITRO, transcript, self.answer(bound, **changes), {}).encode()

    @property
    def roots(self) -> dict[bytes, str]:
        return {hashlib.sha256(_certificate(self.name, "root")).digest(): f"fake AWS, {self.name}"}

    def policy(self, **changes: Any) -> NitroPolicy:
        """A policy that trusts this cloud, and asks for what an honest enclave says."""
        return NitroPolicy(**{"pcrs": {0: {PCRS[0]}}, "roots": self.roots, **changes})


@cache
def _certificate(name: str, what: str) -> bytes:
    return FakeAws(name).certificate(what)
