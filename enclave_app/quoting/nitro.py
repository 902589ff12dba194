"""
Attestation documents of AWS Nitro Enclaves: SPEC §4.7.

One question to the Nitro security module: an ioctl that carries CBOR both ways. Sources: AWS
aws-nitro-enclaves-nsm-api (docs/attestation_process.md, src/driver); Linux include/uapi/linux/nsm.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from blindbox_attestation import cbor
from blindbox_attestation.binding import Bound
from blindbox_attestation.evidence import NITRO

from . import Quote, QuoteUnavailable

DEVICE: Final = Path("/dev/nsm")
NSM_IOCTL: Final = 0xC0200A00  # _IOWR(0x0A, 0, struct nsm_raw): two addresses with two lengths
_RAW: Final = struct.Struct("=QQQQ")
MAX_RESPONSE: Final = 0x3000


class Module(Protocol):
    """Carries one question to the security module. Raises `OSError`."""

    def ask(self, request: bytes) -> bytes: ...


class NsmDevice:
    """The module behind its device file, opened for each question."""

    def __init__(self, path: Path = DEVICE) -> None:
        self._path = path

    def ask(self, request: bytes) -> bytes:
        question = ctypes.create_string_buffer(request, len(request))
        answer = ctypes.create_string_buffer(MAX_RESPONSE)
        raw = bytearray(
            _RAW.pack(ctypes.addressof(question), len(request), ctypes.addressof(answer), MAX_RESPONSE)
        )
        with self._path.open("r+b", buffering=0) as device:
            fcntl.ioctl(device, NSM_IOCTL, raw)
        size = _RAW.unpack(raw)[3]
        if size > MAX_RESPONSE:
            raise OSError(f"the module says it wrote {size} of {MAX_RESPONSE} bytes")
        return answer.raw[:size]


class NitroQuoter:
    """A document for each question."""

    platform = NITRO

    def __init__(self, device: Path = DEVICE, *, open_module: Callable[[Path], Module] = NsmDevice) -> None:
        self._device = device
        self._module = open_module(device)

    def check(self) -> None:
        """Raise now, with a reason, if this machine cannot answer."""
        if not self._device.exists():
            raise QuoteUnavailable(
                f"no {self._device}: a Nitro Enclave is needed, and not its parent instance"
            )

    def quote(self, bound: Bound) -> Quote:
        """A document with B as its user data, and beside it the nonce and the keys' digest (SPEC §2.1)."""
        request = cbor.encode(
            {
                "Attestation": {
                    "user_data": bound.digest,
                    "nonce": bound.nonce or None,
                    "public_key": hashlib.sha384(bound.key_config).digest(),
                }
            }
        )
        try:
            answer = self._module.ask(request)
        except OSError as error:
            raise QuoteUnavailable(f"asking {self._device} failed: {error.strerror or error}") from error
        return Quote(read_document(answer))


def read_document(answer: bytes) -> bytes:
    """The document in the module's answer, {"Attestation": {"document": bytes}}."""
    try:
        found = cbor.parse(answer)
    except cbor.NotCbor as error:
        raise QuoteUnavailable(f"the security module's answer cannot be read: {error}") from error
    match found:
        case {"Attestation": {"document": bytes(document)}}:
            return document
        case {"Error": str(reason)}:
            raise QuoteUnavailable(f"the security module refuses: {reason[:64]}")
    raise QuoteUnavailable(f"the security module answers with no document: {answer[:64]!a}")
