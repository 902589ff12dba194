"""
Intel's TDREPORT, which Azure's paravisor keeps beside the quote that was made from it: from bytes to a
`TdReport`.

It is signed by nobody (its MAC can be checked on its own machine only), so nothing in it is believed. It is
read to see that the quote was made from it, field by field: then everything it says is what the quote says.
Layout: Intel 344426, "TDX Module ABI", TDREPORT_STRUCT.

This module reads; it does not judge.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from ..errors import MalformedEvidence
from ..tdx.quote import TD_1_5, Quote

_SIZE: Final = 1024
_TYPE: Final = 0x81
_SERVICE_TD: Final = slice(912, 960)  # version 1 says that there is one
_TCB_INFO: Final = slice(256, 495)
_TD_INFO: Final = slice(512, 1024)
_TCB_INFO_HASH: Final = slice(32, 80)
_TD_INFO_HASH: Final = slice(80, 128)
_ZERO: Final = (slice(1, 3), slice(4, 16), slice(192, 224), slice(495, 512))
# In the order they have in the body of a quote. 16:32 (CPUSVN) and 224:256 (the MAC) are in no quote.
_BODY: Final = (slice(264, 384), slice(512, 912), slice(128, 192))
_BODY_1_5: Final = (*_BODY, slice(384, 400), _SERVICE_TD)
_BODY_AT: Final = {4: 48, 5: 54}  # in a quote of this version


@dataclass(frozen=True, slots=True)
class TdReport:
    """What the TDX module told the paravisor. Nothing here has been verified."""

    report_data: bytes  # 64 bytes, chosen by the paravisor
    _body: bytes  # the 584 bytes that a quote of it has as its body (TD 1.0) …
    _body_1_5: bytes  # … or the 648 (TD 1.5)

    @classmethod
    def parse(cls, data: bytes) -> TdReport:
        if len(data) != _SIZE or data[0] != _TYPE or data[3] != any(data[_SERVICE_TD]):
            raise MalformedEvidence(
                "this is no TDREPORT of a version this verifier knows", code="malformed-hcl"
            )
        if any(any(data[part]) for part in _ZERO):
            raise MalformedEvidence("reserved bytes of the TDREPORT are not zero", code="reserved-bits")
        for told, of in ((_TCB_INFO_HASH, _TCB_INFO), (_TD_INFO_HASH, _TD_INFO)):
            if hashlib.sha384(data[of]).digest() != data[told]:
                raise MalformedEvidence(
                    "the TDREPORT does not agree with its own hashes", code="malformed-hcl"
                )
        return cls(
            report_data=data[128:192],
            _body=b"".join(data[part] for part in _BODY),
            _body_1_5=b"".join(data[part] for part in _BODY_1_5),
        )

    def body_of(self, kind: int) -> bytes:
        """The body, of this kind, of a quote that was made from it."""
        return self._body_1_5 if kind == TD_1_5 else self._body


def quoted_body(quote: Quote) -> bytes:
    """The exact bytes of a quote that come from a TDREPORT."""
    at = _BODY_AT[quote.version]
    return quote.data[at : at + (648 if quote.body == TD_1_5 else 584)]
