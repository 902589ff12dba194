"""
AMD SEV-SNP attestation reports: from bytes to a `Report`, and back.

This module reads; it does not judge. Whether a report is genuine is decided in `chain.py`, whether it is
acceptable in `policy.py`. Layout: SPEC §4.1, AMD 56860, table ATTESTATION_REPORT.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from ..errors import MalformedEvidence
from .tcb import family_of

REPORT_SIZE: Final = 0x4A0
SIGNED_SIZE: Final = 0x2A0
VERSIONS: Final = range(2, 6)
ECDSA_P384_SHA384: Final = 1

KEY_VCEK: Final = 0
KEY_VLEK: Final = 1
KEY_NAMES: Final = {KEY_VCEK: "vcek", KEY_VLEK: "vlek"}

_LAYOUT: Final = (
    ("version", "I"),  # 0x000
    ("guest_svn", "I"),
    ("policy", "Q"),
    ("family_id", "16s"),
    ("image_id", "16s"),
    ("vmpl", "I"),
    ("signature_algorithm", "I"),
    ("current_tcb", "8s"),
    ("platform_info", "Q"),
    ("flags", "I"),
    ("reserved", "4s"),
    ("report_data", "64s"),  # 0x050
    ("measurement", "48s"),
    ("host_data", "32s"),
    ("id_key_digest", "48s"),
    ("author_key_digest", "48s"),
    ("report_id", "32s"),
    ("report_id_ma", "32s"),
    ("reported_tcb", "8s"),  # 0x180
    ("cpuid", "3s"),
    ("reserved", "21s"),
    ("chip_id", "64s"),
    ("committed_tcb", "8s"),
    ("current_firmware", "3s"),
    ("reserved", "1s"),
    ("committed_firmware", "3s"),
    ("reserved", "1s"),
    ("launch_tcb", "8s"),  # 0x1F0
    ("launch_mitigations", "8s"),
    ("current_mitigations", "8s"),
    ("reserved", "152s"),
    ("signature", "512s"),  # 0x2A0
)
_BYTES: Final = struct.Struct("<" + "".join(size for _, size in _LAYOUT))
assert _BYTES.size == REPORT_SIZE


@dataclass(frozen=True, slots=True)
class Report:
    """A report as the chip wrote it. Nothing here has been verified."""

    version: int
    guest_svn: int
    policy: int  # 64 bits, see policy.py
    family_id: bytes  # 16 bytes, of the ID block
    image_id: bytes  # 16 bytes, of the ID block
    vmpl: int
    signature_algorithm: int
    current_tcb: bytes  # 8 bytes as stored, see tcb.py
    platform_info: int
    flags: int  # bit 0 author key, 1 mask_chip_key, 4:2 kind of signing key
    report_data: bytes  # 64 bytes, chosen by the guest: see binding.py
    measurement: bytes  # 48 bytes, SHA-384 of the launched guest
    host_data: bytes  # 32 bytes, chosen by the host
    id_key_digest: bytes  # 48 bytes
    author_key_digest: bytes  # 48 bytes
    report_id: bytes  # 32 bytes
    report_id_ma: bytes  # 32 bytes, FF without a migration agent
    reported_tcb: bytes  # 8 bytes: the level the signing key is derived from
    cpuid: bytes  # family, model, stepping; zero in version 2
    chip_id: bytes  # 64 bytes, zero if masked
    committed_tcb: bytes  # 8 bytes: the level below which the firmware cannot go back
    current_firmware: bytes  # build, minor, major
    committed_firmware: bytes  # build, minor, major
    launch_tcb: bytes  # 8 bytes: the level when the guest was launched
    launch_mitigations: bytes  # 8 bytes, version 5
    current_mitigations: bytes  # 8 bytes, version 5
    signature: bytes  # 512 bytes as stored, see chain.py

    @classmethod
    def parse(cls, data: bytes) -> Report:
        if len(data) != REPORT_SIZE:
            raise MalformedEvidence(
                f"an SNP report is {REPORT_SIZE} bytes, this is {len(data)}", code="malformed-report"
            )
        values = [(name, value) for (name, _), value in zip(_LAYOUT, _BYTES.unpack(data), strict=True)]
        report = cls(**{name: value for name, value in values if name != "reserved"})
        report._check_form()
        if any(any(value) for name, value in values if name == "reserved"):
            raise MalformedEvidence("reserved bytes of the report are not zero", code="reserved-bits")
        return report

    def _check_form(self) -> None:
        if self.version not in VERSIONS:
            raise MalformedEvidence(
                f"SNP report version {self.version}, this verifier knows {VERSIONS[0]} to {VERSIONS[-1]}",
                code="unsupported-report-version",
            )
        if self.signature_algorithm != ECDSA_P384_SHA384:
            raise MalformedEvidence(
                f"SNP signature algorithm {self.signature_algorithm}, expected 1 (ECDSA P-384 with SHA-384)",
                code="unsupported-signature-algorithm",
            )
        if self.flags >> 5:
            raise MalformedEvidence(f"reserved flags are set: {self.flags:#x}", code="reserved-bits")
        if self.version < 3 and any(self.cpuid):
            raise MalformedEvidence("a version 2 report has no CPUID", code="reserved-bits")
        if self.version < 5 and any(self.launch_mitigations + self.current_mitigations):
            raise MalformedEvidence(
                f"a version {self.version} report has no mitigations", code="reserved-bits"
            )

    def encode(self) -> bytes:
        """The 1184 bytes of this report."""
        return _BYTES.pack(*(b"" if name == "reserved" else getattr(self, name) for name, _ in _LAYOUT))

    @property
    def signing_key(self) -> int:
        """Flags 4:2: 0 VCEK, 1 VLEK, 7 none."""
        return self.flags >> 2 & 7

    @property
    def family(self) -> str | None:
        """The processor family that the report names itself: none in version 2, or an unknown one."""
        if self.version < 3:
            return None
        return family_of(self.cpuid) or f"unknown (CPUID {self.cpuid[0]:02x}h/{self.cpuid[1]:02x}h)"
