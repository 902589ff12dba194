"""
A whole fake Google: a root, an intermediate and a leaf, which sign real-shaped Confidential Space tokens.

With it a lie can be *well signed*. Nobody trusts it but a policy that is given its root as an argument.
Keys are made once per process.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from blindbox_attestation.binding import Bound, transcript_bytes
from blindbox_attestation.evidence import CONFIDENTIAL_SPACE, AttestationDocument, Transcript
from blindbox_attestation.gcp import GcpPolicy
from blindbox_attestation.gcp.token import to_base64url
from tests.kit import NOON

CHAIN: Final = ("root", "intermediate", "leaf")
IMAGE: Final = "sha256:" + hashlib.sha256(b"the image that everybody has read").hexdigest()
AUDIENCE: Final = "https://nobody.example"
PROJECT: Final = "nobody-s-project"
INSTANCE: Final = "1234567890123456789"
ACCOUNT: Final = "workload@nobody-s-project.iam.gserviceaccount.com"


@cache
def rsa_key(name: str, size: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, size)


def name_of(what: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Nobody LLC"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Confidential Space {what}"),
        ]
    )


def dumped(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def merged(told: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The same claims, with these changed, also within objects; None leaves one out."""
    found = dict(told)
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(found.get(name), Mapping):
            found[name] = merged(found[name], value)
        elif value is None:
            found.pop(name, None)
        else:
            found[name] = value
    return found


class FakeGoogle:
    """A cloud nobody has heard of, and its attestation service."""

    def __init__(self, name: str = "ours") -> None:
        self.name = name

    def key(self, what: str) -> rsa.RSAPrivateKey:
        return rsa_key(f"{self.name} {what}")

    def certificate(
        self,
        what: str,
        *,
        issuer: str | None = None,
        signer: rsa.RSAPrivateKey | None = None,
        public_key: Any = None,
        not_before: datetime = NOON - timedelta(days=30),
        not_after: datetime = NOON + timedelta(days=30),
        authority: bool | None = None,
        cert_sign: bool = True,
        hash_algorithm: HashAlgorithm | None = None,
        pad: padding.PSS | padding.PKCS1v15 | None = None,
        critical: bool = False,
    ) -> bytes:
        """A certificate as Google would make it, except for what is asked to be otherwise."""
        above = CHAIN[max(CHAIN.index(what) - 1, 0)]
        authority = what != "leaf" if authority is None else authority
        builder = (
            x509.CertificateBuilder()
            .subject_name(name_of(what))
            .issuer_name(name_of(issuer or above))
            .public_key(public_key or self.key(what).public_key())
            .serial_number(100)
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
        )
        if authority:
            usage = dict.fromkeys(
                (
                    "digital_signature",
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            )
            builder = builder.add_extension(
                x509.KeyUsage(key_cert_sign=cert_sign, crl_sign=True, **usage), critical=True
            )
        if critical:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
            builder = builder.add_extension(unknown, critical=True)
        return builder.sign(
            signer or self.key(above), hash_algorithm or SHA256(), rsa_padding=pad or padding.PKCS1v15()
        ).public_bytes(Encoding.DER)

    def chain(self, **changes: bytes) -> list[bytes]:
        """The three certificates, the leaf first."""
        return [changes.get(what) or _certificate(self.name, what) for what in reversed(CHAIN)]

    def header(self, certificates: Sequence[bytes] | None = None, **changes: Any) -> dict[str, Any]:
        chain = self.chain() if certificates is None else certificates
        told = {
            "alg": "RS256",
            "kid": "nobody",
            "typ": "JWT",
            "x5c": [base64.b64encode(one).decode("ascii") for one in chain],
        }
        return merged(told, changes)

    def told(self, **changes: Any) -> dict[str, Any]:
        """What Google says of an honest workload, except for the changes."""
        now = int(NOON.timestamp())
        told = {
            "aud": AUDIENCE,
            "exp": now + 3600,
            "iat": now,
            "iss": "https://confidentialcomputing.googleapis.com",
            "nbf": now,
            "sub": f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/zones/nowhere/instances/box",
            "eat_nonce": "0123456789abcdef",
            "secboot": True,
            "oemid": 11129,
            "hwmodel": "GCP_INTEL_TDX",
            "swname": "CONFIDENTIAL_SPACE",
            "swversion": ["260400"],
            "dbgstat": "disabled-since-boot",
            "submods": {
                "confidential_space": {"support_attributes": ["LATEST", "STABLE", "USABLE"]},
                "container": {
                    "image_reference": "nowhere-docker.pkg.dev/nobody/box:latest",
                    "image_digest": IMAGE,
                    "restart_policy": "Never",
                    "env": {"PATH": "/bin"},
                    "args": ["/box"],
                },
                "gce": {"zone": "nowhere", "project_id": PROJECT, "instance_id": INSTANCE},
            },
            "tdx": {"gcp_attester_tcb_status": "UpToDate"},
            "google_service_accounts": [ACCOUNT],
        }
        return merged(told, changes)

    def sign(
        self,
        header: bytes,
        payload: bytes,
        *,
        key: rsa.RSAPrivateKey | None = None,
        hash_algorithm: HashAlgorithm | None = None,
        pad: padding.PSS | padding.PKCS1v15 | None = None,
    ) -> bytes:
        """JWS (RFC 7515) over any bytes."""
        content = to_base64url(header) + b"." + to_base64url(payload)
        signature = (key or self.key("leaf")).sign(
            content, pad or padding.PKCS1v15(), hash_algorithm or SHA256()
        )
        return content + b"." + to_base64url(signature)

    def token(self, certificates: Sequence[bytes] | None = None, **changes: Any) -> bytes:
        """A well-signed token; `changes` are claims, None leaves one out."""
        return self.sign(dumped(self.header(certificates)), dumped(self.told(**changes)))

    def answer(self, bound: Bound, **changes: Any) -> bytes:
        """The token of an honest workload that has this key and was asked this question."""
        return self.token(eat_nonce=to_base64url(bound.digest).decode("ascii"), **changes)

    def whole(self, transcript: Transcript, **changes: Any) -> bytes:
        """The attestation document (SPEC §2) of an honest workload; `changes` are claims of its token."""
        bound = Bound.of(transcript_bytes(CONFIDENTIAL_SPACE, transcript), transcript)
        token = self.answer(bound, **changes)
        return AttestationDocument(CONFIDENTIAL_SPACE, transcript, token, {}).encode()

    @property
    def roots(self) -> dict[bytes, str]:
        return {hashlib.sha256(_certificate(self.name, "root")).digest(): f"fake Google, {self.name}"}

    def policy(self, **changes: Any) -> GcpPolicy:
        """A policy that trusts this cloud, and asks for what an honest workload says."""
        asked = {
            "audiences": {AUDIENCE},
            "image_digests": {IMAGE},
            "hardware": {"GCP_INTEL_TDX"},
            "roots": self.roots,
        }
        return GcpPolicy(**{**asked, **changes})


@cache
def _certificate(name: str, what: str) -> bytes:
    return FakeGoogle(name).certificate(what)
