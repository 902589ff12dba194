"""
What an authentic Azure machine says: the processor's claims, the TPM's, and the paravisor's about the
machine.

Claims are made only after the processor's signature, the hash of the paravisor's words in its report, and
the TPM's signature with the key in those words have all been checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from ..binding import Bound, same
from ..snp.claims import SnpClaims
from ..tdx.claims import TdxClaims
from ..vtpm.claims import TpmClaims
from .runtime import VmConfiguration

Processor = TypeVar("Processor", SnpClaims, TdxClaims)


@dataclass(frozen=True, slots=True)
class AzureClaims(Generic[Processor]):
    """Three witnesses, each vouched for by the one before."""

    hardware: Processor  # about the paravisor: its firmware is the measurement
    vm: VmConfiguration  # what the paravisor says about the machine
    user_data: bytes  # 64 bytes that the guest wrote, or none
    tpm: TpmClaims  # about the guest: its registers, and what it had the TPM sign
    ak_certified: bool  # whether Azure's certificates vouch for the TPM's key too

    @property
    def measurement(self) -> bytes:
        """Of the paravisor's firmware. What the guest has booted is in the TPM's registers."""
        return self.hardware.measurement

    def speaks_for(self, bound: Bound) -> bool:
        """Whether extraData of the TPM's quote is the binding; the processor's report is from the boot."""
        return same(self.tpm.extra_data, bound.digest)

    def carries(self, value: bytes) -> bool:
        """Whether extraData is exactly this value."""
        return same(self.tpm.extra_data, value)
