"""
How a machine proves itself, and how we speak to it: bytes, time and nonces come in, proofs or errors come
out.

Nothing here opens a socket or a file, or asks what time it is. `verify` is the judge (SPEC §4), `Policy` what
it judges by; the sealed channel is in `channel`.
"""

from __future__ import annotations

from .errors import (
    AttestationError,
    BlindBoxError,
    DebugAllowed,
    InvalidPolicy,
    MalformedEvidence,
    MalformedMessage,
    MeasurementMismatch,
    PlatformNotAccepted,
    PolicyRefused,
    RevokedEvidence,
    SealingError,
    TcbTooOld,
    TruncatedMessage,
    UnboundKey,
    UntrustedEvidence,
)
from .policy import Policy
from .simulated import UnsafeSimulatedPolicy, UnsafeSimulationWarning
from .snp.policy import MilanWarning, SnpPolicy
from .snp.tcb import Tcb
from .verify import Step, Verified, verify

__all__ = [
    "AttestationError",
    "BlindBoxError",
    "DebugAllowed",
    "InvalidPolicy",
    "MalformedEvidence",
    "MalformedMessage",
    "MeasurementMismatch",
    "MilanWarning",
    "PlatformNotAccepted",
    "Policy",
    "PolicyRefused",
    "RevokedEvidence",
    "SealingError",
    "SnpPolicy",
    "Step",
    "Tcb",
    "TcbTooOld",
    "TruncatedMessage",
    "UnboundKey",
    "UnsafeSimulatedPolicy",
    "UnsafeSimulationWarning",
    "UntrustedEvidence",
    "Verified",
    "verify",
]
