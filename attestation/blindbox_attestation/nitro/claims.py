"""
What an authentic Nitro document says, in words: the values that `policy.py` judges and that a caller may
look at.

Claims are made only from a document whose signature leads to a pinned root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ..binding import Bound, same
from .document import PCR_SIZE, Document

ZERO: Final = bytes(PCR_SIZE)


@dataclass(frozen=True, slots=True)
class NitroClaims:
    """What the Nitro hypervisor says about an enclave."""

    measurement: bytes  # PCR0, 48 bytes: SHA-384 of the image
    pcrs: Mapping[int, bytes]  # 48 bytes each
    module_id: str  # instance and enclave
    timestamp: datetime
    user_data: bytes  # chosen by the enclave, as the next two; empty if there is none
    nonce: bytes
    public_key: bytes

    @classmethod
    def of(cls, document: Document) -> NitroClaims:
        """The claims of a document that `chain.py` has found authentic."""
        return cls(
            measurement=document.pcrs[0],
            pcrs=document.pcrs,
            module_id=document.module_id,
            timestamp=document.timestamp,
            user_data=document.user_data,
            nonce=document.nonce,
            public_key=document.public_key,
        )

    def speaks_for(self, bound: Bound) -> bool:
        """SPEC §2.1: B, the nonce, and the digest of the keys, each in its place."""
        return (
            same(self.user_data, bound.digest)
            and same(self.nonce, bound.nonce)
            and same(self.public_key, hashlib.sha384(bound.key_config).digest())
        )

    def carries(self, value: bytes) -> bool:
        return same(self.nonce, value)


def pcr_of(text: str) -> bytes:
    """PCR3 of an IAM role's ARN, PCR4 of an instance id: zeros, extended by the text itself."""
    return hashlib.sha384(ZERO + text.encode("ascii")).digest()
