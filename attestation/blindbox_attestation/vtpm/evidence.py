"""
Evidence of a TPM as it travels: a quote, and the key that is said to have signed it. Format: SPEC §4.4.

This module reads; it does not judge. Whose key it is, is decided in `chain.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from .. import strict_json
from ..errors import MalformedEvidence
from ..strict_json import JsonRefused
from ..x509 import PublicKey
from .area import Area
from .quote import Quote, malformed, read_fields

MAX_EVIDENCE: Final = 16 * 1024
_MAX_KEY: Final = 1024


@dataclass(frozen=True, slots=True)
class TpmEvidence:
    """A quote and a key as they came. Nothing here has been verified."""

    quote: Quote
    ak_public: bytes  # SubjectPublicKeyInfo, DER
    key: PublicKey
    area: Area | None

    @classmethod
    def parse(cls, data: bytes) -> TpmEvidence:
        if len(data) > MAX_EVIDENCE:
            raise MalformedEvidence(
                f"the TPM's evidence is {len(data)} bytes, at most {MAX_EVIDENCE} are read",
                code="malformed-quote",
            )
        try:
            fields = read_fields(data, ("attest", "signature", "ak_public", "pcrs"), ("ak_area",))
            quote = Quote.of(fields, "the evidence")
            ak_public = strict_json.from_base64(fields["ak_public"], "the evidence: ak_public")
            area = _area(fields["ak_area"]) if "ak_area" in fields else None
        except JsonRefused as error:
            raise malformed(error) from error
        return cls(quote, ak_public, read_key(ak_public), area)


def _area(value: object) -> Area:
    return Area.parse(strict_json.from_base64(value, "the evidence: ak_area"))


@lru_cache(maxsize=64)
def read_key(der: bytes) -> PublicKey:
    """A SubjectPublicKeyInfo in its one spelling. Loading one takes longer than checking a signature."""
    try:
        key = load_der_public_key(der[: _MAX_KEY + 1])
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MalformedEvidence(f"ak_public cannot be read: {error}", code="malformed-quote") from error
    if not isinstance(key, RSAPublicKey | EllipticCurvePublicKey) or spelled(key) != der:
        raise MalformedEvidence(
            "ak_public is no RSA or elliptic curve key in the one spelling of its DER", code="malformed-quote"
        )
    return key


def spelled(key: PublicKey) -> bytes:
    """SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
