"""
Tokens of Google's Confidential Space: from the bytes of a JWT to a `Token`, and the bytes that were signed.

This module reads; it does not judge. Whether a token is genuine is decided in `chain.py`, whether it is
acceptable in `policy.py`. Format: SPEC §4.6; JWS is RFC 7515, JWT RFC 7519; the claims are in Google's
"Confidential Space token claims". Only tokens that bring their certificates (type PKI) are read: no key is
ever fetched.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from .. import strict_json
from ..errors import MalformedEvidence

MAX_TOKEN: Final = 32 * 1024
MAX_CERTIFICATE: Final = 4 * 1024
ALGORITHM: Final = "RS256"
CERTIFICATES: Final = 3  # leaf, intermediate, root
MAX_NONCES: Final = 16
MAX_NONCE: Final = 128  # characters; Google takes 10 to 74
MAX_TEXT: Final = 1024
MAX_LIST: Final = 64

_IMAGE_DIGEST: Final = re.compile(r"(?:sha256:[0-9a-f]{64})?")
_LAST_SECOND: Final = 253402300799  # of the year 9999


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it came. Nothing here has been verified; a text that is not there is empty."""

    signed: bytes  # header and payload, as they came
    signature: bytes
    certificates: tuple[bytes, ...]  # DER, the leaf first
    issuer: str
    audience: str
    subject: str
    issued_at: datetime
    not_before: datetime
    expires_at: datetime
    nonces: tuple[str, ...]  # chosen by the workload
    software: str  # swname
    software_version: int  # swversion, of the Confidential Space image; 0 if there is none
    debug_status: str  # dbgstat
    secure_boot: bool
    hardware: str  # hwmodel
    tcb_status: str  # gcp_attester_tcb_status, of a TDX machine
    support_attributes: frozenset[str]
    image_digest: str  # "sha256:" and 64 hex digits
    image_reference: str
    environment_overrides: frozenset[str]  # names of variables that the operator has set
    command_overridden: bool
    project_id: str
    instance_id: str
    service_accounts: frozenset[str]

    @classmethod
    def parse(cls, data: bytes) -> Token:
        if len(data) > MAX_TOKEN:
            raise _malformed(f"is {len(data)} bytes, at most {MAX_TOKEN} are read")
        parts = data.split(b".")
        if len(parts) != 3:
            raise _malformed(f"has {len(parts)} parts, expected 3")
        header, payload, signature = (from_base64url(part) for part in parts)
        try:
            certificates = _certificates(strict_json.parse(header))
            return cls(
                signed=data[: data.rindex(b".")],
                signature=signature,
                certificates=certificates,
                **_claims(strict_json.parse(payload)),
            )
        except strict_json.JsonRefused as error:
            raise _malformed(f"cannot be read: {error}") from error


def from_base64url(text: bytes) -> bytes:
    """RFC 7515 §2: without padding, and with unused bits zero, so that bytes have one spelling."""
    try:
        found = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except ValueError as error:
        raise _malformed("has a part that is not base64url") from error
    if to_base64url(found) != text:
        raise _malformed("has a part that is base64url, but not in its canonical form")
    return found


def to_base64url(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def _malformed(what: str) -> MalformedEvidence:
    return MalformedEvidence(f"the token {what}", code="malformed-token")


def _certificates(header: strict_json.Object) -> tuple[bytes, ...]:
    """RFC 7515 §4.1: only what a PKI token has; a header that points to a key elsewhere is refused."""
    algorithm = header.get("alg")
    if algorithm != ALGORITHM:
        raise MalformedEvidence(
            f"the token is signed with {str(algorithm)[:64]!a}, expected {ALGORITHM}",
            code="unsupported-signature-algorithm",
        )
    if "x5c" not in header:
        raise _malformed("brings no certificates (x5c); was it asked for with the token type PKI?")
    told = strict_json.fields(header, "the header", ("alg", "x5c"), ("typ", "kid"))
    if told.get("typ", "JWT") != "JWT":
        raise _malformed("is of another type than JWT")
    strict_json.text(told.get("kid", ""), "kid", MAX_TEXT)
    chain = strict_json.items(told["x5c"], "x5c")
    if len(chain) != CERTIFICATES:
        raise _malformed(
            f"brings {len(chain)} certificates, expected {CERTIFICATES}: leaf, intermediate, root"
        )
    ders = tuple(strict_json.from_base64(one, "x5c") for one in chain)
    if any(not 0 < len(der) <= MAX_CERTIFICATE for der in ders):
        raise _malformed(f"brings a certificate of more than {MAX_CERTIFICATE} bytes, or of none")
    return ders


def _claims(payload: strict_json.Object) -> dict[str, Any]:
    """What is read of the payload. Google adds claims from time to time: others are left alone."""
    modules = _object(payload, "submods")
    space, container, machine = (
        _object(modules, name) for name in ("confidential_space", "container", "gce")
    )
    return {
        "issuer": _text(payload, "iss"),
        "audience": _text(payload, "aud"),
        "subject": _text(payload, "sub"),
        "issued_at": _time(payload, "iat"),
        "not_before": _time(payload, "nbf"),
        "expires_at": _time(payload, "exp"),
        "nonces": _nonces(payload.get("eat_nonce", [])),
        "software": _text(payload, "swname"),
        "software_version": _version(payload),
        "debug_status": _text(payload, "dbgstat"),
        "secure_boot": strict_json.boolean(payload.get("secboot", False), "secboot"),
        "hardware": _text(payload, "hwmodel"),
        "tcb_status": _text(_object(payload, "tdx"), "gcp_attester_tcb_status"),
        "support_attributes": _texts(space, "support_attributes"),
        "image_digest": _digest(container),
        "image_reference": _text(container, "image_reference"),
        "environment_overrides": frozenset(_object(container, "env_override")),
        "command_overridden": bool(strict_json.items(container.get("cmd_override", []), "cmd_override")),
        "project_id": _text(machine, "project_id"),
        "instance_id": _text(machine, "instance_id"),
        "service_accounts": _texts(payload, "google_service_accounts"),
    }


def _text(told: Mapping[str, Any], name: str) -> str:
    return strict_json.text(told.get(name, ""), name, MAX_TEXT)


def _texts(told: Mapping[str, Any], name: str) -> frozenset[str]:
    found = strict_json.items(told.get(name, []), name)
    if len(found) > MAX_LIST:
        raise _malformed(f"has {len(found)} values for {name}, at most {MAX_LIST} are read")
    return frozenset(strict_json.text(one, name, MAX_TEXT) for one in found)


def _object(told: Mapping[str, Any], name: str) -> strict_json.Object:
    found = told.get(name, {})
    if not isinstance(found, dict):
        raise _malformed(f"has a {name} that is no object")
    return found


def _time(told: Mapping[str, Any], name: str) -> datetime:
    if name not in told:
        raise _malformed(f"has no {name}")
    return datetime.fromtimestamp(strict_json.integer(told[name], name, 0, _LAST_SECOND), UTC)


def _digest(container: Mapping[str, Any]) -> str:
    found = _text(container, "image_digest")
    if not _IMAGE_DIGEST.fullmatch(found):
        raise _malformed(f"has the image_digest {found[:64]!a}, expected sha256: and 64 digits")
    return found


def _version(payload: Mapping[str, Any]) -> int:
    """A list of one number in digits, such as ["250800"]."""
    found = _texts(payload, "swversion")
    if len(found) > 1 or any(not one.isdecimal() or len(one) > strict_json.MAX_DIGITS for one in found):
        raise _malformed("has an swversion that is not one number")
    return int("".join(found) or "0")


def _nonces(value: object) -> tuple[str, ...]:
    """One string, or a list of them."""
    found = [value] if isinstance(value, str) else strict_json.items(value, "eat_nonce")
    if len(found) > MAX_NONCES:
        raise _malformed(f"has {len(found)} nonces, at most {MAX_NONCES} are read")
    return tuple(strict_json.text(one, "eat_nonce", MAX_NONCE) for one in found)
