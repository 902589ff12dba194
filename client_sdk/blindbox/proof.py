"""What `response.blindbox` tells: which machine answered, and what it had proved."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blindbox_attestation.steps import Step

    from .session_key import ProvenKey


@dataclass(frozen=True, slots=True, repr=False)
class Proof:
    """Who answered. Every response that `blindbox` returns carries one as `response.blindbox`."""

    origin: str
    platform: str
    measurement: str  # hexadecimal
    evidence_id: str  # hexadecimal, SPEC §2.1
    boot_id: str  # hexadecimal; also the authority inside the seal
    verified_at: datetime
    not_after: datetime
    simulated: bool
    steps: tuple[Step, ...]  # SPEC §4: what was checked, and what did not apply

    @classmethod
    def of(cls, key: ProvenKey) -> Proof:
        verified = key.verified
        return cls(
            origin=key.origin,
            platform=verified.platform,
            measurement=verified.measurement.hex(),
            evidence_id=verified.evidence_id.hex(),
            boot_id=verified.boot_id.hex(),
            verified_at=verified.verified_at,
            not_after=key.usable_until,
            simulated=verified.simulated,
            steps=verified.steps,
        )

    def __repr__(self) -> str:
        nothing = "SIMULATED (proves nothing), " if self.simulated else ""
        return (
            f"<Proof {nothing}platform={self.platform}, measurement={self.measurement}, "
            f"evidence_id={self.evidence_id[:16]}…, verified_at={self.verified_at.isoformat()}, "
            f"not_after={self.not_after.isoformat()}, simulated={self.simulated}>"
        )
