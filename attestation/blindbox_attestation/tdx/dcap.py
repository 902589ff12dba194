"""
The second judge: `dcap-qvl`, which checks a quote's signatures and finds the level that Intel gives its
firmware.

Nothing is believed without its yes. Whatever it says is turned into our own words here: a yes into a `Level`,
a no into a `Refusal` with our step and code. A no that is not in the table is still a no. The package is
written in Rust, and loaded only when there is a quote to be judged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ..errors import AttestationError, MalformedEvidence, PolicyRefused, RevokedEvidence, UntrustedEvidence
from .collateral import Collateral
from .quote import TD_1_5, Quote

if TYPE_CHECKING:
    import dcap_qvl

LAST_STEP: Final = 7
"""Of those that ask whether a quote is genuine. What `dcap-qvl` refuses after them, it looks at last."""

_PREFIX: Final = "Verification failed: "
_LONGEST_MESSAGE: Final = 400
_PANIC: Final = "PanicException"  # of PyO3: what an assertion in Rust becomes

# How the first line of its message begins → step, error, code. In the order in which it looks.
_REFUSALS: Final[tuple[tuple[str, int, type[AttestationError], str], ...]] = (
    ("CrlExpired", 5, RevokedEvidence, "crl-not-valid-now"),
    ("CertRevoked", 5, RevokedEvidence, "revoked"),
    ("Failed to parse root CA CRL", 5, RevokedEvidence, "crl-bad-signature"),
    ("Failed to parse PCK CRL", 5, RevokedEvidence, "crl-bad-signature"),
    ("Failed to decode quote", 3, MalformedEvidence, "malformed-quote"),
    ("Failed to decode TcbInfo", 6, MalformedEvidence, "malformed-collateral"),
    ("Failed to decode QeIdentity", 6, MalformedEvidence, "malformed-collateral"),
    ("TCBInfo ", 6, UntrustedEvidence, "collateral-not-valid-now"),
    ("QE Identity ", 6, UntrustedEvidence, "collateral-not-valid-now"),
    ("Failed to verify certificate chain", 7, UntrustedEvidence, "bad-certificate-signature"),
    ("Signature is invalid for tcb_info", 6, UntrustedEvidence, "collateral-bad-signature"),
    ("Signature is invalid for qe_identity", 6, UntrustedEvidence, "collateral-bad-signature"),
    ("Unsupported QE Identity", 6, UntrustedEvidence, "qe-identity-mismatch"),
    ("Signature is invalid for qe_report", 7, UntrustedEvidence, "bad-qe-signature"),
    ("QE report hash mismatch", 7, UntrustedEvidence, "wrong-attestation-key"),
    (
        "QE report validation failed",
        6,
        UntrustedEvidence,
        "qe-identity-mismatch",
    ),  # a quoting enclave under debug
    ("QE MRSIGNER mismatch", 6, UntrustedEvidence, "qe-identity-mismatch"),
    ("QE ISVPRODID mismatch", 6, UntrustedEvidence, "qe-identity-mismatch"),
    ("QE MISCSELECT mismatch", 6, UntrustedEvidence, "qe-identity-mismatch"),
    ("QE ATTRIBUTES mismatch", 6, UntrustedEvidence, "qe-identity-mismatch"),
    ("Unrecognized TCB status", 6, MalformedEvidence, "malformed-collateral"),
    ("QE ISVSVN ", 6, UntrustedEvidence, "tcb-level-unknown"),
    ("No TCB levels found in QE Identity", 6, UntrustedEvidence, "tcb-level-unknown"),
    ("ISV enclave report signature is invalid", 7, UntrustedEvidence, "bad-signature"),
    ("Fmspc mismatch", 6, UntrustedEvidence, "collateral-mismatch"),
    ("TDX quote with non-TDX TCB info", 6, UntrustedEvidence, "collateral-mismatch"),
    ("SGX component count mismatch", 6, MalformedEvidence, "malformed-collateral"),
    ("TDX component count mismatch", 6, MalformedEvidence, "malformed-collateral"),
    ("No matching TCB level found", 6, UntrustedEvidence, "tcb-level-unknown"),
    ("TCB status is invalid: Revoked", 9, PolicyRefused, "tcb-status"),
    ("Debug mode is enabled", 10, PolicyRefused, "td-attributes"),
    ("TD profiling is enabled", 10, PolicyRefused, "td-attributes"),
    ("TD migration is enabled", 10, PolicyRefused, "td-attributes"),
    ("SERVTD_EXT is enabled", 10, PolicyRefused, "td-attributes"),
    ("SEPT_VE_DISABLE is not enabled", 10, PolicyRefused, "td-attributes"),
    ("Reserved bits in TD attributes", 10, PolicyRefused, "td-attributes"),
    ("Invalid MR service TD", 10, PolicyRefused, "service-td"),
)
# Of the TDX module it speaks under two headings; the cause is below them.
_MODULE: Final = ("TDX module identity check", "TDX module TCB level check")
_MODULE_REFUSALS: Final[tuple[tuple[str, int, type[AttestationError], str], ...]] = (
    ("TDX module MRSIGNER mismatch", 11, PolicyRefused, "seam-mismatch"),
    ("TDX module SEAMATTRIBUTES", 11, PolicyRefused, "seam-mismatch"),
    ("TDX module ISVSVN ", 6, UntrustedEvidence, "tcb-level-unknown"),
    ("Unrecognized TCB status", 6, MalformedEvidence, "malformed-collateral"),
    ("No TDX module identity", 6, UntrustedEvidence, "tcb-level-unknown"),
    ("TDX TCB Info is missing", 6, MalformedEvidence, "malformed-collateral"),
)


@dataclass(frozen=True, slots=True)
class Level:
    """Where Intel puts the machine: the worst of platform, TDX module and quoting enclave."""

    status: str
    advisories: frozenset[str]  # "INTEL-SA-…"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A no, in our words."""

    step: int
    error: type[AttestationError]
    code: str
    message: str

    def raised(self) -> AttestationError:
        return self.error(f"dcap-qvl refuses the quote: {self.message}", code=self.code)


def ask(quote: Quote, collateral: Collateral, root: bytes, *, now: datetime) -> Level | Refusal:
    """What `dcap-qvl` says of the whole, below this root (DER)."""
    from dcap_qvl import verify_with_root_ca

    try:
        report = verify_with_root_ca(quote.data, _collateral(collateral), root, int(now.timestamp()))
        told = json.loads(report.to_json())
        level = Level(told["status"], frozenset(told["advisory_ids"]))
        agreed = _read(told["report"], quote.body) == quote.content.hex()
    except BaseException as error:
        # A panic is no `Exception`, and must not end the caller's program: it is a no.
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        return _refusal(str(error))
    if not agreed:
        return Refusal(
            LAST_STEP, UntrustedEvidence, "dcap-refused", "it read other values from the quote than we did"
        )
    return level


@lru_cache(maxsize=8)
def _collateral(collateral: Collateral) -> dcap_qvl.QuoteCollateralV3:
    from dcap_qvl import QuoteCollateralV3

    return QuoteCollateralV3(
        pck_crl_issuer_chain=collateral.pck_crl_issuer_chain,
        root_ca_crl=collateral.root_ca_crl,
        pck_crl=collateral.pck_crl,
        tcb_info_issuer_chain=collateral.tcb_info_issuer_chain,
        tcb_info=collateral.tcb_info,
        tcb_info_signature=collateral.tcb_info_signature,
        qe_identity_issuer_chain=collateral.qe_identity_issuer_chain,
        qe_identity=collateral.qe_identity,
        qe_identity_signature=collateral.qe_identity_signature,
    )


def _read(report: dict[str, Any], body: int) -> str:
    """
    The values that it verified, put together again as they lie in the quote, in hex.

    A missing or an unknown one is a no, like every surprise here.
    """
    if body == TD_1_5:
        newer = dict(report["TD15"])
        return "".join((*newer.pop("base").values(), *newer.values()))
    return "".join(report["TD10"].values())


def _refusal(text: str) -> Refusal:
    # It quotes what it could not read: as one short line, and nothing in it that a terminal would obey.
    message = ascii(" ".join(text[:_LONGEST_MESSAGE].removeprefix(_PREFIX).split()))[1:-1]
    heading, _, causes = message.partition(" Caused by: ")
    table, line = (_MODULE_REFUSALS, causes) if heading in _MODULE else (_REFUSALS, heading)
    for beginning, step, error, code in table:
        if line.startswith(beginning):
            return Refusal(step, error, code, message)
    return Refusal(LAST_STEP, UntrustedEvidence, "dcap-refused", message)
