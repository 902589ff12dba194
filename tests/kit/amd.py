"""
A whole fake AMD: roots, intermediates, chips and revocation lists of its own, which sign real-shaped reports.

With it a lie can be *well signed*. Nobody trusts it but a policy that is given its root as an argument. Keys
are made once per process; RSA-4096 takes a while.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from datetime import datetime, timedelta
from functools import cache, cached_property
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from blindbox_attestation.binding import binding, report_data, transcript_bytes
from blindbox_attestation.evidence import SEV_SNP, AttestationDocument, Transcript
from blindbox_attestation.policy import Policy
from blindbox_attestation.simulated import sign_report
from blindbox_attestation.snp.policy import SnpPolicy
from blindbox_attestation.snp.report import Report
from blindbox_attestation.snp.tcb import Tcb
from tests.kit import NOON

ARC: Final = "1.3.6.1.4.1.3704.1."
CPUID: Final = {
    "Milan": bytes((0x19, 0x01, 0x01)),
    "Genoa": bytes((0x19, 0x11, 0x01)),
    "Bergamo": bytes((0x19, 0xA0, 0x02)),
    "Turin": bytes((0x1A, 0x02, 0x01)),
}
TCBS: Final = {
    "Milan": Tcb(bootloader=4, snp=0x18, microcode=0xDB),
    "Genoa": Tcb(bootloader=10, snp=0x19, microcode=0x54),
    "Turin": Tcb(fmc=1, bootloader=2, tee=1, snp=3, microcode=0x47),
}
MEASUREMENT: Final = hashlib.sha384(b"the image that everybody has read").digest()
OURS: Final = "Fake Micro Devices"
CLOUD: Final = "CN=cc-somewhere.example"
KEY_CONFIG: Final = b"\x00\x29" + bytes(
    range(41)
)  # as a key configuration; what it says does not matter here


@cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """The RSA-4096 key of that name."""
    return rsa.generate_private_key(65537, 4096)


@cache
def chip_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(hashlib.sha384(name.encode()).digest()) >> 8, ec.SECP384R1())


def name_of(common_name: str, organisation: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def small_integer(value: int) -> bytes:
    """DER of an INTEGER of 0 to 255."""
    return bytes((2, 2, 0, value)) if value > 127 else bytes((2, 1, value))


def ia5(text: str) -> bytes:
    return bytes((0x16, len(text))) + text.encode("ascii")


class FakeAmd:
    """One processor family of a vendor nobody has heard of."""

    def __init__(
        self,
        family: str = "Genoa",
        *,
        name: str = OURS,
        cpu: str | None = None,
        signing_key: str = "vcek",
    ) -> None:
        self.family = family
        self.name = name
        self.cpu = cpu or family
        self.signing_key = signing_key
        self.tcb = TCBS[family]
        self.hwid = hashlib.sha512(f"chip of {name}".encode()).digest()[: 8 if family == "Turin" else 64]
        self.chip_id = self.hwid.ljust(64, b"\x00")
        self.chip_key = chip_key(f"{name} {signing_key}")
        # One pool for all families: crossed chains must then be refused by what the certificates say.
        # And one for all other vendors, which saves time.
        pool = "ours" if name == OURS else "theirs"
        self.keys = {what: f"{pool} {what}" for what in ("ark", "ask", "asvk")}

    # --- certificates ---

    def common_name(self, what: str) -> str:
        return {
            "ark": f"ARK-{self.family}",
            "ask": f"SEV-{self.family}",
            "asvk": f"SEV-VLEK-{self.family}",
            "vcek": "SEV-VCEK",
            "vlek": "SEV-VLEK",
        }[what]

    def extensions(self, what: str) -> dict[str, bytes]:
        """The extensions of a chip's certificate, by what follows the arc."""
        parts = {"3.1": "bootloader", "3.2": "tee", "3.3": "snp", "3.8": "microcode"}
        if self.family == "Turin":
            parts["3.9"] = "fmc"
        found = {"1": small_integer(int(self.family == "Turin")), "2": ia5(self.family)}
        found |= {suffix: small_integer(getattr(self.tcb, part)) for suffix, part in parts.items()}
        found |= {suffix: small_integer(0) for suffix in ("3.5", "3.6", "3.7")}
        return found | ({"4": self.hwid} if what == "vcek" else {"5": ia5(CLOUD)})

    def certificate(
        self,
        what: str,
        *,
        common_name: str | None = None,
        issuer: str | None = None,
        signer: str | None = None,
        serial: int | None = None,
        not_before: datetime = NOON - timedelta(days=365),
        not_after: datetime = NOON + timedelta(days=3650),
        public_key: Any = None,
        extensions: Mapping[str, bytes | None] | None = None,
        authority: bool | None = None,
        critical: str | None = None,
        cert_sign: bool = True,
        crl_sign: bool | None = None,
        pad: padding.PSS | padding.PKCS1v15 | None = None,
        hash_algorithm: HashAlgorithm | None = None,
    ) -> bytes:
        """A certificate as AMD would make it, except for what is asked to be otherwise."""
        leaf = what in ("vcek", "vlek")
        above = {"vcek": "ask", "vlek": "asvk"}.get(what, "ark")
        authority = not leaf if authority is None else authority
        if public_key is None:
            public_key = self.chip_key.public_key() if leaf else rsa_key(self.keys[what]).public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(name_of(common_name or self.common_name(what), self.name))
            .issuer_name(name_of(issuer or self.common_name(above), self.name))
            .public_key(public_key)
            .serial_number(serial or {"ark": 0x20000, "ask": 0x20002, "asvk": 0x20101}.get(what, 1))
            .not_valid_before(not_before)
            .not_valid_after(not_after)
        )
        if authority:
            length = None if what == "ark" else 0
            builder = builder.add_extension(x509.BasicConstraints(True, length), critical=True)
            usage = dict.fromkeys(
                (
                    "digital_signature",
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            )
            crl_sign = what == "ark" if crl_sign is None else crl_sign
            builder = builder.add_extension(
                x509.KeyUsage(key_cert_sign=cert_sign, crl_sign=crl_sign, **usage), critical=True
            )
        if leaf:
            for suffix, value in {**self.extensions(what), **(extensions or {})}.items():
                if value is not None:
                    oid = x509.ObjectIdentifier(ARC + suffix)
                    builder = builder.add_extension(
                        x509.UnrecognizedExtension(oid, value), critical=suffix == critical
                    )
        pad = pad or padding.PSS(padding.MGF1(SHA384()), 48)
        key = rsa_key(self.keys[signer or above])
        return builder.sign(key, hash_algorithm or SHA384(), rsa_padding=pad).public_bytes(Encoding.DER)

    def crl(
        self,
        *,
        revoked: Iterable[int] = (),
        issuer: str | None = None,
        signer: str = "ark",
        this_update: datetime = NOON - timedelta(days=30),
        next_update: datetime = NOON + timedelta(days=30),
        delta: bool = False,
        pad: padding.PSS | padding.PKCS1v15 | None = None,
    ) -> bytes:
        """A revocation list of the root's."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name_of(issuer or self.common_name("ark"), self.name))
            .last_update(this_update)
            .next_update(next_update)
            .add_extension(x509.CRLNumber(4), critical=False)
        )
        if delta:
            builder = builder.add_extension(x509.DeltaCRLIndicator(1), critical=True)
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(this_update)
            builder = builder.add_revoked_certificate(entry.build())
        pad = pad or padding.PSS(padding.MGF1(SHA384()), 48)
        return builder.sign(rsa_key(self.keys[signer]), SHA384(), rsa_padding=pad).public_bytes(Encoding.DER)

    @cached_property
    def _endorsements(self) -> dict[str, bytes]:
        above = "ask" if self.signing_key == "vcek" else "asvk"
        return {
            what: _certificate(self.family, self.name, what) for what in ("ark", above, self.signing_key)
        } | {"crl": _crl(self.family, self.name)}

    def endorsements(self, **changes: bytes | None) -> dict[str, bytes]:
        """What is sent beside a report; None leaves one out."""
        return {name: value for name, value in {**self._endorsements, **changes}.items() if value is not None}

    # --- reports ---

    def unsigned(self, user_data: bytes, **changes: Any) -> Report:
        tcb = self.tcb.encode(self.family)
        report = Report(
            version=5,
            guest_svn=3,
            policy=0x30000,
            family_id=bytes(16),
            image_id=bytes(16),
            vmpl=0,
            signature_algorithm=1,
            current_tcb=tcb,
            platform_info=0x25,
            flags=0 if self.signing_key == "vcek" else 4,
            report_data=user_data,
            measurement=MEASUREMENT,
            host_data=bytes(32),
            id_key_digest=bytes(48),
            author_key_digest=bytes(48),
            report_id=bytes(range(32)),
            report_id_ma=b"\xff" * 32,
            reported_tcb=tcb,
            cpuid=CPUID[self.cpu],
            chip_id=self.chip_id if self.signing_key == "vcek" else bytes(64),
            committed_tcb=tcb,
            current_firmware=bytes((0x1D, 0x37, 1)),
            committed_firmware=bytes((0x1D, 0x37, 1)),
            launch_tcb=tcb,
            launch_mitigations=bytes(8),
            current_mitigations=bytes(8),
            signature=bytes(512),
        )
        changes = {name: v.encode(self.family) if isinstance(v, Tcb) else v for name, v in changes.items()}
        return replace(report, **changes)

    def report(
        self, user_data: bytes = bytes(64), *, key: ec.EllipticCurvePrivateKey | None = None, **changes: Any
    ) -> bytes:
        """A well-signed report; `changes` are fields of `Report`."""
        return sign_report(self.unsigned(user_data, **changes), key or self.chip_key)

    # --- policies and documents ---

    @property
    def roots(self) -> dict[bytes, str]:
        return {hashlib.sha256(_certificate(self.family, self.name, "ark")).digest(): self.family}

    def snp_policy(self, **changes: Any) -> SnpPolicy:
        """A policy that trusts this vendor, and asks for what an honest machine says."""
        return SnpPolicy(
            **{
                "measurements": {MEASUREMENT},
                "minimum_tcb": {self.family: self.tcb},
                "signing_keys": {self.signing_key},
                "roots": self.roots,
                **changes,
            }
        )

    def policy(self, **changes: Any) -> Policy:
        outer = {
            name: changes.pop(name) for name in ("accept_cached", "max_age", "clock_skew") if name in changes
        }
        return Policy(snp=self.snp_policy(**changes), **outer)

    def transcript(
        self, key_config: bytes = KEY_CONFIG, nonce: bytes = bytes(32), **changes: Any
    ) -> Transcript:
        start = int(NOON.timestamp()) - 60
        told: dict[str, Any] = {
            "key_config": key_config,
            "nonce": nonce,
            "form": 1 if nonce else 2,
            "not_before": start,
            "not_after": start + (86400 if nonce else 3600),
            "boot_id": bytes(range(16)),
            "config_digest": hashlib.sha384(b"settings").digest(),
            "profile": "blindbox/1",
            "tls_spki_sha256": b"",
        }
        return Transcript(**{**told, **changes})

    def document(
        self,
        key_config: bytes = KEY_CONFIG,
        nonce: bytes = bytes(32),
        *,
        platform: str = SEV_SNP,
        evidence: bytes | None = None,
        endorsements: Mapping[str, bytes] | None = None,
        **changes: Any,
    ) -> bytes:
        """
        A whole document of an honest machine, except for the changes.

        `changes` are fields of `Transcript` or of `Report`; both are made before the report is signed.
        """
        names = {field.name for field in fields(Transcript)}
        in_transcript = {name: changes.pop(name) for name in list(changes) if name in names}
        transcript = self.transcript(key_config, nonce, **in_transcript)
        if evidence is None:
            user_data = changes.pop(
                "report_data", report_data(binding(transcript_bytes(platform, transcript)))
            )
            evidence = self.report(user_data, **changes)
        sent = self.endorsements() if endorsements is None else endorsements
        return AttestationDocument(platform, transcript, evidence, sent).encode()


@cache
def _certificate(family: str, name: str, what: str) -> bytes:
    return FakeAmd(family, name=name, signing_key="vlek" if what == "vlek" else "vcek").certificate(what)


@cache
def _crl(family: str, name: str) -> bytes:
    return FakeAmd(family, name=name).crl()


__all__ = [
    "CLOUD",
    "KEY_CONFIG",
    "MEASUREMENT",
    "SHA256",
    "FakeAmd",
    "chip_key",
    "ia5",
    "rsa_key",
    "small_integer",
]
