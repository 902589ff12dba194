"""
AWS Nitro attestation documents: from bytes to a `Document`, and back to the bytes that were signed.

This module reads; it does not judge. Whether a document is genuine is decided in `chain.py`, whether it is
acceptable in `policy.py`. Format: SPEC §4.7; aws-nitro-enclaves-nsm-api, docs/attestation_process.md;
COSE_Sign1 is RFC 9052 §4.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final, TypeVar

from .. import cbor
from ..errors import MalformedEvidence

MAX_DOCUMENT: Final = 16 * 1024  # the security module answers with at most 12 KiB
COSE_SIGN1: Final = 18  # RFC 9052 §2: the tag, which may be left out
ALGORITHM: Final = 1  # RFC 9052 §3.1: label of the header
ES384: Final = -35  # RFC 9053 §2.1
DIGEST: Final = "SHA384"

SIGNATURE_SIZE: Final = 96
PCR_SIZE: Final = 48
PCRS: Final = range(32)
IMAGE_PCRS: Final = (0, 1, 2)  # the image, its kernel with its first files, the application
ROLE_PCR: Final = 3  # the IAM role of the parent instance
INSTANCE_PCR: Final = 4  # the id of the parent instance
SIGNER_PCR: Final = 8  # the certificate that signed the image; zero if none did

MAX_CERTIFICATE: Final = 1024
MAX_BUNDLE: Final = 8
MAX_NAME: Final = 128
MAX_PUBLIC_KEY: Final = 1024
MAX_USER_DATA: Final = 512
MAX_NONCE: Final = 512

_REQUIRED: Final = frozenset({"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"})
_OPTIONAL: Final = frozenset({"public_key", "user_data", "nonce"})
_LAST_MILLISECOND: Final = 253402300799999  # of the year 9999
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Document:
    """A document as the security module wrote it. Nothing here has been verified."""

    protected: bytes  # the header, as it came
    payload: bytes  # as it came
    signature: bytes  # 96 bytes, r and s
    module_id: str  # instance and enclave
    timestamp: datetime  # to the millisecond
    pcrs: Mapping[int, bytes]  # 48 bytes each
    certificate: bytes  # DER of the leaf
    cabundle: tuple[bytes, ...]  # DER, the root first
    public_key: bytes  # chosen by the enclave, as the next two; empty if there is none
    user_data: bytes
    nonce: bytes

    @classmethod
    def parse(cls, data: bytes) -> Document:
        if len(data) > MAX_DOCUMENT:
            raise _malformed(f"is {len(data)} bytes, at most {MAX_DOCUMENT} are read")
        outer = _item(data, "the document", tag=COSE_SIGN1)
        if not isinstance(outer, tuple) or len(outer) != 4:
            raise _malformed("is no COSE_Sign1: expected an array of four")
        protected, unprotected, payload, signature = outer
        header = _item(_is(protected, bytes, "the protected header"), "the protected header")
        if not isinstance(header, dict) or header.keys() != {ALGORITHM} or header[ALGORITHM] != ES384:
            raise MalformedEvidence(
                f"the protected header is {header!a}, expected {{1: -35}} (ES384) and nothing else",
                code="unsupported-signature-algorithm",
            )
        if unprotected != {}:
            raise _malformed("has an unprotected header that is not empty")
        told = _item(_is(payload, bytes, "the payload"), "the payload", open_map=True)
        if not isinstance(told, dict):
            raise _malformed("has a payload that is no map")
        keys = told.keys()
        if not keys >= _REQUIRED or not keys <= _REQUIRED | _OPTIONAL:
            found = ", ".join(sorted(str(key)[:MAX_NAME] for key in keys))
            raise _malformed(f"has the keys {found!a}; expected {', '.join(sorted(_REQUIRED))}")
        if told["digest"] != DIGEST:
            raise _malformed("has registers of another digest than SHA384")
        return cls(
            protected=_is(protected, bytes, "the protected header"),
            payload=_is(payload, bytes, "the payload"),
            signature=_bytes(signature, "the signature", SIGNATURE_SIZE, least=SIGNATURE_SIZE),
            module_id=_name(told["module_id"]),
            timestamp=_timestamp(told["timestamp"]),
            pcrs=_pcrs(told["pcrs"]),
            certificate=_bytes(told["certificate"], "the certificate", MAX_CERTIFICATE, least=1),
            cabundle=_bundle(told["cabundle"]),
            public_key=_optional(told, "public_key", MAX_PUBLIC_KEY),
            user_data=_optional(told, "user_data", MAX_USER_DATA),
            nonce=_optional(told, "nonce", MAX_NONCE),
        )

    @property
    def signed(self) -> bytes:
        """RFC 9052 §4.4: the Sig_structure, over header and payload exactly as they came."""
        return cbor.encode(("Signature1", self.protected, b"", self.payload))


def _malformed(what: str) -> MalformedEvidence:
    return MalformedEvidence(f"the Nitro document {what}", code="malformed-cose")


def _item(data: bytes, what: str, *, tag: int | None = None, open_map: bool = False) -> cbor.Value:
    try:
        return cbor.parse(data, tag=tag, open_map=open_map)
    except cbor.NotCbor as error:
        raise _malformed(f"cannot be read, in {what}: {error}") from error


def _is(value: object, kind: type[T], what: str) -> T:
    if not isinstance(value, kind):
        raise _malformed(f"has a {type(value).__name__} for {what}, expected {kind.__name__}")
    return value


def _bytes(value: object, what: str, most: int, *, least: int = 0) -> bytes:
    found = _is(value, bytes, what)
    if not least <= len(found) <= most:
        raise _malformed(f"has {len(found)} bytes for {what}, expected {least} to {most}")
    return found


def _optional(told: Mapping[int | str, cbor.Value], name: str, most: int) -> bytes:
    """Absent, null and empty mean the same, and all come from the module."""
    value = told.get(name)
    return b"" if value is None else _bytes(value, name, most)


def _name(value: object) -> str:
    found = _is(value, str, "module_id")
    if not 0 < len(found) <= MAX_NAME or not found.isascii() or not found.isprintable():
        raise _malformed("has a module_id that is no short printable name")
    return found


def _timestamp(value: object) -> datetime:
    found = _is(value, int, "the timestamp")
    if not 0 < found <= _LAST_MILLISECOND:
        raise _malformed(f"has the timestamp {found}, expected milliseconds since 1970")
    return _EPOCH + timedelta(milliseconds=found)


def _pcrs(value: object) -> Mapping[int, bytes]:
    found: dict[int, bytes] = {}
    for number, register in _is(value, dict, "pcrs").items():
        if number not in PCRS:
            raise _malformed(f"has a register {str(number)[:MAX_NAME]!a}, expected 0 to {PCRS[-1]}")
        found[number] = _bytes(register, f"PCR{number}", PCR_SIZE, least=PCR_SIZE)
    if missing := [number for number in IMAGE_PCRS if number not in found]:
        raise _malformed(f"has no PCR{missing[0]}")
    return MappingProxyType(found)


def _bundle(value: object) -> tuple[bytes, ...]:
    found = _is(value, tuple, "cabundle")
    if not 1 <= len(found) <= MAX_BUNDLE:
        raise _malformed(f"has {len(found)} certificates in its cabundle, expected 1 to {MAX_BUNDLE}")
    return tuple(_bytes(one, "a certificate of the cabundle", MAX_CERTIFICATE, least=1) for one in found)
