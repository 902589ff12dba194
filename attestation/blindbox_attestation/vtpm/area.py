"""
The public area of a TPM's key (TPMT_PUBLIC, TPM 2.0 part 2, §12.2.4): what the key is, and what it may do.

It counts only where its name is vouched for, or its key is (`chain.py`): anybody can write one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurve,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

from ..x509 import PublicKey
from .tpm_bytes import TpmReader

RSA: Final = 0x0001
ECC: Final = 0x0023
NULL: Final = 0x0010

CURVES: Final[dict[int, EllipticCurve]] = {0x0003: SECP256R1(), 0x0004: SECP384R1()}
F4: Final = 65537

# TPMA_OBJECT, part 2, §8.3
FIXED_TPM: Final = 1 << 1
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN: Final = 1 << 18

NEEDED: Final = {
    "fixedTPM": FIXED_TPM,
    "fixedParent": FIXED_PARENT,
    "sensitiveDataOrigin": SENSITIVE_DATA_ORIGIN,
    "restricted": RESTRICTED,
    "sign": SIGN,
}

_MOST: Final = 512  # bytes of a key's number, or of a policy


@dataclass(frozen=True, slots=True)
class Area:
    """A key as its TPM describes it. Nothing here has been verified."""

    attributes: int
    scheme: int  # the one way in which a restricted key signs
    hash_algorithm: int  # of that scheme
    key: PublicKey

    @classmethod
    def parse(cls, data: bytes) -> Area:
        reader = TpmReader(data, "public area of the attestation key", "malformed-quote")
        kind = reader.integer(2)
        reader.integer(2)  # the hash of its name
        attributes = reader.integer(4)
        reader.sized(_MOST)  # who may use it
        if reader.integer(2) != NULL:
            raise reader.malformed("is that of a key which encrypts")
        scheme = reader.integer(2)
        hash_algorithm = 0 if scheme == NULL else reader.integer(2)
        try:
            key = _rsa(reader) if kind == RSA else _ecc(reader, kind)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise reader.malformed(f"holds no key: {error}") from error
        reader.end()
        return cls(attributes, scheme, hash_algorithm, key)

    def lacks(self) -> list[str]:
        """What a key that signs nothing but the TPM's own words would have, and this one has not."""
        found = [name for name, bit in NEEDED.items() if not self.attributes & bit]
        return [*found, "not decrypt"] if self.attributes & DECRYPT else found


def _rsa(reader: TpmReader) -> PublicKey:
    bits = reader.integer(2)
    exponent = reader.integer(4) or F4  # zero stands for the usual one
    modulus = reader.sized(_MOST)
    if len(modulus) * 8 != bits:
        raise reader.malformed(f"has an RSA key of {len(modulus)} bytes, and says {bits} bits")
    return RSAPublicNumbers(exponent, int.from_bytes(modulus, "big")).public_key()


def _ecc(reader: TpmReader, kind: int) -> PublicKey:
    if kind != ECC:
        raise reader.malformed(f"is of a kind that is not read: {kind:#06x}")
    curve = CURVES.get(number := reader.integer(2))
    if curve is None:
        raise reader.malformed(f"names a curve that is not read: {number:#06x}")
    if reader.integer(2) != NULL:
        raise reader.malformed("is that of a key which derives others")
    x, y = (int.from_bytes(reader.sized(curve.key_size // 8), "big") for _ in range(2))
    return EllipticCurvePublicNumbers(x, y, curve).public_key()
