"""The readers that meet bytes from outside, each with honest bytes to begin from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from blindbox_attestation import cbor, policy
from blindbox_attestation.der import NotDer
from blindbox_attestation.errors import BlindBoxError
from blindbox_attestation.evidence import AttestationDocument
from blindbox_attestation.gcp.token import Token
from blindbox_attestation.nitro.document import Document
from blindbox_attestation.snp.report import Report
from blindbox_attestation.tdx.collateral import Collateral
from blindbox_attestation.tdx.quote import Quote
from blindbox_attestation.x509 import Certificate, RevocationList
from tests.kit.amd import FakeAmd
from tests.kit.specimens import specimen

Reader = Callable[[bytes], object]

TYPED = (BlindBoxError, NotDer, cbor.NotCbor)
"""What a reader may raise. The last two are the lowest readers' own."""


def honest_policy() -> bytes:
    return (
        b'{"version":1,"snp":{"measurements":["' + b"ab" * 48 + b'"],'
        b'"minimum_tcb":{"Turin":{"fmc":0,"bootloader":1,"tee":0,"snp":2,"microcode":71}},"vmpl":0},'
        b'"max_age_seconds":60}'
    )


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
}
