"""
The one value that ties a machine's evidence to its key, and to the question it answers.

Both ends compute it here: the enclave to have it signed, the client to compare. Format: SPEC §2.1.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from .evidence import Transcript

_TRANSCRIPT_LABEL: Final = b"blindbox/attest/v1\x00"
_EVIDENCE_ID_LABEL: Final = b"blindbox/evidence-id/v1\x00"

BINDING_SIZE: Final = 48
REPORT_DATA_SIZE: Final = 64


@dataclass(frozen=True, slots=True)
class Bound:
    """What genuine evidence has to carry, so that it is about this key and this question (SPEC §2.1)."""

    digest: bytes  # B, 48 bytes
    nonce: bytes  # 32 bytes, or none in the cached form
    key_config: bytes

    @classmethod
    def of(cls, transcript: bytes, told: Transcript) -> Bound:
        return cls(binding(transcript), told.nonce, told.key_config)


def same(one: bytes, other: bytes) -> bool:
    """Whether all bytes and the length are equal, in constant time."""
    return hmac.compare_digest(one, other)


def transcript_bytes(platform: str, transcript: Transcript) -> bytes:
    """
    T: every field with its length before it, so that no two transcripts share their bytes.

    A receipt key stands last, and only where there is one. Every length before it is known, so the bytes
    either end there or go on with exactly this field.
    """
    return b"".join(
        (
            _TRANSCRIPT_LABEL,
            _length_value(platform.encode("ascii")),
            _length_value(transcript.key_config),
            _length_value(transcript.nonce),
            transcript.form.to_bytes(1, "big"),
            transcript.not_before.to_bytes(8, "big"),
            transcript.not_after.to_bytes(8, "big"),
            _length_value(transcript.boot_id),
            _length_value(transcript.config_digest),
            _length_value(transcript.profile.encode("ascii")),
            _length_value(transcript.tls_spki_sha256),
            _length_value(transcript.receipt_key) if transcript.receipt_key else b"",
        )
    )


def binding(transcript: bytes) -> bytes:
    """B = SHA-384(T), 48 bytes: what every platform's evidence must hold."""
    return hashlib.sha384(transcript).digest()


def report_data(bound: bytes) -> bytes:
    """Where B is in 64 bytes of REPORT_DATA: at the front, and zeros after it."""
    if len(bound) != BINDING_SIZE:
        raise ValueError(f"a binding has {BINDING_SIZE} bytes, not {len(bound)}")
    return bound.ljust(REPORT_DATA_SIZE, b"\x00")


def evidence_id(transcript: bytes, evidence: bytes) -> bytes:
    """48 bytes that name this proof and no other."""
    return hashlib.sha384(_EVIDENCE_ID_LABEL + _length_value(transcript) + _length_value(evidence)).digest()


def _length_value(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value
