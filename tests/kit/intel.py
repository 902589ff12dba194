"""
A whole fake Intel: a root, its authorities, a machine with a quoting enclave, and collateral, all signed for
real.

With it a lie can be *well signed*: every link from the root down to the quote can lie on its own. Nobody
trusts it but a policy that is given its root as an argument. It makes the bytes that genuine hardware makes
(quotes of version 4 and 5), so `dcap-qvl` judges them like any other.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from blindbox_attestation.binding import binding, report_data, transcript_bytes
from blindbox_attestation.evidence import TDX, AttestationDocument, Transcript
from blindbox_attestation.tdx.policy import TdxPolicy
from tests.kit import NOON
from tests.kit.amd import KEY_CONFIG, FakeAmd

OURS: Final = "Fake Intel Corporation"
MRTD: Final = hashlib.sha384(b"the firmware that everybody has read").digest()
MRSEAM: Final = hashlib.sha384(b"a TDX module").digest()
RTMRS: Final = tuple(hashlib.sha384(f"register {number}".encode()).digest() for number in range(4))
QE_SIGNER: Final = hashlib.sha256(b"who signs quoting enclaves").digest()
FMSPC: Final = bytes.fromhex("b0c06f000000")
PCE_ID: Final = bytes(2)
CPU_SVN: Final = bytes((3, 3, 2, 2, 4, 1, 0, 5)) + bytes(8)
PCE_SVN: Final = 11
TEE_TCB_SVN: Final = bytes((6, 1, 3)) + bytes(13)
EVALUATION: Final = 18
SEPT_VE_DISABLE: Final = 1 << 28
VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

_BODY: Final = struct.Struct("<16s48s48sQQQ48s48s48s48s48s48s48s48s64s")
_ARC: Final = "1.2.840.113741.1.13.1"
_PEOPLE: Final = {
    "root": "Intel SGX Root CA",
    "platform": "Intel SGX PCK Platform CA",
    "processor": "Intel SGX PCK Processor CA",
    "pck": "Intel SGX PCK Certificate",
    "tcb": "Intel SGX TCB Signing",
}
_SERIALS: Final = {"root": 0x1001, "platform": 0x1002, "processor": 0x1003, "pck": 0x1004, "tcb": 0x1005}


@cache
def p256_key(name: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of that name."""
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest()) >> 1, ec.SECP256R1())


def raw_signature(key: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    """r ‖ s, 64 bytes."""
    r, s = decode_dss_signature(key.sign(content, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """x ‖ y, 64 bytes."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def pem(*ders: bytes) -> str:
    return "".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode() for der in ders)


# --- DER by hand, for the SGX extension ---


def tlv(tag: int, content: bytes) -> bytes:
    length = len(content)
    head = bytes((length,)) if length < 0x80 else bytes((0x82, *length.to_bytes(2, "big")))
    return bytes((tag,)) + head + content


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray((40 * first + second,))
    for arc in rest:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        out += bytes(reversed(groups))
    return tlv(0x06, bytes(out))


def entry(suffix: str, value: bytes) -> bytes:
    return tlv(0x30, oid(f"{_ARC}.{suffix}") + value)


def integer(value: int) -> bytes:
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


class FakeIntel:
    """One machine of a vendor nobody has heard of, and the vendor."""

    def __init__(self, name: str = OURS, *, authority: str = "platform", fmspc: bytes = FMSPC) -> None:
        self.name = name
        self.authority = authority
        self.fmspc = fmspc
        self.ppid = hashlib.sha256(f"processor of {name}".encode()).digest()[:16]
        self.instance = hashlib.sha256(f"platform of {name}".encode()).digest()[:16]

    def key(self, who: str) -> ec.EllipticCurvePrivateKey:
        """Of "root", "platform", "processor", "pck", "tcb" or "attestation"."""
        return p256_key(f"{self.name} {who}")

    # --- certificates and lists ---

    def _name(self, common_name: str) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, common_name),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.name),
                x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            ]
        )

    def sgx_extension(self, **changes: bytes | None) -> bytes:
        """What the PCK certificate says of the machine; a field that is None is left out."""
        components = b"".join(entry(f"2.{number}", integer(svn)) for number, svn in enumerate(CPU_SVN, 1))
        told: dict[str, bytes | None] = {
            "ppid": tlv(0x04, self.ppid),
            "tcb": tlv(
                0x30, components + entry("2.17", integer(PCE_SVN)) + entry("2.18", tlv(0x04, CPU_SVN))
            ),
            "pce_id": tlv(0x04, PCE_ID),
            "fmspc": tlv(0x04, self.fmspc),
            "sgx_type": tlv(0x0A, b"\x01"),
            "instance": tlv(0x04, self.instance) if self.authority == "platform" else None,
        }
        suffixes = dict(zip(told, ("1", "2", "3", "4", "5", "6"), strict=True))
        return tlv(
            0x30,
            b"".join(
                entry(suffixes[name], value)
                for name, value in {**told, **changes}.items()
                if value is not None
            ),
        )

    def certificate(
        self,
        who: str,
        *,
        common_name: str | None = None,
        issuer: str | None = None,
        signer: str | None = None,
        serial: int | None = None,
        not_before: datetime = NOON - timedelta(days=365),
        not_after: datetime = NOON + timedelta(days=3650),
        public_key: Any = None,
        extension: bytes | None = None,
        authority: bool | None = None,
        cert_sign: bool = True,
        crl_sign: bool = True,
        hash_algorithm: HashAlgorithm | None = None,
    ) -> bytes:
        """A certificate as Intel would make it, except for what is asked to be otherwise."""
        above = self.authority if who == "pck" else "root"
        authority = who not in ("pck", "tcb") if authority is None else authority
        builder = (
            x509.CertificateBuilder()
            .subject_name(self._name(common_name or _PEOPLE[who]))
            .issuer_name(self._name(issuer or _PEOPLE[above]))
            .public_key(public_key or self.key(who).public_key())
            .serial_number(serial or _SERIALS[who])
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
        )
        usage = dict.fromkeys(
            ("key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"),
            False,
        )
        builder = builder.add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                content_commitment=not authority,
                key_cert_sign=authority and cert_sign,
                crl_sign=authority and crl_sign,
                **usage,
            ),
            critical=True,
        )
        if who == "pck":
            value = self.sgx_extension() if extension is None else extension
            if value:
                builder = builder.add_extension(
                    x509.UnrecognizedExtension(x509.ObjectIdentifier(_ARC), value), critical=False
                )
        key = self.key(signer or above)
        return builder.sign(key, hash_algorithm or SHA256()).public_bytes(Encoding.DER)

    def crl(
        self,
        who: str,
        *,
        revoked: Iterable[int] = (),
        issuer: str | None = None,
        signer: str | None = None,
        this_update: datetime = NOON - timedelta(days=10),
        next_update: datetime = NOON + timedelta(days=20),
    ) -> str:
        """The list of "root", "platform" or "processor", in hex."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name(issuer or _PEOPLE[who]))
            .last_update(this_update)
            .next_update(next_update)
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for serial in revoked:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(this_update)
            builder = builder.add_revoked_certificate(one.build())
        return builder.sign(self.key(signer or who), SHA256()).public_bytes(Encoding.DER).hex()

    def standard(self, who: str) -> bytes:
        """The certificate of that name without any changes; made once, so that it is the same everywhere."""
        own = (self.authority, self.fmspc) if who == "pck" else ("platform", FMSPC)
        return _certificate(self.name, *own, who)

    @property
    def chain(self) -> str:
        """The certificates in an honest quote."""
        return pem(self.standard("pck"), self.standard(self.authority), self.standard("root"))

    # --- collateral ---

    def tcb_info(self, *, levels: list[dict[str, Any]] | None = None, **changes: Any) -> str:
        """`status`, `advisories` and `module_status` set a level; other changes are members of the JSON."""
        status = changes.pop("status", "UpToDate")
        advisories = changes.pop("advisories", ())
        module_status = changes.pop("module_status", "UpToDate")
        told = {
            "id": "TDX",
            "version": 3,
            "issueDate": zulu(NOON - timedelta(days=5)),
            "nextUpdate": zulu(NOON + timedelta(days=25)),
            "fmspc": self.fmspc.hex().upper(),
            "pceId": PCE_ID.hex(),
            "tcbType": 0,
            "tcbEvaluationDataNumber": EVALUATION,
            "tdxModule": {
                "mrsigner": "00" * 48,
                "attributes": "00" * 8,
                "attributesMask": "FF" * 8,
            },
            "tdxModuleIdentities": [
                {
                    "id": "TDX_01",
                    "mrsigner": "00" * 48,
                    "attributes": "00" * 8,
                    "attributesMask": "FF" * 8,
                    "tcbLevels": [
                        {"tcb": {"isvsvn": 5}, "tcbDate": "2025-05-14T00:00:00Z", "tcbStatus": module_status}
                    ],
                }
            ],
            "tcbLevels": levels or [self.level(status, advisories)],
        }
        return json.dumps({**told, **changes}, separators=(",", ":"))

    def level(
        self,
        status: str = "UpToDate",
        advisories: Iterable[str] = (),
        *,
        sgx: Iterable[int] = CPU_SVN,
        tdx: Iterable[int] = bytes((5, 0, 2)) + bytes(13),
        pce: int = PCE_SVN,
    ) -> dict[str, Any]:
        """One of the levels of TCB info."""
        level: dict[str, Any] = {
            "tcb": {
                "sgxtcbcomponents": [{"svn": svn} for svn in sgx],
                "pcesvn": pce,
                "tdxtcbcomponents": [{"svn": svn} for svn in tdx],
            },
            "tcbDate": "2025-05-14T00:00:00Z",
            "tcbStatus": status,
        }
        return {**level, "advisoryIDs": list(advisories)} if advisories else level

    def qe_identity(self, **changes: Any) -> str:
        """`status` and `advisories` are the quoting enclave's; other changes are members of the JSON."""
        level: dict[str, Any] = {
            "tcb": {"isvsvn": 4},
            "tcbDate": "2025-05-14T00:00:00Z",
            "tcbStatus": changes.pop("status", "UpToDate"),
        }
        if advisories := list(changes.pop("advisories", ())):
            level["advisoryIDs"] = advisories
        told = {
            "id": "TD_QE",
            "version": 2,
            "issueDate": zulu(NOON - timedelta(days=4)),
            "nextUpdate": zulu(NOON + timedelta(days=26)),
            "tcbEvaluationDataNumber": EVALUATION,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": QE_SIGNER.hex().upper(),
            "isvprodid": 2,
            "tcbLevels": [level],
        }
        return json.dumps({**told, **changes}, separators=(",", ":"))

    def sign(self, text: str, signer: str = "tcb") -> str:
        return raw_signature(self.key(signer), text.encode()).hex()

    def collateral(self, **changes: str) -> bytes:
        """What Intel would publish; `changes` are of the nine strings, and a statement is signed again."""
        tcb_info = changes.get("tcb_info", self.tcb_info())
        identity = changes.get("qe_identity", self.qe_identity())
        signers = pem(self.standard("tcb"), self.standard("root"))
        told = {
            "pck_crl_issuer_chain": pem(self.standard(self.authority), self.standard("root")),
            "root_ca_crl": self.crl("root"),
            "pck_crl": self.crl(self.authority),
            "tcb_info_issuer_chain": signers,
            "tcb_info": tcb_info,
            "tcb_info_signature": self.sign(tcb_info),
            "qe_identity_issuer_chain": signers,
            "qe_identity": identity,
            "qe_identity_signature": self.sign(identity),
        }
        return json.dumps({**told, **changes}).encode()

    def endorsements(self, **changes: bytes | None) -> dict[str, bytes]:
        """What is sent beside a quote; None leaves one out."""
        told = {"collateral": _collateral(self.name, self.authority, self.fmspc), **changes}
        return {name: value for name, value in told.items() if value is not None}

    # --- quotes ---

    def body(self, user_data: bytes, version: int, **changes: Any) -> bytes:
        told: dict[str, Any] = {
            "tee_tcb_svn": TEE_TCB_SVN,
            "mrseam": MRSEAM,
            "mrsignerseam": bytes(48),
            "seam_attributes": 0,
            "td_attributes": SEPT_VE_DISABLE,
            "xfam": 0x602E7,
            "mrtd": MRTD,
            "mrconfigid": bytes(48),
            "mrowner": bytes(48),
            "mrownerconfig": bytes(48),
            "rtmrs": RTMRS,
            "report_data": user_data,
        }
        newer = {"tee_tcb_svn_2": TEE_TCB_SVN, "mrservicetd": bytes(48)}
        if version == 5:
            told |= newer
        if unknown := set(changes) - set(told):
            raise TypeError(f"no fields of this body: {unknown}")
        told |= changes
        registers = told.pop("rtmrs")
        last = told.pop("report_data")
        tail = b"".join(told.pop(name) for name in newer if name in told)
        return _BODY.pack(*told.values(), *registers, last) + tail

    def qe_report(self, data: bytes, **changes: Any) -> bytes:
        """The quoting enclave about itself, with `data` as its report data."""
        told: dict[str, Any] = {
            "cpu_svn": CPU_SVN,
            "misc_select": bytes(4),
            "attributes": bytes((0x11,)) + bytes(15),
            "mrenclave": bytes(32),
            "mrsigner": QE_SIGNER,
            "isv_prod_id": 2,
            "isv_svn": 4,
            **changes,
        }
        return b"".join(
            (
                told["cpu_svn"],
                told["misc_select"],
                bytes(28),
                told["attributes"],
                told["mrenclave"],
                bytes(32),
                told["mrsigner"],
                bytes(96),
                told["isv_prod_id"].to_bytes(2, "little"),
                told["isv_svn"].to_bytes(2, "little"),
                bytes(60),
                data,
            )
        )

    def quote(
        self,
        user_data: bytes = bytes(64),
        *,
        version: int = 4,
        body_type: int = 3,
        header: Mapping[str, Any] | None = None,
        signer: ec.EllipticCurvePrivateKey | None = None,
        attestation_key: bytes | None = None,
        vouched: bytes | None = None,
        qe: Mapping[str, Any] | None = None,
        qe_signer: ec.EllipticCurvePrivateKey | None = None,
        chain: str | None = None,
        padding: int = 70,
        **changes: Any,
    ) -> bytes:
        """
        A well-signed quote; `changes` are fields of its body.

        Each link can lie alone: `signer` makes the quote's signature, `attestation_key` is the key that
        stands in the quote, `vouched` what the quoting enclave vouches for, `qe` what it says besides,
        `qe_signer` who signs that.
        """
        key = self.key("attestation")
        point = raw_point(key) if attestation_key is None else attestation_key
        authentication = bytes(range(32))
        vouched = hashlib.sha256(point + authentication).digest() + bytes(32) if vouched is None else vouched
        top = {"version": version, "key_type": 2, "tee": 0x81, "reserved": bytes(4), "vendor": VENDOR}
        content = struct.pack("<HHI4s16s20s", *{**top, **(header or {})}.values(), bytes(20))
        if version == 5:
            size = 648 if body_type == 3 else 584
            content += struct.pack("<HI", body_type, size)
            content += self.body(user_data, 5 if body_type == 3 else 4, **changes)
        else:
            content += self.body(user_data, 4, **changes)
        report = self.qe_report(vouched, **(qe or {}))
        certificates = (self.chain if chain is None else chain).encode()
        certified = b"".join(
            (
                report,
                raw_signature(qe_signer or self.key("pck"), report),
                struct.pack("<H", len(authentication)),
                authentication,
                struct.pack("<HI", 5, len(certificates)),
                certificates,
            )
        )
        signature = raw_signature(signer or key, content)
        end = signature + point + struct.pack("<HI", 6, len(certified)) + certified
        return content + struct.pack("<I", len(end)) + end + bytes(padding)

    # --- policies and documents ---

    @property
    def roots(self) -> dict[bytes, str]:
        return {hashlib.sha256(self.standard("root")).digest(): self.name}

    def tdx_policy(self, **changes: Any) -> TdxPolicy:
        """A policy that trusts this vendor, and asks for what an honest machine says."""
        return TdxPolicy(
            **{
                "mrtd": {MRTD},
                "minimum_tcb_evaluation": EVALUATION,
                "rtmrs": {number: {value} for number, value in enumerate(RTMRS)},
                "roots": self.roots,
                **changes,
            }
        )

    def document(
        self,
        key_config: bytes = KEY_CONFIG,
        nonce: bytes = bytes(32),
        *,
        platform: str = TDX,
        evidence: bytes | None = None,
        endorsements: Mapping[str, bytes] | None = None,
        **changes: Any,
    ) -> bytes:
        """A whole document of an honest machine; `changes` are of `Transcript`, or for `quote`."""
        names = {field.name for field in fields(Transcript)}
        in_transcript = {name: changes.pop(name) for name in list(changes) if name in names}
        transcript = FakeAmd().transcript(key_config, nonce, **in_transcript)
        if evidence is None:
            evidence = self.quote(report_data(binding(transcript_bytes(platform, transcript))), **changes)
        sent = self.endorsements() if endorsements is None else endorsements
        return AttestationDocument(platform, transcript, evidence, sent).encode()


def zulu(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


@cache
def _certificate(name: str, authority: str, fmspc: bytes, who: str) -> bytes:
    return FakeIntel(name, authority=authority, fmspc=fmspc).certificate(who)


@cache
def _collateral(name: str, authority: str, fmspc: bytes) -> bytes:
    return FakeIntel(name, authority=authority, fmspc=fmspc).collateral()
