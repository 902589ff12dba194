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

AWS_ROOTS: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        # CN=aws.nitro-enclaves, until 2049-10-28
        bytes.fromhex(
            "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
        ): "AWS Nitro Enclaves",
    }
)
"""Roots of AWS Nitro Enclaves: fingerprint → name."""

CONFIDENTIAL_SPACE_ROOTS: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        # CN=Confidential Space Root CA, until 2034-01-16
        bytes.fromhex(
            "148b293821bb0c6a317f413c8ba475814091cb22d49b9e3c94198db8e8f86c39"
        ): "Confidential Space",
    }
)
"""Roots of the tokens of Google's Confidential Space: fingerprint → name."""

INTEL_ROOTS: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        # CN=Intel SGX Root CA, until 2049-12-31
        bytes.fromhex(
            "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
        ): "Intel SGX Root CA",
    }
)
"""Roots of Intel's attestation keys and collateral: fingerprint → name."""

GCE_AK_ROOTS: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        # CN=EK/AK CA Root, OU=Google Cloud, until 2122-07-08
        bytes.fromhex(
            "594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2"
        ): "Google EK/AK CA Root",
    }
)
"""Roots of the attestation keys of TPMs in Google's virtual machines: fingerprint → name."""

AZURE_VTPM_ROOTS: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        # CN=Azure Virtual TPM Root Certificate Authority 2023, until 2048-06-01
        bytes.fromhex(
            "e6c596b17f8ffefba5c300f714cfb1260c6028704ecf7becc4ab5018efb00e95"
        ): "Azure Virtual TPM Root 2023",
    }
)
"""Roots of the attestation keys of TPMs in Azure's virtual machines: fingerprint → name."""
