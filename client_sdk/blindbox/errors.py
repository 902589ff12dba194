"""
What can go wrong on the caller's side of the channel, beside what `blindbox_attestation.errors` tells.

AttestationError (shared)
├── NoPolicy            nobody said what this origin must prove
├── NoEvidence          it has no proof to show
└── CollateralUnavailable  (UntrustedEvidence)   what its vendor publishes could not be had, and is missed
UnreadableProof         (ValueError)             a saved proof breaks its format, or holds nothing to judge
SealingError (shared)
├── UnsealedAnswer      (ConnectionError)        somebody answered a sealed call in the clear
├── TruncatedResponse   (ChunkedEncodingError)   the answer stopped before its authenticated end
└── WrongAnswer                                  sealed for us, but the answer to another question
ForeignRedirect         (RequestException)       the enclave points somewhere else
OutcomeUnknown          (ConnectionError)        the enclave restarted; the call may or may not have run
ResponseTooLarge        (RequestException)       more than `max_response_bytes`
StalledResponse         (ConnectionError, ReadTimeout)  silence in the middle of an answer
Refused                 the enclave, which has proved itself, says no; in its own words
JobFailed               a fine-tuning job ended without a model
└── JobCancelled        because somebody cancelled it

Errors about the network are also the `requests` errors in brackets, so that code written for `requests`
catches them. `AttestationError` and a tampered message (`SealingError` itself) are not: a retry loop must
not swallow them. No message, argument or cause here holds a prompt, an answer, a path, a header or a token.
"""

from __future__ import annotations

from requests import Response
from requests import exceptions as outer

from blindbox_attestation.errors import (
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


class NoPolicy(AttestationError):
    """Nobody has said what this origin must prove, so nothing is sent to it."""

    code = "no-policy"

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"there is no policy for {origin}, so nothing was sent to it. Say what it must prove:\n"
            f"    blindbox trust {origin} --policy FILE\n"
            f"or pass policy=… with the call (SnpPolicy with the measurements of the release you expect)."
        )


class NoEvidence(AttestationError):
    """What answers at this origin shows no attestation document."""

    code = "no-evidence"


class CollateralUnavailable(UntrustedEvidence):
    """
    What the vendor publishes about the machine was not sent, and could not be fetched: so nothing is proved.

    `code` is what `verify` says is missing; the message tells who was asked, and why there is no answer.
    """


class UnreadableProof(BlindBoxError, ValueError):
    """A saved proof breaks its format, or holds nothing that could be judged again."""


class UnsealedAnswer(SealingError, outer.ConnectionError):
    """
    A sealed call was answered in the clear; the body is not shown, for anybody on the way could have written
    it.

    `status` and `retry_after` (seconds, or None) are hints from the network and prove nothing.
    """

    def __init__(self, status: int, *, retry_after: float | None = None) -> None:
        self.status = status
        self.retry_after = retry_after
        super().__init__(
            f"a sealed call was answered in the clear with status {status}: {_HINTS.get(status, _HINT)}"
        )


_HINT = "its body is not shown; is there a proxy or another server in front of the enclave?"
_HINTS = {
    400: "the sealed request could not be opened there, also after proving the machine again",
    408: "the request did not arrive in time",
    413: "the request is larger than is accepted there",
    503: "too busy; try again later",
}


class TruncatedResponse(TruncatedMessage, outer.ChunkedEncodingError):
    """The answer stopped before its authenticated end. What came of it so far is genuine, but not all."""


class WrongAnswer(SealingError):
    """A well-sealed answer that carries another request's id."""


class ForeignRedirect(BlindBoxError, outer.RequestException):
    """
    The enclave redirects to another origin, which has proved nothing: not followed.

    The redirecting answer itself is genuine; it is in `response`, and the request nowhere. To go there, give
    that origin a policy and ask it yourself.
    """

    def __init__(self, message: str, *, response: Response) -> None:
        super().__init__(message, response=response)
        self.request = None


class OutcomeUnknown(BlindBoxError, outer.ConnectionError):
    """The call was sent, and whether it ran is unknown. It is not sent a second time; the next call works."""


class ResponseTooLarge(BlindBoxError, outer.RequestException):
    """A non-streaming answer is larger than `max_response_bytes`. Use stream=True for large answers."""


class StalledResponse(outer.ConnectionError, outer.ReadTimeout):
    """Nothing more of the answer arrived within the limit between bytes, or within the one for all."""


class Refused(BlindBoxError):
    """
    The enclave refuses, or cannot just now: the message is its own, and holds nothing of what was sent.

    `param` is the option at fault, by its keyword here, as it is in the message (`wording.py`); `code` one
    stable word (docs/api.md); `retry_after` seconds, if any were named.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.param = param
        self.message = message
        self.retry_after = retry_after
        super().__init__(message)


class JobFailed(BlindBoxError):
    """A fine-tuning job ended without a model. The message is the enclave's, and names no contents."""

    def __init__(self, message: str, *, job: str, code: str | None = None, param: str | None = None) -> None:
        self.job = job
        self.code = code
        self.param = param
        self.message = message
        super().__init__(message)


class JobCancelled(JobFailed):
    """Somebody who has the tenant's token cancelled the job."""


# The names of blindbox 0.2.1.
AttestationException = AttestationError
NotAnEnclaveError = PlatformNotAccepted
InvalidEnclaveCode = PolicyRefused
NonCompliantUvm = MeasurementMismatch
FalseAttestationReport = UnboundKey
DebugMode = DebugAllowed
WrongAttester = UntrustedEvidence

__all__ = [
    "AttestationError",
    "AttestationException",
    "BlindBoxError",
    "CollateralUnavailable",
    "DebugAllowed",
    "DebugMode",
    "FalseAttestationReport",
    "ForeignRedirect",
    "ForgedReceipt",
    "InvalidEnclaveCode",
    "InvalidPolicy",
    "JobCancelled",
    "JobFailed",
    "MalformedEvidence",
    "MalformedMessage",
    "MeasurementMismatch",
    "NoEvidence",
    "NoPolicy",
    "NonCompliantUvm",
    "NotAnEnclaveError",
    "OutcomeUnknown",
    "PlatformNotAccepted",
    "PolicyRefused",
    "ReceiptMismatch",
    "ReceiptRefused",
    "Refused",
    "ResponseTooLarge",
    "RevokedEvidence",
    "SealingError",
    "StalledResponse",
    "TcbTooOld",
    "TruncatedMessage",
    "TruncatedResponse",
    "UnboundKey",
    "UnreadableProof",
    "UnreadableReceipt",
    "UnsealedAnswer",
    "UntrustedEvidence",
    "WrongAnswer",
    "WrongAttester",
]
