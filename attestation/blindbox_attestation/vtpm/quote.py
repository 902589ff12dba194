"""
Quotes of a TPM: from bytes to an `Attest` and a `Signature`, and whether the one was signed over the other.

TPMS_ATTEST and TPMT_SIGNATURE of TPM 2.0 part 2, §10.12 and §11.3. Whose key it is that signs is decided
elsewhere: by certificate or pin in `chain.py`, by the processor's report in `azure/`. Layout: SPEC §4.4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS, PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm

from .. import strict_json
from ..binding import same
from ..errors import MalformedEvidence, UntrustedEvidence
from ..event_log import BANK_SIZES, BANKS
from ..strict_json import JsonRefused
from ..walk import Finding
from ..x509 import ECDSA_WITH_SHA256, ECDSA_WITH_SHA384, SMALLEST_RSA, PublicKey
from .tpm_bytes import TpmReader

MAGIC: Final = 0xFF544347
ST_ATTEST_QUOTE: Final = 0x8018
RSASSA: Final = 0x0014
RSAPSS: Final = 0x0016
ECDSA_SCHEME: Final = 0x0018
SCHEMES: Final = {RSASSA: "RSASSA", RSAPSS: "RSAPSS", ECDSA_SCHEME: "ECDSA"}
HASHES: Final[dict[int, HashAlgorithm]] = {0x000B: SHA256(), 0x000C: SHA384()}

_ECDSA: Final = {"sha256": ECDSA_WITH_SHA256, "sha384": ECDSA_WITH_SHA384}

PCRS: Final = range(24)
BANKS_READ: Final = ("sha256", "sha384")

MAX_ATTEST: Final = 1024
MAX_SIGNATURE: Final = 1024
MAX_NAME: Final = 68  # of the key that signed: an algorithm and a digest
MAX_EXTRA_DATA: Final = 64
_MOST_SELECTIONS: Final = 16
_BITMAP: Final = 3  # bytes: 24 registers
_LARGEST_RSA: Final = 512  # bytes
_P384: Final = 48  # bytes


@dataclass(frozen=True, slots=True)
class Attest:
    """What a TPM said about its registers. Nothing here has been verified."""

    data: bytes  # the exact bytes under the signature
    qualified_signer: bytes
    extra_data: bytes  # chosen by whoever asked for the quote
    clock: int  # milliseconds
    reset_count: int
    restart_count: int
    safe: bool  # whether the clock has never gone back
    firmware_version: int  # in the vendor's own counting
    selections: tuple[tuple[int, tuple[int, ...]], ...]  # hash algorithm, registers
    digest: bytes  # over the registers' values

    @classmethod
    def parse(cls, data: bytes) -> Attest:
        if len(data) > MAX_ATTEST:
            raise MalformedEvidence(
                f"a quote of {len(data)} bytes, at most {MAX_ATTEST} are read", code="malformed-quote"
            )
        reader = TpmReader(data, "quote", "malformed-quote")
        magic, kind = reader.integer(4), reader.integer(2)
        if magic != MAGIC or kind != ST_ATTEST_QUOTE:
            raise reader.malformed(f"begins with {magic:08x} {kind:04x}, expected ff544347 8018")
        signer, extra_data = reader.sized(MAX_NAME), reader.sized(MAX_EXTRA_DATA)
        clock, resets, restarts, safe = (reader.integer(size) for size in (8, 4, 4, 1))
        if safe > 1:
            raise reader.malformed("says neither yes nor no to whether its clock is safe")
        firmware = reader.integer(8)
        count = reader.integer(4)
        if count > _MOST_SELECTIONS:
            raise reader.malformed(f"has {count} selections of registers")
        selections = tuple(_selection(reader) for _ in range(count))
        digest = reader.sized(64)
        reader.end()
        return cls(
            data, signer, extra_data, clock, resets, restarts, bool(safe), firmware, selections, digest
        )

    @property
    def bank(self) -> str:
        """The bank of registers that was quoted; empty if it is not exactly one that is read."""
        found = [BANKS.get(algorithm, "") for algorithm, _ in self.selections]
        return found[0] if len(found) == 1 and found[0] in BANKS_READ else ""

    @property
    def registers(self) -> tuple[int, ...]:
        """Which registers were quoted, in their order."""
        return tuple(sorted(register for _, registers in self.selections for register in registers))


def _selection(reader: TpmReader) -> tuple[int, tuple[int, ...]]:
    algorithm, size = reader.integer(2), reader.integer(1)
    if size != _BITMAP:
        raise reader.malformed(f"selects registers with {size} bytes, expected {_BITMAP}")
    bitmap = int.from_bytes(reader.take(size), "little")  # the lowest bit of the first byte is register 0
    return algorithm, tuple(register for register in PCRS if bitmap >> register & 1)


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature as the TPM gave it. Nothing here has been verified."""

    scheme: int
    hash_algorithm: int
    value: bytes  # of RSA as it is, of ECDSA in DER

    @classmethod
    def parse(cls, data: bytes) -> Signature:
        if len(data) > MAX_SIGNATURE:
            raise MalformedEvidence(f"a signature of {len(data)} bytes", code="malformed-signature")
        reader = TpmReader(data, "signature of the quote", "malformed-signature")
        scheme, hash_algorithm = reader.integer(2), reader.integer(2)
        if scheme not in SCHEMES or hash_algorithm not in HASHES:
            raise MalformedEvidence(
                f"the quote is signed with scheme {scheme:#06x} and hash {hash_algorithm:#06x}; expected "
                "RSASSA, RSAPSS or ECDSA with SHA-256 or SHA-384",
                code="unsupported-signature-algorithm",
            )
        if scheme == ECDSA_SCHEME:
            r, s = (int.from_bytes(reader.sized(_P384), "big") for _ in range(2))
            value = encode_dss_signature(r, s)
        else:
            value = reader.sized(_LARGEST_RSA)
        reader.end()
        return cls(scheme, hash_algorithm, value)

    @property
    def words(self) -> str:
        return f"{SCHEMES[self.scheme]} with {HASHES[self.hash_algorithm].name}"


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote, its signature, and the values that it is said to be about. Nothing here has been verified."""

    attest: Attest
    signature: Signature
    pcrs: Mapping[int, bytes]  # of the quoted bank

    @classmethod
    def of(cls, fields: strict_json.Object, where: str) -> Quote:
        """From the fields `attest`, `signature` and `pcrs` of SPEC §4.4. Raises `JsonRefused` too."""
        attest = Attest.parse(strict_json.from_base64(fields["attest"], f"{where}: attest"))
        signature = Signature.parse(strict_json.from_base64(fields["signature"], f"{where}: signature"))
        return cls(attest, signature, _pcrs(fields["pcrs"], attest.bank, f"{where}: pcrs"))


def _pcrs(value: object, bank: str, where: str) -> dict[int, bytes]:
    named = {str(register): register for register in PCRS}
    sizes = (BANK_SIZES[bank],) if bank else tuple(BANK_SIZES.values())
    told = strict_json.fields(value, where, (), tuple(named))
    return {named[name]: strict_json.from_hex(one, f"{where} {name}", sizes) for name, one in told.items()}


def read_fields(data: bytes, required: tuple[str, ...], optional: tuple[str, ...]) -> strict_json.Object:
    """Evidence that is one JSON object of version 1 (SPEC §4.4). Raises `JsonRefused`."""
    fields = strict_json.fields(strict_json.parse(data), "the evidence", ("version", *required), optional)
    strict_json.integer(fields["version"], "version", 1, 1)
    return fields


def malformed(error: JsonRefused) -> MalformedEvidence:
    return MalformedEvidence(f"the TPM's evidence cannot be read: {error}", code="malformed-quote")


def check_quote(quote: Quote, key: PublicKey, finding: Finding) -> None:
    """
    Step 7: `key` signed this quote, and the quote is about exactly these values of registers.

    Whether the registers are those a policy relies on is asked by `boot.MeasuredBoot.check_selection`.
    """
    attest, signature = quote.attest, quote.signature
    finding.expect(
        _fits(signature, key),
        "signature algorithm",
        found=f"{signature.words}, by a key that is {words_of(key)}",
        wanted="RSASSA or RSAPSS with RSA, ECDSA with P-256 and sha256 or P-384 and sha384",
        source="signature",
        error=UntrustedEvidence,
        code="unsupported-signature-algorithm",
    )
    valid = _is_signed(attest.data, signature, key)
    finding.expect(
        valid,
        "signature of the quote",
        found="valid" if valid else "not valid",
        wanted="valid",
        source="signature",
        error=UntrustedEvidence,
        code="bad-signature",
        message="the quote was not signed by the attestation key",
    )
    finding.expect(
        attest.bank != "" and bool(attest.registers),
        "quoted registers",
        found=", ".join(
            f"{BANKS.get(algorithm, hex(algorithm))}: {' '.join(map(str, registers)) or 'none'}"
            for algorithm, registers in attest.selections
        )
        or "none",
        wanted="some of one bank, sha256 or sha384",
        source="quote",
        error=UntrustedEvidence,
        code="pcr-selection",
    )
    finding.expect(
        tuple(sorted(quote.pcrs)) == attest.registers,
        "values of the quoted registers",
        found=" ".join(map(str, sorted(quote.pcrs))) or "none",
        wanted=" ".join(map(str, attest.registers)),
        source="pcrs",
        error=UntrustedEvidence,
        code="pcr-selection",
        message="the values that came are not those of the quoted registers, no more and no fewer",
    )
    values = b"".join(quote.pcrs[register] for register in attest.registers)
    digest = hashlib.new(HASHES[signature.hash_algorithm].name, values).digest()
    finding.expect(
        same(digest, attest.digest),
        "digest over the registers",
        found=digest,
        wanted=attest.digest,
        source="pcrs",
        error=UntrustedEvidence,
        code="pcr-digest-mismatch",
        message="the values of the registers that came are not those that the TPM signed",
    )


def words_of(key: PublicKey) -> str:
    return f"RSA-{key.key_size}" if isinstance(key, RSAPublicKey) else f"elliptic curve {key.curve.name}"


def _fits(signature: Signature, key: PublicKey) -> bool:
    """The key says how it may sign, not the signature: one hash for a curve, no small RSA."""
    if isinstance(key, RSAPublicKey):
        return key.key_size >= SMALLEST_RSA and signature.scheme in (RSASSA, RSAPSS)
    named = {SECP256R1: "sha256", SECP384R1: "sha384"}.get(type(key.curve))
    return signature.scheme == ECDSA_SCHEME and HASHES[signature.hash_algorithm].name == named


def _is_signed(content: bytes, signature: Signature, key: PublicKey) -> bool:
    algorithm = HASHES[signature.hash_algorithm]
    try:
        if isinstance(key, EllipticCurvePublicKey):
            key.verify(signature.value, content, _ECDSA[algorithm.name])
        else:
            # A TPM salts as much as fits, or, in FIPS mode, as much as the hash is long: part 1, annex B.7.
            padding = PKCS1v15() if signature.scheme == RSASSA else PSS(MGF1(algorithm), PSS.AUTO)
            key.verify(signature.value, content, padding, algorithm)
    except InvalidSignature:
        return False
    return True
