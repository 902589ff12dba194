"""The readers that meet bytes from outside, each with honest bytes to begin from."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

from blindbox import report as reports
from blindbox_attestation import cbor, policy, strict_json
from blindbox_attestation.azure.evidence import AzureEvidence
from blindbox_attestation.azure.hcl import SNP, TDX, Hcl
from blindbox_attestation.azure.runtime import Runtime
from blindbox_attestation.azure.tdreport import TdReport
from blindbox_attestation.der import NotDer
from blindbox_attestation.errors import BlindBoxError
from blindbox_attestation.event_log import EventLog, Variable
from blindbox_attestation.evidence import AttestationDocument
from blindbox_attestation.gcp.token import Token
from blindbox_attestation.nitro.document import Document
from blindbox_attestation.receipt import ReceiptFile
from blindbox_attestation.snp.report import Report
from blindbox_attestation.tdx.collateral import Collateral
from blindbox_attestation.tdx.quote import Quote
from blindbox_attestation.vtpm import chain
from blindbox_attestation.vtpm.area import Area
from blindbox_attestation.vtpm.evidence import TpmEvidence, read_key
from blindbox_attestation.vtpm.quote import Attest, Signature
from blindbox_attestation.x509 import Certificate, RevocationList
from blindbox_data import DataError, Form, open_rows
from tests.kit import NOON
from tests.kit.amd import FakeAmd
from tests.kit.policies import CHANGED
from tests.kit.receipts import made
from tests.kit.specimens import specimen
from tests.kit.tpm import variable

Reader = Callable[[bytes], object]

TYPED = (BlindBoxError, DataError, NotDer, cbor.NotCbor)
"""What a reader may raise. The last two are the lowest readers' own."""


def honest_policy() -> bytes:
    """With a wish in every field of every platform."""
    return strict_json.dump({"version": 1, **CHANGED, "max_age_seconds": 60})


def honest_proof() -> bytes:
    """As a program saves it after it has asked a machine."""
    amd = FakeAmd()
    report = reports.Report(
        "http://machine.example:80", NOON, policy=amd.policy(), nonce=bytes(32), document=amd.document()
    )
    return report.judged().to_json().encode("ascii")


def part(name: str, member: str) -> bytes:
    """One member of the evidence of that specimen."""
    told = strict_json.parse(specimen(name).files["evidence"])
    return strict_json.from_base64(told[member], member)


def hcl(name: str) -> Hcl:
    return Hcl.parse(part(name, "hcl"))


def rows(form: Form) -> Reader:
    """All rows of a data set of this form."""
    return lambda data: list(open_rows(io.BytesIO(data), form))


READERS: dict[str, tuple[Reader, Callable[[], bytes]]] = {
    "document": (AttestationDocument.parse, lambda: FakeAmd().document()),
    "policy": (policy.read, honest_policy),
    "certificate": (partial(Certificate.parse, what="test"), lambda: specimen("snp-vcek").files["vcek"]),
    "revocation-list": (RevocationList.parse, lambda: specimen("snp-vcek").files["crl"]),
    "snp-report": (Report.parse, lambda: specimen("snp-vcek").files["evidence"]),
    "tdx-quote": (Quote.parse, lambda: specimen("tdx-v5").files["evidence"]),
    "tdx-collateral": (Collateral.parse, lambda: specimen("tdx-v4").files["collateral"]),
    "cbor": (partial(cbor.parse, tag=18), lambda: specimen("nitro").files["evidence"]),
    "nitro-document": (Document.parse, lambda: specimen("nitro").files["evidence"]),
    "gcp-token": (Token.parse, lambda: specimen("gcp").files["evidence"]),
    "tpm-evidence": (TpmEvidence.parse, lambda: specimen("tpm-rsa").files["evidence"]),
    "tpm-quote": (Attest.parse, lambda: part("tpm-ecc", "attest")),
    "tpm-signature": (Signature.parse, lambda: part("tpm-ecc", "signature")),
    "tpm-public-area": (Area.parse, lambda: part("tpm-ecc", "ak_area")),
    "tpm-key": (read_key, lambda: part("tpm-ecc", "ak_public")),
    "ak-chain": (chain.split, lambda: specimen("tpm-ecc").files["ak_chain"]),
    "event-log": (EventLog.parse, lambda: specimen("tpm-ecc").files["event_log"]),
    "variable": (Variable.parse, lambda: variable("SecureBoot", b"\x01")),
    "azure-snp-evidence": (
        partial(AzureEvidence.parse, kind=SNP),
        lambda: specimen("az-snp").files["evidence"],
    ),
    "azure-tdx-evidence": (
        partial(AzureEvidence.parse, kind=TDX),
        lambda: specimen("az-tdx").files["evidence"],
    ),
    "azure-hcl": (Hcl.parse, lambda: part("az-snp", "hcl")),
    "azure-runtime": (Runtime.parse, lambda: hcl("az-snp").runtime),
    "td-report": (TdReport.parse, lambda: hcl("az-tdx").report),
    "proof": (reports.SavedProof.parse, honest_proof),
    "receipt": (ReceiptFile.parse, lambda: made(FakeAmd()).encode()),
    "json-lines": (rows(Form.JSONL), lambda: b'{"question": "q", "answer": ["a", 1.5]}\n' * 3),
    "json-array": (
        rows(Form.JSON),
        lambda: b'[{"question": "q", "answer": ["a", 1.5]}, {"question": "\xc3\xa9"}]',
    ),
}
