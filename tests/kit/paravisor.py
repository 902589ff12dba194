"""
Azure's paravisor on a software TPM: a real TPM, in front of which one NV index is answered as it does.

    with paravisor(lambda key: Hcl(…).encode()) as machine: AzureQuoter(platform, machine.open, …)

The index is the paravisor's own there (2600 bytes, more than swtpm keeps); everything else, the key and its
quotes among it, is swtpm's work.
"""

from __future__ import annotations

import struct
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tests.kit.amd import FakeAmd
from tests.kit.azure import FakeAzure
from tests.kit.swtpm import Socket, SoftwareTpm, swtpm

REPORT_INDEX = 0x01400001
AK_HANDLE = "0x81000003"
OWNER_READ = 1 << 17


class Front(Socket):
    """What stands before the TPM."""

    def __init__(self, port: int, report: Callable[[], bytes]) -> None:
        super().__init__(port)
        self._report = report

    def transmit(self, command: bytes) -> bytes:
        (code,) = struct.unpack_from(">I", command, 6)
        index = struct.pack(">I", REPORT_INDEX)
        if code == 0x169 and command[10:14] == index:  # TPM2_NV_ReadPublic
            public = struct.pack(">IHIHH", REPORT_INDEX, 0x000B, OWNER_READ, 0, len(self._report()))
            body = struct.pack(">H", len(public)) + public + struct.pack(">H", 0)
            return struct.pack(">HII", 0x8001, 10 + len(body), 0) + body
        if code == 0x14E and command[14:18] == index:  # TPM2_NV_Read
            size, at = struct.unpack(">HH", command[-4:])
            piece = self._report()[at : at + size]
            body = struct.pack(">IH", 2 + len(piece), len(piece)) + piece + bytes.fromhex("0000010000")
            return struct.pack(">HII", 0x8002, 10 + len(body), 0) + body
        return super().transmit(command)


@dataclass(slots=True)
class Paravisor:
    """A confidential VM of Azure, as its guest sees the TPM."""

    tpm: SoftwareTpm
    key: RSAPublicKey  # HCLAkPub
    report: bytes = b""  # what the NV index holds

    def open(self) -> Socket:
        return Front(self.tpm.port, lambda: self.report)


def runtime_json(key: RSAPublicKey) -> bytes:
    """What the paravisor says about the machine, with this key as its attestation key."""
    modulus = urlsafe_b64encode(key.public_numbers().n.to_bytes(256, "big")).rstrip(b"=").decode("ascii")
    azure = FakeAzure(FakeAmd())
    return azure.runtime(keys=[azure.jwk(n=modulus)])


@contextmanager
def paravisor(report: Callable[[RSAPublicKey], bytes]) -> Iterator[Paravisor]:
    """A machine whose TPM has its key where Azure's has it; `report` makes what is kept about that key."""
    with swtpm() as tpm:
        tpm.tool("tpm2_createek", "-c", "ek.ctx", "-G", "rsa", "-u", "ek.pub")
        tpm.tool(
            *("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", "rsa", "-g", "sha256", "-s", "rsassa"),
            *("-u", "ak.pem", "-f", "pem"),
        )
        tpm.forget_keys()
        tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "ak.ctx", AK_HANDLE)
        tpm.forget_keys()
        key = load_pem_public_key((tpm.state / "ak.pem").read_bytes())
        assert isinstance(key, RSAPublicKey)
        yield Paravisor(tpm, key, report(key))
