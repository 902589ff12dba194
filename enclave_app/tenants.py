"""
Who is asking: a token names a tenant, and nothing of the token is kept.

From the token come an id, under which the tenant's things are found, and a key, under which they are
sealed (SPEC §6). Two HKDF labels keep them apart: knowing the id, which is a folder's name, says nothing
about the key. Without the token a tenant's files cannot be read, not even by this program.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .refusals import NotAuthenticated

_BEARER = re.compile(r"[Bb]earer +([!-~]{16,512}) *")


@dataclass(frozen=True, slots=True)
class Tenant:
    """One caller, as long as a request of theirs lasts, or a job runs or waits."""

    id: str  # 64 hexadecimal digits
    key: bytes = field(repr=False)  # 32 bytes, seals what is stored

    @classmethod
    def of(cls, token: str) -> Tenant:
        """The tenant a token names (SPEC §6)."""
        secret = token.encode("ascii")
        return cls(
            id=_derive(secret, b"blindbox/tenant-id/v1").hex(), key=_derive(secret, b"blindbox/tenant-key/v1")
        )


def tenant_from(authorization: str | None) -> Tenant:
    """The tenant of an `Authorization` field (RFC 6750 §2.1)."""
    if authorization is None:
        raise NotAuthenticated(
            "No tenant token. Send 'Authorization: Bearer TOKEN' inside the sealed request; "
            "blindbox.requests does so by itself.",
            code="missing_token",
        )
    found = _BEARER.fullmatch(authorization)
    if found is None:
        raise NotAuthenticated(
            "The Authorization field is not 'Bearer TOKEN' with a token of 16 to 512 visible characters.",
            code="invalid_token",
        )
    return Tenant.of(found[1])


def _derive(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=info).derive(secret)
