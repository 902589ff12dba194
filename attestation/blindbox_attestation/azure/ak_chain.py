"""
Azure's certificates for the key of a machine's TPM: an extra, for a policy that wants it (step 4 of SPEC
§4).

The processor's report vouches for the key already. The certificate says besides that Azure knows this TPM;
it lies in NV index 0x01C101D0, with zeros after it up to the size of the index. Its issuers' revocation
lists are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA384, SHA512

from .. import certificate_path
from ..der import SEQUENCE, NotDer, Reader
from ..errors import MalformedEvidence, UntrustedEvidence
from ..vtpm.chain import split
from ..walk import Finding
from ..x509 import SMALLEST_RSA, Certificate, PublicKey, Scheme

PKCS1_SHA384_OR_SHA512: Final = frozenset(
    bytes.fromhex(text)
    for text in ("300d06092a864886f70d01010c0500", "300d06092a864886f70d01010d0500")  # RFC 4055 §5
)


def _rsa_pkcs1(key: PublicKey, signature: bytes, content: bytes) -> bool:
    if not isinstance(key, RSAPublicKey) or key.key_size < SMALLEST_RSA:
        return False
    try:
        key.verify(signature, content, PKCS1v15(), SHA512())
    except InvalidSignature:
        key.verify(signature, content, PKCS1v15(), SHA384())
    return True


AZURE: Final = Scheme("RSA PKCS #1 v1.5 SHA-384 or SHA-512", PKCS1_SHA384_OR_SHA512, _rsa_pkcs1)
"""The root signs with SHA-384, the authorities below it with SHA-512."""


def trace(chain: bytes | None, roots: Mapping[bytes, str], finding: Finding, *, now: datetime) -> Certificate:
    """From a pinned root, last of the chain, to the certificate of a TPM's key: of which, step 6 asks."""
    if not chain:
        raise UntrustedEvidence(
            "Azure's certificates of the TPM's key (ak_chain) were not sent, and the policy requires them",
            code="missing-endorsement",
        )
    certificates = split(_without_padding(chain))
    count = len(certificates)
    path = [(f"certificate {at} of {count} in ak_chain", der) for at, der in enumerate(certificates, 1)]
    return certificate_path.trace(path[::-1], roots, AZURE, finding, times=(now,))


def _without_padding(chain: bytes) -> bytes:
    """Up to where only zeros follow; a certificate itself may well end in one."""
    try:
        reader, end = Reader(chain), 0
        while reader.next_is(SEQUENCE):
            end += len(reader.whole(SEQUENCE))
    except NotDer as error:
        raise MalformedEvidence(f"ak_chain cannot be read: {error}", code="malformed-certificate") from error
    if not end or any(chain[end:]):
        raise MalformedEvidence(
            f"ak_chain has {len(chain) - end} bytes that are no certificate and no padding",
            code="malformed-certificate",
        )
    return chain[:end]
