"""
The attestation document: what a machine sends about itself, from bytes to a frozen value and back.

This module reads and writes; it does not judge. Whether a document proves anything is decided in `verify.py`;
the bytes that its hardware signs for are in `binding.py`. Format: SPEC §2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from . import strict_json
from .errors import MalformedEvidence

MEDIA_TYPE: Final = "application/blindbox-attestation+json"
MAX_DOCUMENT: Final = 256 * 1024
MAX_ENDORSEMENTS: Final = 144 * 1024  # all together; a boot's event log alone may be 64 KiB
MAX_KEY_CONFIG: Final = 64 * 1024
VERSION: Final = 1
PROFILE: Final = "blindbox/1"

NONCE_SIZE: Final = 32
BOOT_ID_SIZE: Final = 16
CONFIG_DIGEST_SIZE: Final = 48
SPKI_DIGEST_SIZE: Final = 32
RECEIPT_KEY_SIZE: Final = 32

FRESH: Final = 1  # with the caller's nonce
CACHED: Final = 2  # without one

SEV_SNP: Final = "sev-snp"
TDX: Final = "tdx"
AZURE_SNP: Final = "az-snp-vtpm"
AZURE_TDX: Final = "az-tdx-vtpm"
CONFIDENTIAL_SPACE: Final = "gcp-confidential-space"
NITRO: Final = "nitro"
TPM: Final = "tpm"
SIMULATED: Final = "simulated"

CERTIFICATES: Final = ("vcek", "vlek", "ask", "asvk", "ark", "crl")  # DER
COLLATERAL: Final = "collateral"  # Intel's, as JSON: SPEC §4.3
EVENT_LOG: Final = "event_log"  # of the boot, as the firmware wrote it: SPEC §4.4
AK_CHAIN: Final = "ak_chain"  # the attestation key's certificates, DER after DER, leaf first: SPEC §4.4

ENDORSEMENTS: Final = (*CERTIFICATES, COLLATERAL, EVENT_LOG, AK_CHAIN)

_LAST_SECOND: Final = 253402300799  # of the year 9999

_DOCUMENT_KEYS = ("version", "platform", "transcript", "evidence", "endorsements")
_TRANSCRIPT_KEYS = (
    "key_config",
    "nonce",
    "form",
    "not_before",
    "not_after",
    "boot_id",
    "config_digest",
    "profile",
    "tls_spki_sha256",
)
_TRANSCRIPT_OPTIONAL = ("receipt_key",)


@dataclass(frozen=True, slots=True)
class Transcript:
    """What the machine says about itself, and its hardware vouches for: the fields of T (SPEC §2.1)."""

    key_config: bytes  # application/ohttp-keys, the whole list (SPEC §5.1)
    nonce: bytes  # 32 bytes of the caller's, or none in the cached form
    form: int  # FRESH or CACHED
    not_before: int  # Unix seconds of the machine's clock
    not_after: int
    boot_id: bytes  # 16 bytes
    config_digest: bytes  # 48 bytes, SHA-384 of the run-time settings
    profile: str
    tls_spki_sha256: bytes  # 32 bytes, or none
    receipt_key: bytes = b""  # 32 bytes, Ed25519: it signs receipts (SPEC §8). Or none

    def __post_init__(self) -> None:
        if self.profile != PROFILE:
            raise MalformedEvidence(
                f"the profile is {self.profile!a}, this version speaks {PROFILE!r}",
                code="unsupported-version",
            )
        _wrong_unless(self.form in (FRESH, CACHED), f"form {self.form} is neither {FRESH} nor {CACHED}")
        _wrong_unless(
            1 <= len(self.key_config) <= MAX_KEY_CONFIG, "the key configuration is empty or too large"
        )
        _size("nonce", self.nonce, NONCE_SIZE if self.form == FRESH else 0)
        _size("boot_id", self.boot_id, BOOT_ID_SIZE)
        _size("config_digest", self.config_digest, CONFIG_DIGEST_SIZE)
        _size("tls_spki_sha256", self.tls_spki_sha256, SPKI_DIGEST_SIZE, 0)
        _size("receipt_key", self.receipt_key, RECEIPT_KEY_SIZE, 0)
        for name, value in (("not_before", self.not_before), ("not_after", self.not_after)):
            _wrong_unless(0 <= value <= _LAST_SECOND, f"{name} is {value}, which is no time")


@dataclass(frozen=True, slots=True)
class AttestationDocument:
    """A claim. Nothing here has been verified."""

    platform: str
    transcript: Transcript
    evidence: bytes
    endorsements: Mapping[str, bytes]

    def __post_init__(self) -> None:
        object.__setattr__(self, "endorsements", MappingProxyType(dict(self.endorsements)))
        unknown = sorted(set(self.endorsements) - set(ENDORSEMENTS))
        if unknown:
            raise MalformedEvidence(f"no such endorsement: {unknown[0]!a}", code="unknown-key")
        if sum(map(len, self.endorsements.values())) > MAX_ENDORSEMENTS:
            raise MalformedEvidence(
                f"the endorsements are larger than {MAX_ENDORSEMENTS} bytes", code="document-too-large"
            )

    @classmethod
    def parse(cls, data: bytes) -> AttestationDocument:
        """Read a document (SPEC §2). Raises `MalformedEvidence`."""
        if len(data) > MAX_DOCUMENT:
            raise MalformedEvidence(
                f"the document is {len(data)} bytes, at most {MAX_DOCUMENT} are read",
                code="document-too-large",
            )
        try:
            return cls._read(strict_json.parse(data))
        except strict_json.JsonRefused as error:
            raise MalformedEvidence(f"the document: {error}", code=error.code) from error

    @classmethod
    def _read(cls, document: strict_json.Object) -> AttestationDocument:
        # The version comes first: a later one may have other keys, and deserves the better message.
        version = strict_json.integer(document.get("version", VERSION), "version", 0, (1 << 63) - 1)
        if version != VERSION:
            raise strict_json.JsonRefused(f"version {version}, expected {VERSION}", "unsupported-version")
        strict_json.fields(document, "the document", _DOCUMENT_KEYS)
        told = strict_json.fields(
            document["transcript"], "transcript", _TRANSCRIPT_KEYS, _TRANSCRIPT_OPTIONAL
        )
        if told.get("receipt_key") == "":
            raise strict_json.JsonRefused(
                "receipt_key is empty; a machine without one leaves it out", "wrong-type"
            )
        endorsements = strict_json.fields(document["endorsements"], "endorsements", (), ENDORSEMENTS)
        transcript = Transcript(
            key_config=strict_json.from_base64(told["key_config"], "key_config"),
            nonce=strict_json.from_base64(told["nonce"], "nonce"),
            form=strict_json.integer(told["form"], "form", FRESH, CACHED),
            not_before=strict_json.integer(told["not_before"], "not_before", 0, _LAST_SECOND),
            not_after=strict_json.integer(told["not_after"], "not_after", 0, _LAST_SECOND),
            boot_id=strict_json.from_base64(told["boot_id"], "boot_id"),
            config_digest=strict_json.from_base64(told["config_digest"], "config_digest"),
            profile=strict_json.text(told["profile"], "profile"),
            tls_spki_sha256=strict_json.from_base64(told["tls_spki_sha256"], "tls_spki_sha256"),
            receipt_key=strict_json.from_base64(told.get("receipt_key", ""), "receipt_key"),
        )
        return cls(
            platform=strict_json.text(document["platform"], "platform"),
            transcript=transcript,
            evidence=strict_json.from_base64(document["evidence"], "evidence"),
            endorsements={
                name: strict_json.from_base64(value, f"endorsement {name}")
                for name, value in endorsements.items()
            },
        )

    def encode(self) -> bytes:
        """The document as it travels."""
        base64 = strict_json.to_base64
        told = self.transcript
        return strict_json.dump(
            {
                "version": VERSION,
                "platform": self.platform,
                "transcript": {
                    "key_config": base64(told.key_config),
                    "nonce": base64(told.nonce),
                    "form": told.form,
                    "not_before": told.not_before,
                    "not_after": told.not_after,
                    "boot_id": base64(told.boot_id),
                    "config_digest": base64(told.config_digest),
                    "profile": told.profile,
                    "tls_spki_sha256": base64(told.tls_spki_sha256),
                    **({"receipt_key": base64(told.receipt_key)} if told.receipt_key else {}),
                },
                "evidence": base64(self.evidence),
                "endorsements": {name: base64(value) for name, value in self.endorsements.items()},
            }
        )


def _wrong_unless(right: bool, message: str) -> None:
    if not right:
        raise MalformedEvidence(message, code="wrong-type")


def _size(name: str, value: bytes, *sizes: int) -> None:
    expected = " or ".join(map(str, sizes))
    _wrong_unless(len(value) in sizes, f"{name} is {len(value)} bytes, expected {expected}")
