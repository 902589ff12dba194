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
    from blindbox_data import DataError

    from . import receipt, requests
    from .adapter import SealedAdapter
    from .collateral import Collateral
    from .errors import (
        CollateralUnavailable,
        ForeignRedirect,
        JobCancelled,
        JobFailed,
        NoEvidence,
        NoPolicy,
        OutcomeUnknown,
        Refused,
        ResponseTooLarge,
        StalledResponse,
        TruncatedResponse,
        UnreadableProof,
        UnsealedAnswer,
    )
    from .finetuning import finetune
    from .job_handle import Job, job, jobs
    from .metrics import Metrics
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
    "DataError": "blindbox_data",
    "EventRule": "blindbox_attestation",
    "ForeignRedirect": "blindbox.errors",
    "GcpPolicy": "blindbox_attestation",
    "InvalidPolicy": "blindbox.errors",
    "Job": "blindbox.job_handle",
    "JobCancelled": "blindbox.errors",
    "JobFailed": "blindbox.errors",
    "MeasuredBoot": "blindbox_attestation",
    "Metrics": "blindbox.metrics",
    "NitroPolicy": "blindbox_attestation",
    "NoEvidence": "blindbox.errors",
    "NoPolicy": "blindbox.errors",
    "OpenAI": "blindbox.openai",
    "OutcomeUnknown": "blindbox.errors",
    "Policy": "blindbox_attestation",
    "Proof": "blindbox.proof",
    "Refused": "blindbox.errors",
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
    "finetune": "blindbox.finetuning",
    "job": "blindbox.job_handle",
    "jobs": "blindbox.job_handle",
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
    "DataError",
    "EventRule",
    "ForeignRedirect",
    "GcpPolicy",
    "InvalidPolicy",
    "Job",
    "JobCancelled",
    "JobFailed",
    "MeasuredBoot",
    "Metrics",
    "NitroPolicy",
    "NoEvidence",
    "NoPolicy",
    "OpenAI",
    "OutcomeUnknown",
    "Policy",
    "Proof",
    "Refused",
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
    "finetune",
    "job",
    "jobs",
    "receipt",
    "requests",
]


def __getattr__(name: str) -> Any:
    if name in ("receipt", "requests"):
        return import_module(f"blindbox.{name}")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'blindbox' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
