"""
The attestation report of Azure's paravisor (the "HCL"): from bytes to an `Hcl`, and back.

The paravisor asks the processor for a report once, at boot, and keeps it in NV index 0x01400001 of the TPM
that it emulates. Around the processor's report is a header of the paravisor's own, and after it a JSON
text, of which the report carries the hash (`runtime.py`). The header is signed by nobody: every field of it
has one possible value here, or is caught by that hash. Layout: SPEC §4.5 (Microsoft, "Azure confidential
VMs, guest attestation design"; the structures `AttestationReport` and `IgvmAttestRequestData` of OpenVMM).

This module reads; it does not judge.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from ..errors import MalformedEvidence
from ..snp.report import REPORT_SIZE as SNP_REPORT_SIZE

VERSIONS: Final = (1, 2)
SNP: Final = 2
TDX: Final = 4
HASHES: Final = {1: "sha256", 2: "sha384", 3: "sha512"}
NV_SIZE: Final = 2600  # of the NV index, and so of every blob

TD_REPORT_SIZE: Final = 1024
_REPORT_SIZES: Final = {SNP: SNP_REPORT_SIZE, TDX: TD_REPORT_SIZE}
PROCESSORS: Final = {SNP: "SEV-SNP", TDX: "TDX"}

_MAGIC: Final = b"HCLA"
_ATTEST_REQUEST: Final = 2
_REQUEST_DATA_VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sIIII12s")  # magic, version, size, request type, status, reserved
_REQUEST_DATA: Final = struct.Struct("<IIIII")  # size, version, report type, hash type, size of the JSON
_AREA: Final = SNP_REPORT_SIZE  # room for either processor's report
_DATA_AT: Final = _HEADER.size + _AREA
_JSON_AT: Final = _DATA_AT + _REQUEST_DATA.size


@dataclass(frozen=True, slots=True)
class Hcl:
    """What the paravisor keeps. Nothing here has been verified."""

    version: int
    kind: int  # SNP or TDX
    report: bytes  # of the processor: 1184 bytes of SNP, or the 1024 of a TDREPORT
    hash_type: int
    runtime: bytes  # the JSON text, exactly as it was hashed

    @classmethod
    def parse(cls, data: bytes) -> Hcl:
        if len(data) != NV_SIZE:
            raise _malformed(f"it is {len(data)} bytes, expected {NV_SIZE}: has it been cut?")
        magic, version, size, request, status, reserved = _HEADER.unpack_from(data)
        data_size, data_version, kind, hash_type, json_size = _REQUEST_DATA.unpack_from(data, _DATA_AT)
        if magic != _MAGIC:
            raise _malformed(f"it begins with {magic!r}, expected {_MAGIC!r}")
        for name, found, wanted in (
            ("version", version, VERSIONS),
            ("request type", request, (_ATTEST_REQUEST,)),
            ("status", status, (0,)),
            ("version of its data", data_version, (_REQUEST_DATA_VERSION,)),
            ("report type", kind, tuple(_REPORT_SIZES)),
            ("hash type", hash_type, tuple(HASHES)),
        ):
            if found not in wanted:
                raise _malformed(f"its {name} is {found}, expected {' or '.join(map(str, wanted))}")
        if not 0 < json_size <= NV_SIZE - _JSON_AT:
            raise _malformed(f"its JSON is said to have {json_size} bytes")
        if data_size != _REQUEST_DATA.size + json_size or size != _JSON_AT + json_size:
            raise _malformed("its sizes do not agree with each other")
        report_end = _HEADER.size + _REPORT_SIZES[kind]
        if any(reserved) or any(data[report_end:_DATA_AT]) or any(data[_JSON_AT + json_size :]):
            raise _malformed("there are other bytes than zeros where it is padded")
        return cls(
            version=version,
            kind=kind,
            report=data[_HEADER.size : report_end],
            hash_type=hash_type,
            runtime=data[_JSON_AT : _JSON_AT + json_size],
        )

    def encode(self) -> bytes:
        """The 2600 bytes of the NV index."""
        size = len(self.runtime)
        header = _HEADER.pack(_MAGIC, self.version, _JSON_AT + size, _ATTEST_REQUEST, 0, bytes(12))
        told = _REQUEST_DATA.pack(
            _REQUEST_DATA.size + size, _REQUEST_DATA_VERSION, self.kind, self.hash_type, size
        )
        return (header + self.report.ljust(_AREA, b"\x00") + told + self.runtime).ljust(NV_SIZE, b"\x00")

    @property
    def processor(self) -> str:
        return PROCESSORS[self.kind]

    @property
    def hash_name(self) -> str:
        return HASHES[self.hash_type]

    def runtime_hash(self) -> bytes:
        """The 64 bytes that the processor's report has to carry: the hash of the JSON, and zeros after it."""
        return hashlib.new(self.hash_name, self.runtime).digest().ljust(64, b"\x00")


def _malformed(why: str) -> MalformedEvidence:
    return MalformedEvidence(f"the paravisor's report (HCL) cannot be read: {why}", code="malformed-hcl")
