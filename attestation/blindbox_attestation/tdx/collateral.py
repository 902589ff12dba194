"""
What Intel publishes about a machine: two signed pieces of JSON, two revocation lists, and the chains for
them.

This module reads; whose signature is on what is checked in `chain.py`. The form is that of `dcap-qvl` (SPEC
§4.3), nine strings; the signed JSON is Intel's, "Get TCB Info" and "Get Quoting Enclave Identity" of the PCS
API, version 4. It is kept as it came and never written again: a signature is over bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from datetime import datetime
from functools import lru_cache
from typing import Final

from .. import strict_json
from ..errors import MalformedEvidence

MAX_COLLATERAL: Final = 144 << 10
"""As much as all endorsements together may be (SPEC §2); Intel's has about 20 KiB."""

FMSPC_SIZE: Final = 6
PCE_ID_SIZE: Final = 2
_SIGNATURE_SIZE: Final = 64
_QE_STATUSES: Final = ("UpToDate", "OutOfDate", "Revoked")
_MOST_EVALUATION: Final = (1 << 32) - 1

_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")
_HEX_IN_JSON: Final = re.compile(r"[0-9a-fA-F]*")
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class Collateral:
    """What came as `collateral`, in the order of SPEC §4.3. Nothing here has been verified."""

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Collateral:
        """Raises `MalformedEvidence`."""
        if len(data) > MAX_COLLATERAL:
            raise _malformed(f"it has {len(data)} bytes, at most {MAX_COLLATERAL} are read")
        return _collateral(data)


@dataclass(frozen=True, slots=True)
class Statement:
    """What is the same in both pieces of signed JSON."""

    kind: str  # "TDX" or "SGX" of TCB info, "TD_QE" or "QE" of an identity
    version: int
    issued: datetime
    next_update: datetime
    evaluation: int  # tcbEvaluationDataNumber: grows with every recovery of Intel's


@dataclass(frozen=True, slots=True)
class TcbInfo:
    """Which firmware Intel thinks what of, for one kind of machine. Levels are matched by `dcap-qvl`."""

    statement: Statement
    fmspc: bytes  # 6 bytes, the kind of machine
    pce_id: bytes  # 2 bytes

    @classmethod
    def parse(cls, text: str) -> TcbInfo:
        """Raises `MalformedEvidence`."""
        return _tcb_info(text)


@dataclass(frozen=True, slots=True)
class QeIdentity:
    """What Intel's quoting enclave is known by. Compared by `dcap-qvl`."""

    statement: Statement

    @classmethod
    def parse(cls, text: str) -> QeIdentity:
        """Raises `MalformedEvidence`."""
        return _qe_identity(text)


@lru_cache(maxsize=8)
def _collateral(data: bytes) -> Collateral:
    names = [field.name for field in fields(Collateral)]
    try:
        told = strict_json.fields(strict_json.parse(data), "it", names)
    except strict_json.JsonRefused as error:
        raise _malformed(str(error)) from error
    for name in names:
        if not isinstance(told[name], str) or not told[name].isascii():
            raise _malformed(f"{name} is not a string of ASCII characters")
    for name in ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"):
        if not _HEX.fullmatch(told[name]):
            raise _malformed(f"{name} is not lower-case hex")
        told[name] = bytes.fromhex(told[name])
        if name.endswith("_signature") and len(told[name]) != _SIGNATURE_SIZE:
            raise _malformed(f"{name} has {len(told[name])} bytes, expected {_SIGNATURE_SIZE}")
    return Collateral(**told)


@lru_cache(maxsize=8)
def _tcb_info(text: str) -> TcbInfo:
    told = _signed_json(text, "tcb_info")
    return TcbInfo(
        _statement(told, "tcb_info"),
        fmspc=_hex(told, "tcb_info", "fmspc", FMSPC_SIZE),
        pce_id=_hex(told, "tcb_info", "pceId", PCE_ID_SIZE),
    )


@lru_cache(maxsize=8)
def _qe_identity(text: str) -> QeIdentity:
    told = _signed_json(text, "qe_identity")
    levels = told.get("tcbLevels")
    # Intel gives a quoting enclave one of three. `dcap-qvl` 0.7 takes "ConfigurationNeeded" for up to date.
    if not isinstance(levels, list) or not all(
        isinstance(level, dict) and level.get("tcbStatus") in _QE_STATUSES for level in levels
    ):
        raise _malformed(f"qe_identity: a level has a status that is none of {', '.join(_QE_STATUSES)}")
    return QeIdentity(_statement(told, "qe_identity"))


def _signed_json(text: str, what: str) -> strict_json.Object:
    """Intel adds fields as it likes, so unknown ones are passed over; doubled ones are refused."""
    try:
        return strict_json.parse(text.encode("ascii"))
    except strict_json.JsonRefused as error:
        raise _malformed(f"{what}: {error}") from error


def _statement(told: strict_json.Object, what: str) -> Statement:
    try:
        return Statement(
            kind=strict_json.text(told.get("id"), f"{what}: id"),
            version=strict_json.integer(told.get("version"), f"{what}: version", 0, 255),
            issued=_time(told, what, "issueDate"),
            next_update=_time(told, what, "nextUpdate"),
            evaluation=strict_json.integer(
                told.get("tcbEvaluationDataNumber"), f"{what}: tcbEvaluationDataNumber", 0, _MOST_EVALUATION
            ),
        )
    except strict_json.JsonRefused as error:
        raise _malformed(str(error)) from error


def _time(told: strict_json.Object, what: str, name: str) -> datetime:
    value = told.get(name)
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) and value.endswith("Z") else None
    except ValueError:
        found = None
    # ISO 8601 has many spellings, of which one is Intel's. Z is UTC.
    if found is None or found.strftime(_TIME) != value:
        raise _malformed(f"{what}: {name} is no time of the form 2026-01-31T12:00:00Z")
    return found


def _hex(told: strict_json.Object, what: str, name: str, size: int) -> bytes:
    """Intel writes upper case, in some places lower."""
    value = told.get(name)
    if not isinstance(value, str) or len(value) != 2 * size or not _HEX_IN_JSON.fullmatch(value):
        raise _malformed(f"{what}: {name} is not {size} bytes in hex")
    return bytes.fromhex(value)


def _malformed(what: str) -> MalformedEvidence:
    return MalformedEvidence(f"Intel's collateral cannot be read: {what}", code="malformed-collateral")
