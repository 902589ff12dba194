"""
A whole fake TPM vendor: a root, an intermediate and attestation keys, which sign real-shaped quotes, and a
firmware that writes real-shaped logs of its boots.

With it a lie can be *well signed*. Nobody trusts it but a policy that is given its root as an argument, or
its key as a pin.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from blindbox_attestation import strict_json
from blindbox_attestation.binding import Bound, transcript_bytes
from blindbox_attestation.evidence import TPM, AttestationDocument, Transcript
from blindbox_attestation.vtpm import MeasuredBoot, TpmPolicy
from tests.kit import NOON
from tests.kit.google import rsa_key

ALGORITHMS: Final = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C}
SIZES: Final = {"sha1": 20, "sha256": 32, "sha384": 48}
RSASSA, RSAPSS, ECDSA = 0x0014, 0x0016, 0x0018
RESTRICTED_SIGNING_KEY: Final = 0x00050072
"""TPMA_OBJECT: fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign."""

CHAIN: Final = ("root", "intermediate", "leaf")
INSTANCE: Final = "1.3.6.1.4.1.11129.2.1.21"
GLOBAL: Final = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
SECURITY: Final = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")

ACTION, SEPARATOR, VARIABLE, APPLICATION, IPL, NO_ACTION = 0x80000007, 4, 0x80000001, 0x80000003, 0xD, 3

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Measurement:
    """Something a firmware measures: `digest_of` is what was hashed, if that is not the data of the event."""

    register: int
    kind: int
    data: bytes
    digest_of: bytes | None = None

    def encode(self, banks: Sequence[str]) -> bytes:
        digests = b"".join(struct.pack("<H", ALGORITHMS[bank]) + self.digest(bank) for bank in banks)
        return (
            struct.pack("<III", self.register, self.kind, len(banks))
            + digests
            + struct.pack("<I", len(self.data))
            + self.data
        )

    def digest(self, bank: str) -> bytes:
        if self.kind == NO_ACTION:
            return bytes(SIZES[bank])
        return hashlib.new(bank, self.data if self.digest_of is None else self.digest_of).digest()


def variable(name: str, value: bytes, *, vendor: bytes = GLOBAL) -> bytes:
    """UEFI_VARIABLE_DATA."""
    return vendor + struct.pack("<QQ", len(name), len(value)) + name.encode("utf-16-le") + value


def secure_boot(value: bytes = b"\x01") -> Measurement:
    return Measurement(7, VARIABLE, variable("SecureBoot", value))


def separator(register: int) -> Measurement:
    return Measurement(register, SEPARATOR, bytes(4))


DB: Final = Measurement(7, VARIABLE, variable("db", b"the vendor's certificate", vendor=SECURITY))
PROGRAM: Final = Measurement(4, APPLICATION, b"\\EFI\\BOOT\\BOOTX64.EFI", b"the program everybody has read")
BOOT: Final = (
    Measurement(0, 0x8, "Fake firmware 1\x00".encode("utf-16-le")),
    secure_boot(),
    Measurement(7, VARIABLE, variable("PK", b"the platform's key")),
    DB,
    separator(7),
    Measurement(4, ACTION, b"Calling EFI Application from Boot Option"),
    *(separator(register) for register in range(7)),
    PROGRAM,
    Measurement(8, IPL, b"kernel_cmdline: /vmlinuz ro\x00", b"/vmlinuz ro"),
    Measurement(5, ACTION, b"Exit Boot Services Invocation"),
)
"""What an honest machine does at boot."""


def header(banks: Sequence[str] = tuple(ALGORITHMS), **changes: Any) -> bytes:
    told = {
        "signature": b"Spec ID Event03\x00",
        "version": (0, 2),
        "vendor": b"",
        "kind": NO_ACTION,
        **changes,
    }
    about = told["signature"] + struct.pack("<IBBBBI", 0, *told["version"], 0, 2, len(banks))
    about += b"".join(struct.pack("<HH", ALGORITHMS[bank], SIZES[bank]) for bank in banks)
    about += bytes((len(told["vendor"]),)) + told["vendor"]
    return struct.pack("<II20sI", 0, told["kind"], bytes(20), len(about)) + about


def log_of(
    boot: Sequence[Measurement] = BOOT,
    *,
    banks: Sequence[str] = tuple(ALGORITHMS),
    locality: int | None = None,
) -> bytes:
    """The log of this boot, as the firmware leaves it behind."""
    first = (
        [] if locality is None else [Measurement(0, NO_ACTION, b"StartupLocality\x00" + bytes((locality,)))]
    )
    return header(banks) + b"".join(one.encode(banks) for one in (*first, *boot))


def registers_of(
    boot: Sequence[Measurement] = BOOT, bank: str = "sha256", *, locality: int = 0
) -> dict[int, bytes]:
    """What the registers of a TPM hold after it."""
    found = dict.fromkeys((*range(10), *range(11, 16)), bytes(SIZES[bank]))
    found[0] = found[0][:-1] + bytes((locality,))
    for one in boot:
        if one.kind != NO_ACTION:
            found[one.register] = hashlib.new(bank, found[one.register] + one.digest(bank)).digest()
    return found


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def selection(registers: Sequence[int], bank: str = "sha256") -> tuple[int, bytes]:
    bitmap = sum(1 << register for register in registers)
    return ALGORITHMS[bank], bitmap.to_bytes(3, "little")


def attest(
    extra_data: bytes,
    selections: Sequence[tuple[int, bytes]],
    digest: bytes,
    *,
    magic: int = 0xFF544347,
    kind: int = 0x8018,
    signer: bytes = b"\x00\x0b" + bytes(32),
    clock: int = 123_456,
    resets: int = 7,
    restarts: int = 1,
    safe: int = 1,
    firmware: int = 0x2019_1023_0016_3636,
) -> bytes:
    """TPMS_ATTEST."""
    return (
        struct.pack(">IH", magic, kind)
        + sized(signer)
        + sized(extra_data)
        + struct.pack(">QIIBQ", clock, resets, restarts, safe, firmware)
        + struct.pack(">I", len(selections))
        + b"".join(struct.pack(">HB", algorithm, len(bitmap)) + bitmap for algorithm, bitmap in selections)
        + sized(digest)
    )


def spki(key: Key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def hash_of(key: Key) -> HashAlgorithm:
    return SHA384() if isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size == 384 else SHA256()


def sign(key: Key, content: bytes, *, scheme: int | None = None, hash_algorithm: Any = None) -> bytes:
    """TPMT_SIGNATURE, in the scheme that fits the key unless another is asked for."""
    hash_algorithm = hash_algorithm or hash_of(key)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = key.key_size // 8
        r, s = decode_dss_signature(key.sign(content, ec.ECDSA(hash_algorithm)))
        scheme, value = scheme or ECDSA, sized(r.to_bytes(size, "big")) + sized(s.to_bytes(size, "big"))
    else:
        pss = padding.PSS(padding.MGF1(hash_algorithm), padding.PSS.DIGEST_LENGTH)
        value = sized(key.sign(content, pss if scheme == RSAPSS else padding.PKCS1v15(), hash_algorithm))
        scheme = scheme or RSASSA
    return struct.pack(">HH", scheme, ALGORITHMS[hash_algorithm.name]) + value


def area(
    key: Key,
    *,
    attributes: int = RESTRICTED_SIGNING_KEY,
    scheme: int | None = None,
    hash_algorithm: int | None = None,
    symmetric: int = 0x0010,
    kind: int | None = None,
) -> bytes:
    """TPMT_PUBLIC."""
    public = key.public_key()
    hash_algorithm = ALGORITHMS[hash_of(key).name] if hash_algorithm is None else hash_algorithm
    if isinstance(public, rsa.RSAPublicKey):
        own, numbers = 0x0001, public.public_numbers()
        modulus = numbers.n.to_bytes(public.key_size // 8, "big")
        rest = struct.pack(">HI", public.key_size, 0) + sized(modulus)
    else:
        own, point = 0x0023, public.public_numbers()
        size = public.key_size // 8
        rest = struct.pack(">HH", {256: 3, 384: 4}[public.key_size], 0x0010)
        rest += sized(point.x.to_bytes(size, "big")) + sized(point.y.to_bytes(size, "big"))
    scheme = (RSASSA if own == 0x0001 else ECDSA) if scheme is None else scheme
    return (
        struct.pack(">HHI", own if kind is None else kind, 0x000B, attributes)
        + sized(b"")
        + struct.pack(">HHH", symmetric, scheme, hash_algorithm)
        + rest
    )


@cache
def ec_key(name: str, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    secret = int.from_bytes(hashlib.sha384(name.encode()).digest()[: curve().key_size // 8]) >> 8
    return ec.derive_private_key(secret, curve())


def instance_info(
    zone: str = "nowhere1-a",
    number: int = 1234,
    project: str = "our-project",
    instance: int = 8033817256003918212,
    name: str = "our-vm",
) -> bytes:
    """Google's extension: zone, number and id of the project, id and name of the machine."""

    def der(tag: int, content: bytes) -> bytes:
        return bytes((tag, len(content))) + content

    def integer(value: int) -> bytes:
        return der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))

    text = [der(12, one.encode()) for one in (zone, project, name)]
    return der(0x30, text[0] + integer(number) + text[1] + integer(instance) + text[2])


class FakeTpm:
    """A machine with a TPM of a vendor nobody has heard of; `kind` is "ecc", "ecc384" or "rsa"."""

    def __init__(self, kind: str = "ecc", *, name: str = "ours", boot: Sequence[Measurement] = BOOT) -> None:
        self.kind = kind
        self.name = name
        self.boot = boot

    @property
    def key(self) -> Key:
        return self.key_of("leaf")

    def key_of(self, what: str) -> Key:
        if what != "leaf" or self.kind == "rsa":
            return rsa_key(f"tpm {self.name} {what}")
        return ec_key(f"{self.name} ak", ec.SECP384R1 if self.kind == "ecc384" else ec.SECP256R1)

    def evidence(self, extra_data: bytes, **changes: Any) -> bytes:
        """
        A well-signed quote; `changes` are what the TPM says (`attest`), how it signs (`scheme`,
        `hash_algorithm`, `signing_key`), or a whole field of the evidence.
        """
        signing = {name: changes.pop(name) for name in ("scheme", "hash_algorithm") if name in changes}
        signing_key: Key = changes.pop("signing_key", self.key)
        bank = changes.pop("bank", "sha256")
        pcrs: Mapping[int, bytes] = changes.pop("registers", registers_of(self.boot, bank))
        digest_name = (signing.get("hash_algorithm") or hash_of(signing_key)).name
        digest = hashlib.new(digest_name, b"".join(pcrs[one] for one in sorted(pcrs))).digest()
        said: dict[str, Any] = {
            "extra_data": extra_data,
            "selections": [selection(sorted(pcrs), bank)],
            "digest": digest,
        }
        fields: dict[str, Any] = {"version": 1}
        of_the_evidence = {"version", "attest", "signature", "ak_public", "ak_area", "pcrs", "leave_out"}
        said.update({name: value for name, value in changes.items() if name not in of_the_evidence})
        whole = changes.get("attest") or attest(**said)
        whole_signature = changes.get("signature") or sign(signing_key, whole, **signing)
        own_area = area(self.key, scheme=signing.get("scheme"))
        fields = {
            "version": changes.get("version", 1),
            "attest": strict_json.to_base64(whole),
            "signature": strict_json.to_base64(whole_signature),
            "ak_public": strict_json.to_base64(changes.get("ak_public") or spki(self.key)),
            "ak_area": strict_json.to_base64(changes.get("ak_area") or own_area),
            "pcrs": changes.get("pcrs", {str(one): value.hex() for one, value in sorted(pcrs.items())}),
        }
        left_out = changes.get("leave_out", ())
        return strict_json.dump({name: one for name, one in fields.items() if name not in left_out})

    def certificate(
        self,
        what: str,
        *,
        issuer: str | None = None,
        signer: rsa.RSAPrivateKey | None = None,
        public_key: Any = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        authority: bool | None = None,
        path_length: int | None = -1,
        digital_signature: bool = True,
        hash_algorithm: Any = None,
        pad: Any = None,
        info: bytes | None = b"",
        critical: bool = False,
    ) -> bytes:
        """A certificate as a vendor would make it, except for what is asked to be otherwise."""
        depth = CHAIN.index(what)
        above = CHAIN[max(depth - 1, 0)]
        authority = what != "leaf" if authority is None else authority
        length = (None, 0, None)[depth] if path_length == -1 else path_length
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(what))
            .issuer_name(_named(issuer or above))
            .public_key(public_key or self.key_of(what).public_key())
            .serial_number(100 + depth)
            .not_valid_before(not_before or NOON - timedelta(days=10))
            .not_valid_after(not_after or NOON + timedelta(days=1000))
            .add_extension(x509.BasicConstraints(authority, length if authority else None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=digital_signature and not authority,
                    key_cert_sign=authority,
                    crl_sign=authority or not digital_signature,
                    encipher_only=False,
                    decipher_only=False,
                    **usage,
                ),
                critical=True,
            )
        )
        if what == "leaf" and info is not None:
            told = x509.UnrecognizedExtension(x509.ObjectIdentifier(INSTANCE), info or instance_info())
            builder = builder.add_extension(told, critical=False)
        if critical:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
            builder = builder.add_extension(unknown, critical=True)
        own: Any = signer or self.key_of(above)
        return builder.sign(
            own, hash_algorithm or SHA256(), rsa_padding=pad or padding.PKCS1v15()
        ).public_bytes(Encoding.DER)

    def chain(self, **changes: bytes) -> list[bytes]:
        """Leaf first, root last."""
        return [
            changes[what] if what in changes else _certificate(self.kind, self.name, what)
            for what in reversed(CHAIN)
        ]

    def endorsements(self, **changes: bytes) -> dict[str, bytes]:
        """What comes with a quote: certificates, and the log of the boot."""
        return {"ak_chain": b"".join(self.chain()), "event_log": log_of(self.boot), **changes}

    def whole(self, transcript: Transcript, **changes: Any) -> bytes:
        """The attestation document (SPEC §2) of an honest machine; `changes` are what the TPM says."""
        bound = Bound.of(transcript_bytes(TPM, transcript), transcript)
        evidence = self.evidence(bound.digest, **changes)
        return AttestationDocument(TPM, transcript, evidence, self.endorsements()).encode()

    @property
    def roots(self) -> dict[bytes, str]:
        root = _certificate(self.kind, self.name, "root")
        return {hashlib.sha256(root).digest(): f"fake TPM vendor, {self.name}"}

    @property
    def pin(self) -> bytes:
        return hashlib.sha256(spki(self.key)).digest()

    def measured_boot(self, **changes: Any) -> MeasuredBoot:
        """What an honest machine's boot was."""
        return MeasuredBoot(**{"pcrs": {4: {registers_of(self.boot)[4]}}, **changes})

    def tpm_policy(self, **changes: Any) -> TpmPolicy:
        """A policy that trusts this vendor, and asks for what an honest machine says."""
        return TpmPolicy(**{"boot": self.measured_boot(), "roots": self.roots, **changes})


def _named(what: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Nobody's TPMs"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"TPM {what}"),
        ]
    )


@cache
def _certificate(kind: str, name: str, what: str) -> bytes:
    return FakeTpm(kind, name=name).certificate(what)
