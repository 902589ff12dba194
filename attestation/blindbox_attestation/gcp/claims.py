"""
What an authentic Confidential Space token says, in words: the values that `policy.py` judges and that a
caller may look at. They are Google's verdict about the machine, not the hardware's evidence.

Claims are made only from a token whose signature leads to a pinned root.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ..binding import Bound, same
from .token import Token, to_base64url


@dataclass(frozen=True, slots=True)
class GcpClaims:
    """What Google says about a workload and the machine it runs on; a text that is not there is empty."""

    issuer: str
    audience: str
    issued_at: datetime
    expires_at: datetime
    nonces: tuple[str, ...]  # chosen by the workload
    software: str
    software_version: int  # of the Confidential Space image
    debug_status: str
    secure_boot: bool
    hardware: str
    tcb_status: str
    support_attributes: frozenset[str]
    image_digest: str  # "sha256:" and 64 hex digits
    image_reference: str
    environment_overrides: frozenset[str]
    command_overridden: bool
    subject: str
    project_id: str
    instance_id: str
    service_accounts: frozenset[str]

    @classmethod
    def of(cls, token: Token) -> GcpClaims:
        """The claims of a token that `chain.py` has found authentic."""
        return cls(**{name: getattr(token, name) for name in cls.__dataclass_fields__})

    @property
    def measurement(self) -> bytes:
        """The digest of the container image, 32 bytes; none if the token does not say."""
        return bytes.fromhex(self.image_digest.removeprefix("sha256:"))

    def speaks_for(self, bound: Bound) -> bool:
        """SPEC §2.1: base64url(B) is among the nonces."""
        return self.carries(to_base64url(bound.digest))

    def carries(self, value: bytes) -> bool:
        """Whether one of the nonces is this text, given as its bytes."""
        return True in [same(nonce.encode("ascii"), value) for nonce in self.nonces]
