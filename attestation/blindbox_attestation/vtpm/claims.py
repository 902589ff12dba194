"""
What an authentic quote says, in words: the values that `policy.py` judges and that a caller may look at.

Claims are made only from a quote whose signature was checked with a key that somebody vouches for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..binding import Bound, same
from .boot import Measured
from .chain import Instance
from .evidence import TpmEvidence


@dataclass(frozen=True, slots=True)
class TpmClaims:
    """What a TPM says about the machine it is in. On an ordinary virtual machine it is the host's own TPM."""

    measurement: bytes  # over the values of all quoted registers, as the TPM made it
    measured: Measured  # the registers, and the log they were replayed from
    extra_data: bytes  # chosen by whoever asked for the quote
    ak_sha256: bytes  # of the attestation key's SubjectPublicKeyInfo, as a policy pins it
    instance: Instance | None  # by Google's certificate; None for a pinned key
    clock: int  # milliseconds the TPM has been running
    reset_count: int  # how often it was switched on
    restart_count: int  # how often it was woken up since
    clock_is_safe: bool
    firmware_version: int  # in the vendor's own counting

    @classmethod
    def of(cls, evidence: TpmEvidence, measured: Measured, instance: Instance | None) -> TpmClaims:
        """The claims of a quote that was found authentic."""
        attest = evidence.quote.attest
        return cls(
            measurement=attest.digest,
            measured=measured,
            extra_data=attest.extra_data,
            ak_sha256=hashlib.sha256(evidence.ak_public).digest(),
            instance=instance,
            clock=attest.clock,
            reset_count=attest.reset_count,
            restart_count=attest.restart_count,
            clock_is_safe=attest.safe,
            firmware_version=attest.firmware_version,
        )

    def speaks_for(self, bound: Bound) -> bool:
        """SPEC §2.1: extraData is B, and nothing besides."""
        return same(self.extra_data, bound.digest)

    def carries(self, value: bytes) -> bool:
        return same(self.extra_data, value)
