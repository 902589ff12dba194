"""
Vendors' roots, pinned by the SHA-256 of their whole DER.

A root is a figure, not a file: the certificate itself arrives with the evidence, and counts only if its
fingerprint is written here. Tests pass roots of their own as an argument; no file and no setting can.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

AMD_ROOTS: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        # CN=ARK-Milan, until 2045-10-22
        bytes.fromhex("69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"): "Milan",
        # CN=ARK-Genoa, until 2047-01-26
        bytes.fromhex("4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"): "Genoa",
        # CN=ARK-Turin, until 2048-05-15
        bytes.fromhex("1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"): "Turin",
    }
)
"""AMD root keys (ARK): fingerprint → processor family."""
