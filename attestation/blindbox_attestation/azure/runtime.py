"""
What Azure's paravisor says about the virtual machine it runs: a JSON text whose hash the processor signs.

It holds the attestation key of the paravisor's TPM (the JWK `HCLAkPub`), how the machine was configured,
and 64 bytes that the guest may write. It is parsed only after its exact bytes have been compared with the
processor's report; it is never written again. A newer paravisor may tell more about the configuration than
is known here: that is signed, and passed over.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers

from .. import strict_json
from ..errors import MalformedEvidence, UntrustedEvidence

AK_NAME: Final = "HCLAkPub"
USER_DATA_SIZE: Final = 64
LEAST_BITS: Final = 2048
MOST_BITS: Final = 4096

_EXPONENT: Final = "AQAB"  # 65537
_JWK_KEYS: Final = ("kid", "key_ops", "kty", "e", "n")
_USER_DATA: Final = re.compile(r"(?:[0-9a-fA-F]{2})*")


@dataclass(frozen=True, slots=True)
class VmConfiguration:
    """How the paravisor started the machine. None where it did not say."""

    secure_boot: bool | None
    tpm_enabled: bool | None
    console_enabled: bool | None  # the serial console, which the host reads and writes
    unique_id: str | None  # chosen by the host; in lower case


@dataclass(frozen=True, slots=True)
class Runtime:
    """The paravisor's words. They are as true as the report that carries their hash."""

    ak: RSAPublicKey
    vm: VmConfiguration
    user_data: bytes  # 64 bytes, written by the guest; none if it was not told

    @classmethod
    def parse(cls, data: bytes) -> Runtime:
        try:
            told = strict_json.fields(
                strict_json.parse(data), "runtime data", ("keys", "vm-configuration"), ("user-data",)
            )
            return cls(
                ak=_attestation_key(strict_json.items(told["keys"], "keys")),
                vm=_configuration(told["vm-configuration"]),
                user_data=_user_data(told.get("user-data", "")),
            )
        except strict_json.JsonRefused as error:
            raise MalformedEvidence(
                f"the paravisor's runtime data cannot be read: {error}", code="malformed-hcl"
            ) from error


def _attestation_key(keys: list[Any]) -> RSAPublicKey:
    found = [key for key in keys if isinstance(key, dict) and key.get("kid") == AK_NAME]
    if len(found) != 1:
        raise UntrustedEvidence(
            f"the paravisor names {len(found)} keys {AK_NAME}, expected exactly one", code="missing-ak"
        )
    told = strict_json.fields(found[0], AK_NAME, _JWK_KEYS)
    modulus = _unsigned(told["n"], f"n of {AK_NAME}")
    if (
        told["kty"] != "RSA"
        or told["key_ops"] != ["sign"]
        or told["e"] != _EXPONENT
        or not LEAST_BITS <= modulus.bit_length() <= MOST_BITS
        or not modulus & 1
    ):
        raise UntrustedEvidence(
            f"{AK_NAME} is no RSA signing key of {LEAST_BITS} to {MOST_BITS} bits with the exponent 65537",
            code="ak-attributes",
        )
    return RSAPublicNumbers(65537, modulus).public_key()


def _unsigned(value: object, where: str) -> int:
    """Base64urlUInt of RFC 7518 §2: big endian, no zero in front, no padding, one spelling."""
    if not isinstance(value, str) or len(value) > MOST_BITS // 4:
        raise strict_json.JsonRefused(f"{where} is not base64url", "wrong-type")
    try:
        data = urlsafe_b64decode(value + "=" * (-len(value) % 4))
    except ValueError as error:
        raise strict_json.JsonRefused(f"{where} is not base64url", "wrong-type") from error
    if urlsafe_b64encode(data).rstrip(b"=").decode("ascii") != value or data[:1] in (b"", b"\x00"):
        raise strict_json.JsonRefused(f"{where} is not in its one spelling", "wrong-type")
    return int.from_bytes(data, "big")


def _configuration(value: object) -> VmConfiguration:
    if not isinstance(value, dict):
        raise strict_json.JsonRefused("vm-configuration is not an object", "wrong-type")

    def flag(name: str) -> bool | None:
        return strict_json.boolean(value[name], name) if name in value else None

    unique_id = strict_json.text(value["vmUniqueId"], "vmUniqueId") if "vmUniqueId" in value else None
    return VmConfiguration(
        secure_boot=flag("secure-boot"),
        tpm_enabled=flag("tpm-enabled"),
        console_enabled=flag("console-enabled"),
        unique_id=None if unique_id is None else unique_id.lower(),
    )


def _user_data(value: object) -> bytes:
    if value == "":
        return b""
    if not isinstance(value, str) or len(value) != 2 * USER_DATA_SIZE or not _USER_DATA.fullmatch(value):
        raise strict_json.JsonRefused(f"user-data is not {USER_DATA_SIZE} bytes in hex", "wrong-type")
    return bytes.fromhex(value)
