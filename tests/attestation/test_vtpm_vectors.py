"""Real quotes and certificates of TPMs, and the verdict that each must get."""

from __future__ import annotations

import hashlib
import json
import struct
from base64 import b64decode
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from cryptography.x509 import load_pem_x509_certificate

from blindbox_attestation import strict_json
from blindbox_attestation.roots import AZURE_VTPM_ROOTS, GCE_AK_ROOTS
from blindbox_attestation.vtpm import MeasuredBoot, TpmPolicy, appraise, chain
from blindbox_attestation.vtpm.boot import RESETTABLE
from blindbox_attestation.walk import Finding
from tests.kit.verdict import verdict

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
NONCE = bytes.fromhex("d1e3f690e2eb641858a46c966fe1e97bdf49ea8ad46c45516fca56024d0472d7")


def spki(pem: bytes) -> bytes:
    return load_pem_public_key(pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def told(attest: bytes, signature: bytes, key: bytes, registers: dict[int, bytes]) -> bytes:
    return strict_json.dump(
        {
            "version": 1,
            "attest": strict_json.to_base64(attest),
            "signature": strict_json.to_base64(signature),
            "ak_public": strict_json.to_base64(key),
            "pcrs": {str(register): value.hex() for register, value in registers.items()},
        }
    )


def tools_registers(data: bytes) -> dict[int, bytes]:
    """As tpm2_quote --pcrs_format=serialized leaves them: the selection, then lists of at most eight."""
    bitmap = int.from_bytes(data[7:10], "little")
    values: list[bytes] = []
    (lists,) = struct.unpack_from("<I", data, 132)
    for at in range(136, 136 + 532 * lists, 532):
        (count,) = struct.unpack_from("<I", data, at)
        values += [data[at + 6 + 66 * one : at + 38 + 66 * one] for one in range(count)]
    return dict(zip((one for one in range(24) if bitmap >> one & 1), values, strict=True))


def swtpm(vectors: Path, kind: str) -> tuple[bytes, bytes, dict[int, bytes]]:
    folder = vectors / "vtpm"
    registers = tools_registers((folder / f"swtpm_{kind}_quote.pcrs").read_bytes())
    key = spki((folder / f"swtpm_{kind}_ak.pem").read_bytes())
    attest = (folder / f"swtpm_{kind}_quote.msg").read_bytes()
    return told(attest, (folder / f"swtpm_{kind}_quote.sig").read_bytes(), key, registers), key, registers


def trustee(vectors: Path) -> tuple[bytes, bytes, dict[int, bytes]]:
    case = json.loads((vectors / "vtpm" / "rsa_quote_evidence.json").read_bytes())
    quote = case["tpm_quote"]
    registers = {at: bytes.fromhex(one) for at, one in enumerate(quote["pcrs"])}
    key = b64decode(case["ak_public"])
    return told(b64decode(quote["message"]), b64decode(quote["signature"]), key, registers), key, registers


def policy(registers: dict[int, bytes], **changes: object) -> TpmPolicy:
    boot = MeasuredBoot(
        pcrs={register: {value} for register, value in registers.items() if register not in RESETTABLE},
        secure_boot="unchecked",
        event_log="unused",
    )
    return TpmPolicy(boot=boot, **changes)  # type: ignore[arg-type]


def code_of(evidence: bytes, asked: TpmPolicy, **endorsements: bytes) -> str:
    return verdict(lambda: appraise(evidence, endorsements, asked, now=NOW))


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_a_quote_of_a_software_tpm_passes_by_its_pinned_key_and_no_other_way(
    vectors: Path, kind: str
) -> None:
    """C-2: a valid signature by a key that nobody vouches for proves nothing."""
    evidence, key, registers = swtpm(vectors, kind)
    assert registers[8] == hashlib.sha256(bytes(32) + hashlib.sha256(b"app").digest()).digest()
    claims = appraise(evidence, {}, policy(registers, ak_keys={hashlib.sha256(key).digest()}), now=NOW)
    assert claims.carries(NONCE)
    assert not claims.carries(NONCE[:-1])
    assert code_of(evidence, policy(registers, ak_keys={bytes(32)})) == "unpinned-ak"
    assert code_of(evidence, policy(registers)) == "missing-endorsement"


def test_a_real_rsa_quote_passes_by_its_pinned_key_and_no_other_way(vectors: Path) -> None:
    evidence, key, registers = trustee(vectors)
    asked = policy(registers, ak_keys={hashlib.sha256(key).digest()})
    claims = appraise(evidence, {}, asked, now=NOW)
    assert claims.measured.pcrs == registers
    assert len(claims.extra_data) == 64
    assert code_of(evidence, policy(registers, ak_keys={bytes(32)})) == "unpinned-ak"
    assert code_of(evidence, policy(registers)) == "missing-endorsement"


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_no_bit_of_a_real_quote_can_be_turned(vectors: Path, kind: str) -> None:
    """C-15: neither of what was signed, nor of the signature."""
    folder = vectors / "vtpm"
    evidence, key, registers = swtpm(vectors, kind)
    asked = policy(registers, ak_keys={hashlib.sha256(key).digest()})
    parts = [(folder / f"swtpm_{kind}_quote.{one}").read_bytes() for one in ("msg", "sig")]
    assert code_of(evidence, asked) == "accepted"
    for which, part in enumerate(parts):
        for bit in range(8 * len(part)):
            turned = bytearray(part)
            turned[bit // 8] ^= 1 << bit % 8
            attest, signature = (bytes(turned) if at == which else one for at, one in enumerate(parts))
            assert code_of(told(attest, signature, key, registers), asked) != "accepted", (which, bit)


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_a_value_that_was_not_quoted_is_refused(vectors: Path, kind: str) -> None:
    evidence, key, _ = swtpm(vectors, kind)
    data = strict_json.parse(evidence)
    asked = policy({8: bytes(32)}, ak_keys={hashlib.sha256(key).digest()})
    data["pcrs"]["8"] = bytes(32).hex()
    assert code_of(strict_json.dump(data), asked) == "pcr-digest-mismatch"


def certificates(vectors: Path) -> list[bytes]:
    names = ("gce_ak_cert", "gce_ak_intermediate", "gce_ek_ak_root")
    return [
        load_pem_x509_certificate((vectors / "vtpm" / f"{name}.pem").read_bytes()).public_bytes(Encoding.DER)
        for name in names
    ]


def test_the_chain_of_a_google_machine_leads_to_the_pinned_root(vectors: Path) -> None:
    found = certificates(vectors)
    pem = (vectors / "vtpm" / "gce_ak_cert.pem").read_bytes()
    key = load_pem_x509_certificate(pem).public_key()
    public = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    leaf = chain.trace(b"".join(found), public, GCE_AK_ROOTS, Finding(), now=NOW)
    instance = chain.Instance.of(leaf)
    assert instance is not None
    assert (instance.zone, instance.project_id) == ("us-west1-b", "nonvolatile-dev")
    assert instance.instance_id == 8033817256003918212
    assert instance.instance_name == "jfquinn-tdx-tpm-ubuntu-test-us-west1-b"


@pytest.mark.parametrize(
    ("order", "code"),
    [
        ((2, 1, 0), "unpinned-root"),
        ((0, 1), "unpinned-root"),
        ((0, 2), "wrong-issuer"),
        ((2,), "wrong-certificate-kind"),
        ((1, 2), "wrong-certificate-kind"),
    ],
)
def test_the_same_certificates_in_another_order_are_refused(
    vectors: Path, order: tuple[int, ...], code: str
) -> None:
    """C-13: an authority is no leaf, and the root is last."""
    found = certificates(vectors)
    sent = b"".join(found[at] for at in order)
    evidence, _, registers = swtpm(vectors, "ecc")
    assert code_of(evidence, policy(registers), ak_chain=sent) == code


def test_a_google_chain_vouches_for_no_other_key(vectors: Path) -> None:
    """C-2: a genuine certificate beside a quote of one's own."""
    evidence, _, registers = swtpm(vectors, "rsa")
    sent = b"".join(certificates(vectors))
    assert code_of(evidence, policy(registers), ak_chain=sent) == "wrong-attestation-key"


def test_the_certificate_of_a_test_authority_is_refused(vectors: Path) -> None:
    """C-13: swtpm's own, against the roots of real vendors."""
    evidence, _, registers = swtpm(vectors, "rsa")
    sent = (vectors / "vtpm" / "swtpm_ekcert.der").read_bytes()
    for roots in (GCE_AK_ROOTS, AZURE_VTPM_ROOTS):
        assert code_of(evidence, policy(registers, roots=roots), ak_chain=sent) == "unpinned-root"


def test_the_pinned_roots_are_the_certificates_of_the_vendors(vectors: Path) -> None:
    for roots, path in (
        (GCE_AK_ROOTS, "vtpm/gce_ek_ak_root.pem"),
        (AZURE_VTPM_ROOTS, "azure/azure_vtpm_root_2023.pem"),
    ):
        der = load_pem_x509_certificate((vectors / path).read_bytes()).public_bytes(Encoding.DER)
        assert set(roots) == {hashlib.sha256(der).digest()}
