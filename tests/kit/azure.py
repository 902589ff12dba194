"""
A fake Azure: a paravisor of its own on the fake processors, and the real machines of the vectors in our own
form.

`from_foreign` reads the containers in which other projects keep genuine evidence. Nothing is signed again
there: the bytes that the hardware signed stay as they are, only what is around them is ours.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Set
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from blindbox_attestation import strict_json
from blindbox_attestation.azure import AzureSnpPolicy, AzureTdxPolicy, appraise_snp, appraise_tdx
from blindbox_attestation.azure.hcl import HASHES, SNP, TDX, Hcl
from blindbox_attestation.binding import binding, transcript_bytes
from blindbox_attestation.evidence import AZURE_SNP, AZURE_TDX, AttestationDocument, Transcript
from blindbox_attestation.policy import Policy
from blindbox_attestation.vtpm.boot import MeasuredBoot
from tests.kit import NOON
from tests.kit.amd import KEY_CONFIG, FakeAmd
from tests.kit.intel import FakeIntel

_RSASSA_SHA256: Final = b"\x00\x14\x00\x0b"


def rsassa_signature(raw: bytes) -> bytes:
    """A TPMT_SIGNATURE around a bare RSA signature (TPM 2.0 Library, Part 2, §11.3.4)."""
    return _RSASSA_SHA256 + len(raw).to_bytes(2, "big") + raw


def evidence_json(
    hcl: bytes,
    attest: bytes,
    signature: bytes,
    pcrs: dict[str, str],
    td_quote: bytes | None = None,
    **more: Any,
) -> bytes:
    """The evidence of SPEC §4.5."""
    told: dict[str, Any] = {
        "version": 1,
        "hcl": strict_json.to_base64(hcl),
        "attest": strict_json.to_base64(attest),
        "signature": strict_json.to_base64(signature),
        "pcrs": pcrs,
    }
    if td_quote is not None:
        told["td_quote"] = strict_json.to_base64(td_quote)
    return json.dumps({**told, **more}).encode("ascii")


@dataclass(frozen=True)
class Foreign:
    """One genuine machine, in our form."""

    hcl: bytes
    attest: bytes
    signature: bytes  # TPMT_SIGNATURE
    pcrs: dict[str, str]
    td_quote: bytes | None
    endorsements: dict[str, bytes]

    @property
    def evidence(self) -> bytes:
        return evidence_json(self.hcl, self.attest, self.signature, self.pcrs, self.td_quote)


def from_foreign(path: Path) -> Foreign:
    """Read one of the three containers that the vectors come in; certificates in them become endorsements."""
    told = json.loads(path.read_bytes())
    told = told.get("evidence", told)
    tpm = told.get("tpm_attestation")
    quote = tpm["quote"] if tpm else told.get("tpm_quote") or told["quote"]
    values = [_bytes(value) for value in quote["pcrs"]]
    td_quote = told.get("td_quote") or told.get("tdx_quote_base64")
    endorsements: dict[str, bytes] = {}
    if "vcek" in told:
        vcek = told["vcek"]
        endorsements["vcek"] = (
            ssl.PEM_cert_to_DER_cert(vcek.strip()) if vcek.startswith("-----") else _base64(vcek)
        )
    if tpm:
        chain = [tpm["ak_certificate_pem"], *tpm["ak_intermediate_certificates_pem"]]
        endorsements["ak_chain"] = b"".join(ssl.PEM_cert_to_DER_cert(pem.strip()) for pem in chain)
    return Foreign(
        hcl=_base64(told.get("hcl_report") or told.get("hcl_report_base64") or told["report"]),
        attest=_bytes(quote["message"]),
        signature=rsassa_signature(_bytes(quote["signature"])),
        pcrs={str(number): value.hex() for number, value in enumerate(values)},
        td_quote=None if td_quote is None else _base64(td_quote),
        endorsements=endorsements,
    )


def _base64(value: str | list[int]) -> bytes:
    if isinstance(value, list):
        return bytes(value)
    plain = value.translate(str.maketrans("+/", "-_")).rstrip("=")
    return urlsafe_b64decode(plain + "=" * (-len(plain) % 4))


def _bytes(value: str | list[int]) -> bytes:
    return bytes(value) if isinstance(value, list) else bytes.fromhex(value)


# --- a machine of our own -----------------------------------------------------------------------------------


PCRS: Final = {number: hashlib.sha256(f"register {number}".encode()).digest() for number in range(24)}
VM_ID: Final = "02fe12ec-5b74-4a1b-b261-8ea46fe9af36"


@cache
def ak_of(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The attestation key of the machine of that name."""
    return rsa.generate_private_key(65537, bits)


def attest_of(extra_data: bytes, pcrs: Mapping[int, bytes], **changes: Any) -> bytes:
    """A TPMS_ATTEST about these registers (TPM 2.0 Library, Part 2, §10.12.12)."""
    told: dict[str, Any] = {"magic": 0xFF544347, "kind": 0x8018, "bank": 0x000B, **changes}
    digest = hashlib.sha256(b"".join(value for _, value in sorted(pcrs.items()))).digest()
    bitmap = bytearray(3)
    for number in pcrs:
        bitmap[number // 8] |= 1 << number % 8

    def sized(value: bytes) -> bytes:
        return len(value).to_bytes(2, "big") + value

    return b"".join(
        (
            struct.pack(">IH", told["magic"], told["kind"]),
            sized(b"\x00\x0b" + hashlib.sha256(b"who signs").digest()),
            sized(extra_data),
            struct.pack(">QIIB", 1_000_000, 2, 0, 1),
            struct.pack(">Q", 0x2020031200120003),
            struct.pack(">IHB", 1, told["bank"], len(bitmap)),
            bytes(bitmap),
            sized(digest),
        )
    )


class FakeAzure:
    """One confidential machine, on a fake processor of either kind; every layer can lie on its own."""

    def __init__(self, processor: FakeAmd | FakeIntel, *, name: str = "our machine") -> None:
        self.processor = processor
        self.name = name
        self.kind = SNP if isinstance(processor, FakeAmd) else TDX

    @property
    def platform(self) -> str:
        return AZURE_SNP if self.kind == SNP else AZURE_TDX

    @property
    def ak(self) -> rsa.RSAPrivateKey:
        return ak_of(self.name)

    def jwk(self, kid: str = "HCLAkPub", **changes: Any) -> dict[str, Any]:
        modulus = self.ak.public_key().public_numbers().n.to_bytes(256, "big")
        n = urlsafe_b64encode(modulus).rstrip(b"=").decode("ascii")
        return {"kid": kid, "key_ops": ["sign"], "kty": "RSA", "e": "AQAB", "n": n, **changes}

    def runtime(self, *, keys: Any = None, vm: Mapping[str, Any] | None = None, **changes: Any) -> bytes:
        """What the paravisor says; `vm` changes members of its configuration (None leaves one out)."""
        configuration: dict[str, Any] = {
            "console-enabled": True,
            "secure-boot": True,
            "tpm-enabled": True,
            "vmUniqueId": VM_ID.upper(),
            **(vm or {}),
        }
        told = {
            "keys": [self.jwk(), ak_jwk_for_encryption()] if keys is None else keys,
            "vm-configuration": {name: one for name, one in configuration.items() if one is not None},
            "user-data": "00" * 64,
            **changes,
        }
        return json.dumps(told, separators=(",", ":")).encode("ascii")

    def vouched(
        self, runtime: bytes, hash_name: str = "sha256", **changes: Any
    ) -> tuple[bytes, bytes | None]:
        """The report in the blob, and the quote beside it, of a processor that was given this text's hash."""
        data = hashlib.new(hash_name, runtime).digest().ljust(64, b"\x00")
        if isinstance(self.processor, FakeAmd):
            return self.processor.report(data, **changes), None
        quote = self.processor.quote(data, **changes)
        return td_report_of(quote), quote

    def evidence(
        self,
        extra_data: bytes = bytes(48),
        *,
        runtime: bytes | None = None,
        hash_type: int = 1,
        report: bytes | None = None,
        td_quote: bytes | None = None,
        hcl: bytes | None = None,
        pcrs: Mapping[int, bytes] = PCRS,
        told_pcrs: Mapping[int, bytes] | None = None,
        attest: bytes | None = None,
        signer: rsa.RSAPrivateKey | None = None,
        more: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> bytes:
        """Evidence of an honest machine but for what is asked otherwise; `changes` are the processor's."""
        runtime = self.runtime() if runtime is None else runtime
        made, quote = self.vouched(runtime, HASHES[hash_type], **changes)
        if hcl is None:
            hcl = Hcl(2, self.kind, made if report is None else report, hash_type, runtime).encode()
        attest = attest_of(extra_data, pcrs) if attest is None else attest
        signature = (signer or self.ak).sign(attest, padding.PKCS1v15(), SHA256())
        return evidence_json(
            hcl,
            attest,
            rsassa_signature(signature),
            {str(number): value.hex() for number, value in (told_pcrs or pcrs).items()},
            quote if td_quote is None else td_quote,
            **(more or {}),
        )

    def endorsements(self, **changes: bytes | None) -> dict[str, bytes]:
        told = {**self.processor.endorsements(), **changes}
        return {name: value for name, value in told.items() if value is not None}

    # --- Azure's own certificates for the TPM's key ---

    def certificate(
        self,
        who: str,
        *,
        issuer: str | None = None,
        signer: str | rsa.RSAPrivateKey | None = None,
        public_key: Any = None,
        authority: bool | None = None,
        not_before: datetime = NOON - timedelta(days=300),
        not_after: datetime = NOON + timedelta(days=300),
        hash_algorithm: Any = None,
    ) -> bytes:
        """Of "root", "authority" or "ak", as Azure would make it, but for what is asked otherwise."""
        above = issuer or {"ak": "authority"}.get(who, "root")
        key = self.ak if who == "ak" else ak_of(f"Azure's {who}")
        authority = who != "ak" if authority is None else authority
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(who))
            .issuer_name(_name(above))
            .public_key(public_key or key.public_key())
            .serial_number(7)
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not authority,
                    key_cert_sign=authority,
                    crl_sign=authority,
                    encipher_only=False,
                    decipher_only=False,
                    **usage,
                ),
                critical=True,
            )
        )
        algorithm = hash_algorithm or (SHA384() if above == "root" else SHA512())
        by = ak_of(f"Azure's {signer or above}") if not isinstance(signer, rsa.RSAPrivateKey) else signer
        return builder.sign(by, algorithm).public_bytes(Encoding.DER)

    def ak_chain(self, **changes: bytes) -> bytes:
        """Leaf first, root last; a certificate may be given in place of the honest one of that name."""
        return b"".join(changes.get(who) or self._honest(who) for who in ("ak", "authority", "root"))

    def _honest(self, who: str) -> bytes:
        return _certificate(self.name if who == "ak" else "", who)

    @property
    def roots(self) -> dict[bytes, str]:
        return {hashlib.sha256(self._honest("root")).digest(): "Fake Azure"}

    # --- policies and documents ---

    def azure_policy(self, *, boot: MeasuredBoot | None = None, **changes: Any) -> Any:
        """A policy for this machine; `changes` are Azure's, or in `processor` those of the layer below."""
        below = changes.pop("processor", {})
        told = {"boot": boot or boot_of({number: {PCRS[number]} for number in (4, 7, 11)}), **changes}
        if isinstance(self.processor, FakeAmd):
            return AzureSnpPolicy(snp=self.processor.snp_policy(**below), **told)
        return AzureTdxPolicy(tdx=self.processor.tdx_policy(**below), **told)

    def appraise(self, evidence: bytes, policy: Any = None, **endorsements: bytes | None) -> Any:
        """The verdict of the platform on its own, at NOON."""
        judge = appraise_snp if self.kind == SNP else appraise_tdx
        return judge(evidence, self.endorsements(**endorsements), policy or self.azure_policy(), now=NOON)

    def policy(self, **changes: Any) -> Policy:
        return Policy(**{"azure_snp" if self.kind == SNP else "azure_tdx": self.azure_policy(**changes)})

    def document(
        self,
        key_config: bytes = KEY_CONFIG,
        nonce: bytes = bytes(32),
        *,
        evidence: bytes | None = None,
        **changes: Any,
    ) -> bytes:
        """A whole document; `changes` are of the `Transcript`, or arguments of `evidence`."""
        names = {field.name for field in fields(Transcript)}
        in_transcript = {name: changes.pop(name) for name in list(changes) if name in names}
        transcript = FakeAmd().transcript(key_config, nonce, **in_transcript)
        if evidence is None:
            bound = changes.pop("extra_data", binding(transcript_bytes(self.platform, transcript)))
            evidence = self.evidence(bound, **changes)
        return AttestationDocument(self.platform, transcript, evidence, self.endorsements()).encode()


def _name(who: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Fake Azure {who}")])


@cache
def _certificate(name: str, who: str) -> bytes:
    return FakeAzure(FakeAmd(), name=name).certificate(who)


def boot_of(pcrs: Mapping[int, Set[bytes]]) -> MeasuredBoot:
    """These registers and no log."""
    return MeasuredBoot(pcrs=pcrs, secure_boot="unchecked", event_log="unused")


def ak_jwk_for_encryption() -> dict[str, Any]:
    """The other key that a paravisor names."""
    return {**FakeAzure(FakeAmd(), name="a key for encryption").jwk("HCLEkPub"), "key_ops": ["encrypt"]}


def td_report_of(quote: bytes) -> bytes:
    """The TDREPORT that a quote was made from, as far as the quote tells."""
    version = int.from_bytes(quote[:2], "little")
    body = quote[48 : 48 + 584] if version == 4 else quote[54 : 54 + 648]
    data = bytearray(1024)
    data[0] = 0x81
    data[264:384] = body[:120]
    data[512:912] = body[120:520]
    data[128:192] = body[520:584]
    if len(body) == 648:
        data[384:400] = body[584:600]
        data[912:960] = body[600:648]
        data[3] = any(body[600:648])
    data[32:80] = hashlib.sha384(data[256:495]).digest()
    data[80:128] = hashlib.sha384(data[512:1024]).digest()
    return bytes(data)


__all__ = [
    "PCRS",
    "VM_ID",
    "FakeAzure",
    "Foreign",
    "ak_of",
    "attest_of",
    "boot_of",
    "evidence_json",
    "from_foreign",
    "rsassa_signature",
    "td_report_of",
]
