"""What a verifier says of a case, in one word."""

from __future__ import annotations

from collections.abc import Callable

from blindbox_attestation.errors import AttestationError


def verdict(judge: Callable[[], object]) -> str:
    """The code of the refusal that this ends with, or "accepted"."""
    try:
        judge()
    except AttestationError as error:
        return error.code
    return "accepted"
