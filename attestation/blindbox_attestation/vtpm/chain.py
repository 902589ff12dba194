"""
Whose key signed a quote: by certificates that lead to a pinned root, or because the policy pins the key.

Steps 4 and 6 of SPEC §4. A key that came with the evidence proves nothing by itself: anybody has one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from .. import certificate_path
from ..der import SEQUENCE, NotDer, Reader
from ..errors import MalformedEvidence, UntrustedEvidence
from ..walk import Finding
from ..x509 import RSA_PKCS1_SHA256, Certificate, Scheme
from .evidence import TpmEvidence, spelled
from .quote import SCHEMES, words_of

MAX_CHAIN: Final = 16 * 1024
LONGEST: Final = 6  # certificates
INSTANCE: Final = "1.3.6.1.4.1.11129.2.1.21"
"""Google's extension for the machine of a TPM (go-tpm-tools, proto/attest.proto, GCEInstanceInfo)."""


@dataclass(frozen=True, slots=True)
class Instance:
    """The virtual machine that Google's certificate is for."""

    zone: str
    project_number: int
    project_id: str
    instance_id: int
    instance_name: str

    @classmethod
    def of(cls, leaf: Certificate) -> Instance | None:
        """None in a certificate that names no machine."""
        value = leaf.extensions.get(INSTANCE)
        if value is None:
            return None
        try:
            outer = Reader(value)
            reader = outer.inside(SEQUENCE)
            outer.end()
            found = cls(reader.text(), reader.integer(), reader.text(), reader.integer(), reader.text())
            if reader.more:
                reader.inside(
                    0xA0
                )  # versions and ages of the host's parts, which Google fills with constants
            reader.end()
        except NotDer as error:
            raise MalformedEvidence(
                f"the certificate's word for its machine cannot be read: {error}",
                code="malformed-certificate",
            ) from error
        return found

    def __str__(self) -> str:
        return f"{self.instance_name} ({self.instance_id}) in {self.project_id}, {self.zone}"


def split(chain: bytes) -> list[bytes]:
    """The certificates of an `ak_chain`: DER after DER, the leaf first."""
    try:
        if len(chain) > MAX_CHAIN:
            raise NotDer(f"{len(chain)} bytes, at most {MAX_CHAIN} are read")
        reader = Reader(chain)
        found: list[bytes] = []
        while reader.more:
            if len(found) == LONGEST:
                raise NotDer(f"more than {LONGEST} certificates")
            found.append(reader.whole(SEQUENCE))
    except NotDer as error:
        raise MalformedEvidence(f"ak_chain cannot be read: {error}", code="malformed-certificate") from error
    return found


def trace(
    chain: bytes | None,
    ak_public: bytes,
    roots: Mapping[bytes, str],
    finding: Finding,
    *,
    now: datetime,
    scheme: Scheme = RSA_PKCS1_SHA256,
) -> Certificate:
    """Step 4: from a pinned root, last of the chain, to a certificate for exactly this key."""
    if not chain:
        raise UntrustedEvidence(
            "the certificates of the attestation key (ak_chain) were not sent, and the policy pins no key: "
            "a quote that is signed by any key at all proves nothing",
            code="missing-endorsement",
        )
    certificates = split(chain)
    count = len(certificates)
    path = [(f"certificate {at} of {count} in ak_chain", der) for at, der in enumerate(certificates, 1)]
    leaf = certificate_path.trace(path[::-1], roots, scheme, finding, times=(now,))
    finding.expect(
        spelled(leaf.public_key) == ak_public,
        "certified key",
        found=_fingerprint(spelled(leaf.public_key)),
        wanted=_fingerprint(ak_public),
        source=path[0][0],
        error=UntrustedEvidence,
        code="wrong-attestation-key",
        message="the certificate is for another key than the one that came with the quote",
    )
    return leaf


def check_pinned(ak_public: bytes, pinned: Set[bytes], finding: Finding) -> None:
    """Step 4, without certificates: the policy knows this key."""
    fingerprint = _fingerprint(ak_public)
    finding.expect(
        fingerprint in pinned,
        "the attestation key is pinned",
        found=fingerprint,
        wanted=pinned,
        source="ak_public",
        error=UntrustedEvidence,
        code="unpinned-ak",
        message=f"the attestation key has SHA-256 {fingerprint.hex()}, which is none of the "
        f"{len(pinned)} that the policy pins",
    )


def check_area(evidence: TpmEvidence, finding: Finding) -> None:
    """
    Step 7: the key is one that signs nothing but what its own TPM has seen.

    The area is the sender's word, so this catches a key made wrongly; a lie is caught in step 4, where
    somebody vouches for the key.
    """
    area = evidence.area
    if area is None:
        finding.not_applicable("attributes of the key", "its public area was not sent (ak_area)")
        return
    finding.expect(
        spelled(area.key) == evidence.ak_public,
        "key of the public area",
        found=words_of(area.key),
        wanted="the key that came with the quote",
        source="ak_area",
        error=UntrustedEvidence,
        code="wrong-attestation-key",
        message="ak_area describes another key than ak_public",
    )
    lacks = area.lacks()
    finding.expect(
        not lacks,
        "attributes of the key",
        found=f"{area.attributes:#010x}" + (f", without {', '.join(lacks)}" if lacks else ""),
        wanted="restricted, sign, not decrypt, fixedTPM, fixedParent, sensitiveDataOrigin",
        source="ak_area",
        error=UntrustedEvidence,
        code="ak-attributes",
    )
    signature = evidence.quote.signature
    finding.expect(
        (area.scheme, area.hash_algorithm) == (signature.scheme, signature.hash_algorithm),
        "scheme of the key",
        found=signature.words,
        wanted=f"{SCHEMES.get(area.scheme, hex(area.scheme))} with hash {area.hash_algorithm:#06x}",
        source="signature",
        error=UntrustedEvidence,
        code="unsupported-signature-algorithm",
        message=f"the quote is signed with {signature.words}, and the key is not one for that",
    )


def _fingerprint(der: bytes) -> bytes:
    return hashlib.sha256(der).digest()
