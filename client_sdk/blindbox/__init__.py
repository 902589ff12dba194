"""
BlindBox: `requests` for machines you do not own.

    import blindbox.requests as requests
    requests.post("http://HOST:80/test", json={"input_text": "…"})

Before the first byte of a call leaves, the machine has proved which program runs in it; the call is then
sealed to a key that only that machine holds. `blindbox.requests` has the shape of `requests`; `Policy` says
what must be proved.

Names are loaded when they are first used, so that `import blindbox` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blindbox_attestation.azure.policy import AzureSnpPolicy, AzureTdxPolicy
    from blindbox_attestation.errors import AttestationError, BlindBoxError, InvalidPolicy, SealingError
    from blindbox_attestation.gcp.policy import GcpPolicy
    from blindbox_attestation.nitro.policy import NitroPolicy
    from blindbox_attestation.policy import AllOf, AnyOf, Policy
    from blindbox_attestation.simulated import UnsafeSimulatedPolicy, UnsafeSimulationWarning
    from blindbox_attestation.snp.policy import SnpPolicy, Tcb
    from blindbox_attestation.tdx.policy import TdxPolicy
    from blindbox_attestation.vtpm.boot import EventRule, MeasuredBoot
    from blindbox_attestation.vtpm.policy import TpmPolicy

    from . import requests
    from .adapter import SealedAdapter
    from .collateral import Collateral
    from .errors import (
        CollateralUnavailable,
        ForeignRedirect,
        NoEvidence,
        NoPolicy,
        OutcomeUnknown,
        ResponseTooLarge,
        StalledResponse,
        TruncatedResponse,
        UnreadableProof,
        UnsealedAnswer,
    )
    from .openai import AsyncOpenAI, OpenAI
    from .proof import Proof
    from .requests import SecureSession, Session

__version__ = "1.0.0"

_HOMES = {
    "AllOf": "blindbox_attestation",
    "AnyOf": "blindbox_attestation",
    "AsyncOpenAI": "blindbox.openai",
    "AttestationError": "blindbox.errors",
    "AzureSnpPolicy": "blindbox_attestation",
    "AzureTdxPolicy": "blindbox_attestation",
    "BlindBoxError": "blindbox.errors",
    "Collateral": "blindbox.collateral",
    "CollateralUnavailable": "blindbox.errors",
    "EventRule": "blindbox_attestation",
    "ForeignRedirect": "blindbox.errors",
    "GcpPolicy": "blindbox_attestation",
    "InvalidPolicy": "blindbox.errors",
    "MeasuredBoot": "blindbox_attestation",
    "NitroPolicy": "blindbox_attestation",
    "NoEvidence": "blindbox.errors",
    "NoPolicy": "blindbox.errors",
    "OpenAI": "blindbox.openai",
    "OutcomeUnknown": "blindbox.errors",
    "Policy": "blindbox_attestation",
    "Proof": "blindbox.proof",
    "ResponseTooLarge": "blindbox.errors",
    "SealedAdapter": "blindbox.adapter",
    "SealingError": "blindbox.errors",
    "SecureSession": "blindbox.requests",
    "Session": "blindbox.requests",
    "SnpPolicy": "blindbox_attestation",
    "StalledResponse": "blindbox.errors",
    "Tcb": "blindbox_attestation",
    "TdxPolicy": "blindbox_attestation",
    "TpmPolicy": "blindbox_attestation",
    "TruncatedResponse": "blindbox.errors",
    "UnreadableProof": "blindbox.errors",
    "UnsafeSimulatedPolicy": "blindbox_attestation",
    "UnsafeSimulationWarning": "blindbox_attestation",
    "UnsealedAnswer": "blindbox.errors",
}

__all__ = [
    "AllOf",
    "AnyOf",
    "AsyncOpenAI",
    "AttestationError",
    "AzureSnpPolicy",
    "AzureTdxPolicy",
    "BlindBoxError",
    "Collateral",
    "CollateralUnavailable",
    "EventRule",
    "ForeignRedirect",
    "GcpPolicy",
    "InvalidPolicy",
    "MeasuredBoot",
    "NitroPolicy",
    "NoEvidence",
    "NoPolicy",
    "OpenAI",
    "OutcomeUnknown",
    "Policy",
    "Proof",
    "ResponseTooLarge",
    "SealedAdapter",
    "SealingError",
    "SecureSession",
    "Session",
    "SnpPolicy",
    "StalledResponse",
    "Tcb",
    "TdxPolicy",
    "TpmPolicy",
    "TruncatedResponse",
    "UnreadableProof",
    "UnsafeSimulatedPolicy",
    "UnsafeSimulationWarning",
    "UnsealedAnswer",
    "requests",
]


def __getattr__(name: str) -> Any:
    if name == "requests":
        return import_module("blindbox.requests")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'blindbox' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
