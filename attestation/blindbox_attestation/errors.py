"""
What can go wrong, as a tree:

BlindBoxError
├── AttestationError           the machine did not prove itself
│   ├── MalformedEvidence      we could not read what it sent
│   ├── UntrustedEvidence      no pinned root vouches for it
│   │   └── RevokedEvidence    its vendor has withdrawn a certificate, or nothing current says otherwise
│   ├── UnboundKey             genuine, but about another key or an older question
│   └── PolicyRefused          genuine, but not what the policy asks for
│       ├── MeasurementMismatch   another program was launched
│       ├── TcbTooOld             firmware or microcode below the floor
│       ├── DebugAllowed          the host could read the guest's memory
│       └── PlatformNotAccepted   the policy does not name this platform or family
├── ReceiptRefused             a training receipt does not hold, though its machine may be genuine
│   ├── UnreadableReceipt      it breaks its format
│   ├── ForgedReceipt          the machine it brings along did not sign it
│   └── ReceiptMismatch        it holds, and is about another file than the one at hand
├── InvalidPolicy              a policy that could not mean what it says
└── SealingError               a sealed message was altered, cut short, or meant for another key
    ├── MalformedMessage       a sealed or binary message breaks its format
    └── TruncatedMessage       it ended before its authenticated end

Every `AttestationError` carries a stable `code` (listed in SPEC.md §4) and the steps passed before it, every
`ReceiptRefused` a code of SPEC.md §8.
Messages may hold measurements, versions and fingerprints; never a prompt, an answer, a key or a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .steps import Step


class BlindBoxError(Exception):
    """Anything BlindBox itself refuses or fails at."""


class AttestationError(BlindBoxError):
    """
    The machine did not prove itself.

    `code` names the reason in one stable word; `steps` are the verification steps walked so far,
    the failed one last (filled in by `verify`).
    """

    code: str = "attestation"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.steps: tuple[Step, ...] = ()


class MalformedEvidence(AttestationError):
    """What the machine sent could not be read."""

    code = "malformed-evidence"


class UntrustedEvidence(AttestationError):
    """No pinned root vouches for the evidence."""

    code = "untrusted-evidence"


class RevokedEvidence(UntrustedEvidence):
    """A certificate was withdrawn by its vendor, or no current revocation list says otherwise."""

    code = "revoked"


class UnboundKey(AttestationError):
    """The evidence is genuine, but speaks about another key or answers an older question."""

    code = "unbound-key"


class PolicyRefused(AttestationError):
    """The evidence is genuine, but not what the policy asks for."""

    code = "policy-refused"


class MeasurementMismatch(PolicyRefused):
    """Another program was launched than the policy names."""

    code = "measurement-mismatch"


class TcbTooOld(PolicyRefused):
    """Firmware or microcode is below the policy's floor."""

    code = "tcb-too-old"


class DebugAllowed(PolicyRefused):
    """The guest was launched so that its host may read its memory."""

    code = "debug-allowed"


class PlatformNotAccepted(PolicyRefused):
    """The policy does not name this platform, or this processor family."""

    code = "platform-not-accepted"


class ReceiptRefused(BlindBoxError):
    """
    A training receipt does not hold. Its machine may be genuine: what is wrong with that is an
    `AttestationError`.

    `code` names the reason in one stable word.
    """

    code: str = "receipt"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class UnreadableReceipt(ReceiptRefused, ValueError):
    """The receipt breaks its format."""

    code = "malformed-receipt"


class ForgedReceipt(ReceiptRefused):
    """The machine whose document came with the receipt did not sign it."""

    code = "bad-receipt-signature"


class ReceiptMismatch(ReceiptRefused):
    """The receipt holds, and is about another file than the one at hand."""

    code = "adapter-mismatch"


class InvalidPolicy(BlindBoxError, ValueError):
    """A policy that could not mean what it says: an empty allow-list, an unknown key, a wrong length."""


class SealingError(BlindBoxError):
    """A sealed message was altered, cut short, or meant for another key."""


class MalformedMessage(SealingError):
    """A sealed or binary message breaks its format."""


class TruncatedMessage(SealingError):
    """A sealed message ended before its authenticated end."""
