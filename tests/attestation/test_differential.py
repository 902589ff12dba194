"""
Our verifier beside other people's, on the same bytes. What overlaps, and what does not:

- `dcap-qvl` judges TDX quotes. It is also a part of our judgement, so its yes is no second opinion: what
  is seen is that we never accept what it refuses, that we say what it says when both accept, and where we are
  stricter.
- `sev-snp-measure` verifies nothing. It computes what a report has to say: the launch digest of a firmware
  image, and the digests of an ID block's keys; and it writes signatures in the chip's form. Those three are
  compared.
- `cbor2` reads the CBOR of Nitro documents, `cryptography` reads certificates; both read more than we do.

No library for JWT is among the development dependencies; tokens have no second judge here.
"""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from blindbox_attestation import cbor, snp
from blindbox_attestation.conformance import Case
from blindbox_attestation.errors import AttestationError
from blindbox_attestation.nitro import Document
from blindbox_attestation.policy import Policy
from blindbox_attestation.snp.report import SIGNED_SIZE, Report
from blindbox_attestation.tdx import TdxClaims
from blindbox_attestation.verify import appraise
from blindbox_attestation.x509 import Certificate
from tests.kit import NOON
from tests.kit.amd import FakeAmd, chip_key
from tests.vectors.make import FOLDER

dcap_qvl = pytest.importorskip("dcap_qvl")
id_block = pytest.importorskip("sevsnpmeasure.id_block")
guest = pytest.importorskip("sevsnpmeasure.guest")

pytestmark = pytest.mark.filterwarnings("ignore::blindbox_attestation.MilanWarning")


# --- dcap-qvl: TDX ------------------------------------------------------------------------------------------


STRICTER: Final = {
    "malformed-quote": "another kind of certification data than Intel's quoting enclave writes",
    "trailing-bytes": "bytes after the quote are under no signature",
    "reserved-bits": "reserved bytes of the header",
    "malformed-collateral": "second spellings, and a status that Intel gives to no quoting enclave",
    "malformed-event-log": "it does not read the log",
    "malformed-certificate": "PEM in another spelling; the chain above the PCK's list, which it skips",
    "malformed-extension": "bytes after the SGX extension",
    "wrong-issuer": "names, and whether an issuer may sign: by signature alone the chain holds",
    "unpinned-root": "that chain, if it ends elsewhere; and which root is pinned is the caller's business",
    "crl-not-valid-now": "lists that have not begun",
    "certificate-not-valid-now": "the times of the root itself",
    "collateral-mismatch": "the PCE-ID",
    "wrong-attestation-key": "the second half of what the quoting enclave vouches for",
    "wrong-nonce": "it is not asked whom the quote is for",
}
"""Codes of steps 3 to 8 with which we refuse what `dcap-qvl` accepts: what it does not look at."""


def judged(case: Case) -> tuple[TdxClaims | None, str, int]:
    """What we say: claims, or a code and its step."""
    assert isinstance(case.policy, Policy)
    try:
        claims = appraise(
            case.platform, case.evidence, case.endorsements, case.policy, nonce=case.nonce, now=case.now
        )
    except AttestationError as error:
        return None, error.code, error.steps[-1].number
    assert isinstance(claims, TdxClaims)
    return claims, "accepted", 13


def root_of(case: Case, otherwise: bytes) -> bytes:
    """The pinned root, wherever it lies; that of the honest machine if the case does not have it."""
    assert isinstance(case.policy, Policy)
    assert case.policy.tdx is not None
    texts = [case.evidence, case.endorsements["collateral"].replace(b"\\n", b"\n")]
    for text in texts:
        for body in text.split(b"-----BEGIN CERTIFICATE-----")[1:]:
            try:
                der = b64decode(body.partition(b"-----END")[0])
            except ValueError:
                continue
            if hashlib.sha256(der).digest() in case.policy.tdx.roots:
                return der
    return otherwise


def asked(case: Case, root: bytes) -> dict[str, Any] | None:
    """What `dcap-qvl` says, asked directly; None for a no."""
    try:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(case.endorsements["collateral"].decode())
        report = dcap_qvl.verify_with_root_ca(case.evidence, collateral, root, int(case.now.timestamp()))
        found: dict[str, Any] = json.loads(report.to_json())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a panic of its Rust code is no `Exception`
        return None
    return found


def agree(paths: list[Path], vectors: Path | None) -> tuple[int, int, dict[str, str]]:
    """How many both accept and both refuse, and where we are stricter: case → code. Fails if it is."""
    honest = Case.load(FOLDER / "tdx" / "honest-v4" / "case.json")
    root = root_of(honest, b"")
    both, neither = 0, 0
    stricter: dict[str, str] = {}
    for path in paths:
        case = Case.load(path, vectors)
        if "collateral" not in case.endorsements:
            continue
        ours, code, step = judged(case)
        theirs = asked(case, root_of(case, root))
        if theirs is None:
            assert ours is None, f"{path.parent.name}: we accept what dcap-qvl refuses"
            neither += 1
        elif ours is None:
            if step <= 8:
                stricter[path.parent.name] = code
        else:
            both += 1
            assert theirs["status"] == ours.status
            assert frozenset(theirs["advisory_ids"]) == ours.advisories
            ((_, body),) = theirs["report"].items()
            body = body.get("base", body)
            assert body["mr_td"] == ours.mrtd.hex()
            assert [body[f"rt_mr{number}"] for number in range(4)] == [one.hex() for one in ours.rtmrs]
            assert body["report_data"] == ours.report_data.hex()
    return both, neither, stricter


def test_dcap_qvl_never_refuses_what_we_accept_and_says_the_same_when_it_accepts() -> None:
    """C-12, C-16: every TDX case of the corpus."""
    both, neither, stricter = agree(sorted((FOLDER / "tdx").glob("*/case.json")), None)
    assert both >= 30
    assert neither >= 70
    assert set(stricter.values()) == set(STRICTER)


def test_it_agrees_about_real_quotes_too(vectors: Path) -> None:
    both, neither, _ = agree(sorted((FOLDER / "real").glob("tdx-*/case.json")), vectors)
    assert both >= 4
    assert neither >= 10


# --- sev-snp-measure: what a report has to say --------------------------------------------------------------


def entry(guid: str, data: bytes) -> bytes:
    """One entry of the table at the end of OVMF: data, size, GUID."""
    return data + struct.pack("<H", len(data) + 18) + uuid.UUID(guid).bytes_le


def firmware(code: bytes = b"a firmware that nobody has written") -> bytes:
    """As much of OVMF as a launch needs: one page of code, the metadata, the table at its end."""
    sections = [(0x800000, 0x9000, 1), (0x80A000, 0x3000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3)]
    metadata = struct.pack("<4sIII", b"ASEV", 16 + 12 * len(sections), 1, len(sections))
    metadata += b"".join(struct.pack("<III", *section) for section in sections)
    after = 4096 - 1024
    table = entry("dc886566-984a-4798-a75e-5585a7bf67cc", struct.pack("<I", after))
    table += entry("00f771de-1a7e-4fcb-890e-68c77e2fb44e", struct.pack("<I", 0x80B004))
    table += struct.pack("<H", len(table) + 18) + uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    page = bytearray(code.ljust(4096, b"\x90"))
    page[1024 : 1024 + len(metadata)] = metadata
    page[-32 - len(table) : -32] = table
    return bytes(page)


def launch_digest(folder: Path, image: bytes, vcpus: int = 2) -> bytes:
    path = folder / "ovmf.fd"
    path.write_bytes(image)
    found: bytes = guest.snp_calc_launch_digest(vcpus, 0x00A00F11, str(path), "", "", "", 1, "")
    return found


def by_hand(image: bytes, vmsas: list[bytes]) -> bytes:
    """The same launch, from AMD 56860 §8.17.2 alone: one PAGE_INFO for each page."""
    digest = bytes(48)

    def page(kind: int, address: int, contents: bytes) -> None:
        nonlocal digest
        info = (
            digest
            + contents
            + struct.pack("<HBBBBBB", 0x70, kind, 0, 0, 0, 0, 0)
            + struct.pack("<Q", address)
        )
        digest = hashlib.sha384(info).digest()

    page(1, (1 << 32) - 4096, hashlib.sha384(image).digest())
    for start, pages in ((0x800000, 9), (0x80A000, 3)):
        for number in range(pages):
            page(3, start + 4096 * number, bytes(48))
    page(5, 0x80D000, bytes(48))
    page(6, 0x80E000, bytes(48))
    for vmsa in vmsas:
        page(2, 0xFFFFFFFFF000, hashlib.sha384(vmsa).digest())
    return digest


def test_a_launch_digest_of_sev_snp_measure_is_what_a_policy_names(tmp_path: Path) -> None:
    """C-6: the value that goes into `measurements`; another image or number of CPUs gives another."""
    amd = FakeAmd("Milan")
    expected = launch_digest(tmp_path, firmware())
    assert len(expected) == 48
    policy = amd.snp_policy(measurements={expected})
    assert (
        snp.appraise(amd.report(measurement=expected), amd.endorsements(), policy, now=NOON).measurement
        == expected
    )
    for other in (
        launch_digest(tmp_path, firmware(b"another firmware")),
        launch_digest(tmp_path, firmware(), vcpus=3),
    ):
        with pytest.raises(AttestationError) as caught:
            snp.appraise(amd.report(measurement=other), amd.endorsements(), policy, now=NOON)
        assert caught.value.code == "measurement-mismatch"


def test_a_launch_digest_is_what_the_specification_says_it_is(tmp_path: Path) -> None:
    """Worked out a second time; only the pages with the state of the CPUs are taken from the tool."""
    vmsa = pytest.importorskip("sevsnpmeasure.vmsa")
    mode = pytest.importorskip("sevsnpmeasure.sev_mode").SevMode.SEV_SNP
    vmm = pytest.importorskip("sevsnpmeasure.vmm_types").VMMType.QEMU
    pages = list(vmsa.VMSA(mode, 0x80B004, 0x00A00F11, 1, vmm).pages(2))
    assert launch_digest(tmp_path, firmware()) == by_hand(firmware(), pages)


def test_the_digests_of_an_id_block_s_keys_are_those_that_a_policy_names(tmp_path: Path) -> None:
    """C-51: `snp-create-id-block` prints them for exactly this."""
    keys = {name: chip_key(f"a key for {name}") for name in ("id", "author")}
    for name, key in keys.items():
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(pem)
    told = id_block.snp_calc_id_block(bytes(48), str(tmp_path / "id.pem"), str(tmp_path / "author.pem"))
    printed = dict(line.split(": ") for line in told.splitlines()[1:])
    own, author = (b64decode(printed[name]) for name in ("id_key_hash", "author_key"))
    amd = FakeAmd("Genoa")
    policy = amd.snp_policy(id_key_digests={own}, author_key_digests={author})
    report = amd.report(id_key_digest=own, author_key_digest=author, flags=1)
    assert snp.appraise(report, amd.endorsements(), policy, now=NOON).id_key_digest == own
    crossed = amd.report(id_key_digest=author, author_key_digest=own, flags=1)
    with pytest.raises(AttestationError) as caught:
        snp.appraise(crossed, amd.endorsements(), policy, now=NOON)
    assert caught.value.code == "id-block"


def test_a_signature_that_sev_snp_measure_writes_is_read_as_the_chips() -> None:
    """C-17: R and S little endian in 72 bytes each."""
    amd = FakeAmd("Turin")
    content = amd.report()[:SIGNED_SIZE]
    report = content + id_block.sign_in_snp_format(amd.chip_key, content)
    assert len(report) == 1184
    assert (
        snp.appraise(report, amd.endorsements(), amd.snp_policy(), now=NOON).measurement
        == Report.parse(report).measurement
    )


# --- cbor2 and cryptography: other readers ------------------------------------------------------------------


def as_ours(value: Any) -> Any:
    """What `cbor2` reads, in our types: lists as tuples."""
    if isinstance(value, list):
        return tuple(map(as_ours, value))
    if isinstance(value, dict):
        return {key: as_ours(one) for key, one in value.items()}
    return value


def nitro_documents() -> Iterator[bytes]:
    for path in sorted((FOLDER / "nitro").rglob("evidence*.cbor")):
        yield path.read_bytes()


def test_what_our_cbor_reader_reads_cbor2_reads_the_same() -> None:
    """C-17: of all Nitro documents of the corpus, the broken ones too; it reads more, and never otherwise."""
    read = 0
    for data in nitro_documents():
        try:
            ours = cbor.parse(data, tag=18)
        except cbor.NotCbor:
            continue
        theirs = cbor2.loads(data)
        assert as_ours(theirs.value if isinstance(theirs, cbor2.CBORTag) else theirs) == ours
        read += 1
        try:
            document = Document.parse(data)
        except AttestationError:
            continue
        told = cbor2.loads(document.payload)
        assert dict(document.pcrs) == told["pcrs"]
        assert (document.module_id, document.certificate) == (told["module_id"], told["certificate"])
        assert document.signed == cbor2.dumps(["Signature1", document.protected, b"", document.payload])
    assert read > 100


def certificates() -> Iterator[bytes]:
    for path in sorted(FOLDER.rglob("*.der")):
        if path.parent.name != "real" and not path.name.startswith("crl"):
            yield path.read_bytes()


def test_what_our_certificate_reader_reads_cryptography_reads_the_same() -> None:
    """C-17: of all certificates of the corpus, the broken ones too."""
    read = 0
    for der in certificates():
        try:
            ours = Certificate.parse(der, "the")
        except AttestationError:
            continue
        theirs = x509.load_der_x509_certificate(der)
        (name,) = theirs.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        assert (ours.common_name, ours.serial) == (name.value, theirs.serial_number)
        assert (ours.not_before, ours.not_after) == (theirs.not_valid_before_utc, theirs.not_valid_after_utc)
        assert (ours.subject, ours.issuer) == (theirs.subject.public_bytes(), theirs.issuer.public_bytes())
        assert ours.signed.content == theirs.tbs_certificate_bytes
        read += 1
    assert read > 50


def test_a_second_reader_finds_the_same_chain_in_honest_endorsements() -> None:
    """C-13: `verify_directly_issued_by` of `cryptography`, link by link."""
    for family in ("milan", "genoa", "turin"):
        case = Case.load(FOLDER / "snp" / f"honest-{family}-vcek" / "case.json")
        ark, ask, vcek = (
            x509.load_der_x509_certificate(case.endorsements[one]) for one in ("ark", "ask", "vcek")
        )
        ark.verify_directly_issued_by(ark)
        ask.verify_directly_issued_by(ark)
        vcek.verify_directly_issued_by(ask)
