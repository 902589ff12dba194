"""
The evidence of an Azure machine, one JSON object: from bytes to an `AzureEvidence`.

This module reads; it does not judge. Format: SPEC §4.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .. import strict_json
from ..errors import MalformedEvidence
from ..vtpm.quote import Quote, malformed, read_fields
from .hcl import PROCESSORS, TDX, Hcl
from .tdreport import TdReport

MAX_EVIDENCE: Final = 64 * 1024
"""A TD quote in a padded buffer and 24 registers are a quarter of it."""

_KEYS: Final = ("hcl", "attest", "signature", "pcrs")


@dataclass(frozen=True, slots=True)
class AzureEvidence:
    """What the machine sent. Nothing here has been verified."""

    hcl: Hcl
    quote: Quote  # of the paravisor's TPM
    td_report: TdReport | None  # what is in `hcl` on TDX
    td_quote: bytes  # of that TDREPORT; empty on SNP

    @classmethod
    def parse(cls, data: bytes, kind: int) -> AzureEvidence:
        """`kind` is the processor whose report has to be there: SNP or TDX."""
        if len(data) > MAX_EVIDENCE:
            raise MalformedEvidence(
                f"the evidence is {len(data)} bytes, at most {MAX_EVIDENCE} are read",
                code="document-too-large",
            )
        try:
            told = read_fields(data, (*_KEYS, "td_quote") if kind == TDX else _KEYS, ())
            hcl = Hcl.parse(strict_json.from_base64(told["hcl"], "hcl"))
            if hcl.kind != kind:
                raise MalformedEvidence(
                    f"the paravisor's report is about {hcl.processor}, expected {PROCESSORS[kind]}",
                    code="wrong-tee-type",
                )
            return cls(
                hcl=hcl,
                quote=Quote.of(told, "the evidence"),
                td_report=TdReport.parse(hcl.report) if kind == TDX else None,
                td_quote=strict_json.from_base64(told["td_quote"], "td_quote") if kind == TDX else b"",
            )
        except strict_json.JsonRefused as error:
            raise malformed(error) from error
