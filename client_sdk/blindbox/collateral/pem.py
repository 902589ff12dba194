"""
PEM (RFC 7468), as vendors' services send certificates: from text to DER and back. Nothing is verified here.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from typing import Final

_BLOCK: Final = re.compile(rb"\s*-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----\s*")


def certificates(text: bytes) -> list[bytes]:
    """The DER of each certificate in `text`, which holds nothing else. Raises ValueError."""
    found: list[bytes] = []
    at = 0
    while at < len(text):
        block = _BLOCK.match(text, at)
        if block is None:
            raise ValueError("what was sent is no list of certificates in PEM")
        found.append(b64decode(b"".join(block[1].split()), validate=True))
        at = block.end()
    return found


def encoded(der: bytes) -> str:
    """One certificate in the usual spelling, lines of 64 characters."""
    text = b64encode(der).decode("ascii")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----\n"))
