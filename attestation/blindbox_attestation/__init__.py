"""
How a machine proves itself, and how we speak to it: bytes, time and nonces come in, proofs or errors come
out.

Nothing here opens a socket or a file, or asks what time it is. `verify` is the judge (SPEC §4), `Policy` what
it judges by; the sealed channel is in `channel`.
"""

from __future__ import annotations

from .azure.policy import AzureSnpPolicy, AzureTdxPolicy
from .errors import (
    AttestationError,
    BlindBoxError,
    DebugAllowed,
    ForgedReceipt,
    InvalidPolicy,
    MalformedEvidence,
    MalformedMessage,
    MeasurementMismatch,
    PlatformNotAccepted,
    PolicyRefused,
    ReceiptMismatch,
    ReceiptRefused,
    RevokedEvidence,
    SealingError,
    TcbTooOld,
    TruncatedMessage,
    UnboundKey,
    UnreadableReceipt,
    UntrustedEvidence,
)
from .gcp.policy import GcpPolicy
from .nitro.policy import NitroPolicy
from .policy import AllOf, AnyOf, Policy
from .receipt import Receipt, VerifiedReceipt, verify_receipt
from .simulated import UnsafeSimulatedPolicy, UnsafeSimulationWarning
from .snp.policy import MilanWarning, SnpPolicy
from .snp.tcb import Tcb
from .tdx.policy import TdxPolicy
from .verify import Step, Verified, verify, verify_kept
from .vtpm.boot import EventRule, MeasuredBoot
from .vtpm.policy import TpmPolicy

__all__ = [
    "AllOf",
    "AnyOf",
    "AttestationError",
    "AzureSnpPolicy",
    "AzureTdxPolicy",
    "BlindBoxError",
    "DebugAllowed",
    "EventRule",
    "ForgedReceipt",
    "GcpPolicy",
    "InvalidPolicy",
    "MalformedEvidence",
    "MalformedMessage",
    "MeasuredBoot",
    "MeasurementMismatch",
    "MilanWarning",
    "NitroPolicy",
    "PlatformNotAccepted",
    "Policy",
    "PolicyRefused",
    "Receipt",
    "ReceiptMismatch",
    "ReceiptRefused",
    "RevokedEvidence",
    "SealingError",
    "SnpPolicy",
    "Step",
    "Tcb",
    "TcbTooOld",
    "TdxPolicy",
    "TpmPolicy",
    "TruncatedMessage",
    "UnboundKey",
    "UnreadableReceipt",
    "UnsafeSimulatedPolicy",
    "UnsafeSimulationWarning",
    "UntrustedEvidence",
    "Verified",
    "VerifiedReceipt",
    "verify",
    "verify_kept",
    "verify_receipt",
]
