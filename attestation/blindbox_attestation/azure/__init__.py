"""
Azure confidential machines, on AMD SEV-SNP and on Intel TDX: `authenticate` (is it genuine?), `judge` (is
it acceptable?), and `appraise`, which is both; each once for either processor.

The processor vouches for the paravisor (Microsoft's firmware in the guest, which is what is measured), in
whose words is the key of the TPM that it emulates; and that TPM vouches for what the guest has booted and
for our question. The processor's part is the platform of its own (`snp`, `tdx`), walked within the same
steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from .. import snp, tdx
from ..binding import same
from ..errors import UntrustedEvidence
from ..evidence import AK_CHAIN
from ..snp.claims import SnpClaims
from ..snp.report import Report
from ..tdx.claims import TdxClaims
from ..tdx.quote import Quote as TdQuote
from ..vtpm.boot import Measured
from ..vtpm.claims import TpmClaims
from ..vtpm.evidence import spelled
from ..vtpm.quote import RSASSA, Signature, check_quote
from ..walk import Finding, Walk
from ..x509 import Certificate
from . import ak_chain
from .claims import AzureClaims, Processor
from .evidence import AzureEvidence
from .hcl import SNP, TDX, Hcl
from .layers import Beneath
from .policy import REQUIRED, AzurePolicy, AzureSnpPolicy, AzureTdxPolicy
from .runtime import Runtime
from .tdreport import TdReport, quoted_body

__all__ = [
    "AzureClaims",
    "AzureSnpPolicy",
    "AzureTdxPolicy",
    "appraise_snp",
    "appraise_tdx",
    "authenticate_snp",
    "authenticate_tdx",
    "judge_snp",
    "judge_tdx",
]


_SCHEME: Final = (RSASSA, 0x000B)  # PKCS #1 v1.5 with SHA-256


def authenticate_snp(
    evidence: bytes, endorsements: Mapping[str, bytes], policy: AzureSnpPolicy, *, now: datetime, walk: Walk
) -> AzureClaims[SnpClaims]:
    """Prove that a genuine AMD chip vouches for the paravisor whose TPM signed this quote."""

    def report_below(told: AzureEvidence, below: Walk) -> SnpClaims:
        return snp.authenticate(told.hcl.report, endorsements, policy.snp, now=now, walk=below)

    def vouches(told: AzureEvidence, finding: Finding) -> None:
        _check_runtime(told.hcl, Report.parse(told.hcl.report).report_data, finding)

    return _authenticate(evidence, endorsements, policy, SNP, report_below, vouches, now=now, walk=walk)


def authenticate_tdx(
    evidence: bytes, endorsements: Mapping[str, bytes], policy: AzureTdxPolicy, *, now: datetime, walk: Walk
) -> AzureClaims[TdxClaims]:
    """Prove that a genuine TDX module vouches for the paravisor whose TPM signed this quote."""
    # The log of the boot is the TPM's here, and none of the processor's business.
    for_processor = {name: value for name, value in endorsements.items() if name == "collateral"}

    def quote_below(told: AzureEvidence, below: Walk) -> TdxClaims:
        return tdx.authenticate(told.td_quote, for_processor, policy.tdx, now=now, walk=below)

    def vouches(told: AzureEvidence, finding: Finding) -> None:
        assert told.td_report is not None
        quote = TdQuote.parse(told.td_quote)
        _check_runtime(told.hcl, quote.report_data, finding)
        _check_td_report(told.td_report, quote, finding)

    return _authenticate(evidence, endorsements, policy, TDX, quote_below, vouches, now=now, walk=walk)


def _authenticate(
    evidence: bytes,
    endorsements: Mapping[str, bytes],
    policy: AzurePolicy,
    kind: int,
    below: Callable[[AzureEvidence, Walk], Processor],
    vouches: Callable[[AzureEvidence, Finding], None],
    *,
    now: datetime,
    walk: Walk,
) -> AzureClaims[Processor]:
    """
    SPEC §4, steps 3 to 7, the processor's part of each first; of the policy, only what those need.

    3. read the paravisor's report, and the TPM's quote               SPEC §4.5
    4. trace the processor's certificates to a pinned root, and the TPM's if the policy wants them
    5. see that none of the processor's is revoked
    6. see that the processor's report was made for the paravisor's words, and take the TPM's key from these
    7. check the signatures, the processor's and the TPM's
    """
    with walk.step(3) as finding:
        told = AzureEvidence.parse(evidence, kind)
        attest = told.quote.attest
        measured = Measured.read(attest.bank, told.quote.pcrs, policy.boot.log_of(endorsements))
        beneath = Beneath(lambda inner: below(told, inner))
        beneath.tell(3, finding)
        finding.passed(f"report of a paravisor, version {told.hcl.version}; {finding.detail}; a TPM's quote")
    with walk.step(4) as finding:
        beneath.tell(4, finding)
        certificate: Certificate | None = None
        if policy.ak_certificate == REQUIRED:
            certificate = ak_chain.trace(endorsements.get(AK_CHAIN), policy.roots, finding, now=now)
            finding.passed(f"{finding.detail}; {certificate.common_name}")
        else:
            finding.not_asked("certificate of the TPM's key")
    with walk.step(5) as finding:
        beneath.tell(5, finding)
        finding.not_asked("revocation of the TPM's certificate")
    with walk.step(6) as finding:
        beneath.tell(6, finding)
        vouches(told, finding)
        runtime = Runtime.parse(told.hcl.runtime)
        if certificate is not None:
            _check_certified(runtime.ak, certificate, finding)
        finding.passed(f"{finding.detail}; it vouches for the TPM's key")
    with walk.step(7) as finding:
        beneath.tell(7, finding)
        _check_scheme(told.quote.signature, finding)
        check_quote(told.quote, runtime.ak, finding)
        policy.boot.check_selection(attest, finding)
        finding.passed(f"{finding.detail}; {told.quote.signature.words} with the TPM's key")
    beneath.tell_later(walk)
    return AzureClaims(
        hardware=beneath.found,
        vm=runtime.vm,
        user_data=runtime.user_data,
        tpm=TpmClaims(
            measurement=attest.digest,
            measured=measured,
            extra_data=attest.extra_data,
            ak_sha256=hashlib.sha256(spelled(runtime.ak)).digest(),
            instance=None,
            clock=attest.clock,
            reset_count=attest.reset_count,
            restart_count=attest.restart_count,
            clock_is_safe=attest.safe,
            firmware_version=attest.firmware_version,
        ),
        ak_certified=certificate is not None,
    )


def judge_snp(claims: AzureClaims[SnpClaims], policy: AzureSnpPolicy, *, walk: Walk) -> None:
    """Let the policy judge what the three of them say. SPEC §4, steps 9 to 13."""
    _judge(claims, policy, lambda below: snp.judge(claims.hardware, policy.snp, walk=below), walk=walk)


def judge_tdx(claims: AzureClaims[TdxClaims], policy: AzureTdxPolicy, *, walk: Walk) -> None:
    """Let the policy judge what the three of them say. SPEC §4, steps 9 to 13."""
    _judge(claims, policy, lambda below: tdx.judge(claims.hardware, policy.tdx, walk=below), walk=walk)


def _judge(
    claims: AzureClaims[Any], policy: AzurePolicy, below: Callable[[Walk], None], *, walk: Walk
) -> None:
    beneath = Beneath(below)
    ours = {10: policy.check_configuration, 12: policy.check_boot, 13: policy.check_vm}
    for number in range(9, 14):
        with walk.step(number) as finding:
            beneath.tell(number, finding)
            if number in ours:
                ours[number](claims, finding)


def appraise_snp(
    evidence: bytes,
    endorsements: Mapping[str, bytes],
    policy: AzureSnpPolicy,
    *,
    now: datetime,
    walk: Walk | None = None,
) -> AzureClaims[SnpClaims]:
    """
    Judge evidence on its own, without a document around it: SPEC §4, steps 3 to 7 and 9 to 13.

    It says nothing about freshness, nor about any key: look at `carries`, or use `verify`.
    """
    walk = Walk() if walk is None else walk
    claims = authenticate_snp(evidence, endorsements, policy, now=now, walk=walk)
    judge_snp(claims, policy, walk=walk)
    return claims


def appraise_tdx(
    evidence: bytes,
    endorsements: Mapping[str, bytes],
    policy: AzureTdxPolicy,
    *,
    now: datetime,
    walk: Walk | None = None,
) -> AzureClaims[TdxClaims]:
    """The same for TDX."""
    walk = Walk() if walk is None else walk
    claims = authenticate_tdx(evidence, endorsements, policy, now=now, walk=walk)
    judge_tdx(claims, policy, walk=walk)
    return claims


def _check_runtime(hcl: Hcl, report_data: bytes, finding: Finding) -> None:
    """The processor's report was made for exactly these words of the paravisor's."""
    wanted = hcl.runtime_hash()
    finding.expect(
        same(report_data, wanted),
        "hash of the runtime data",
        found=report_data,
        wanted=wanted,
        source=f"REPORT_DATA of the {hcl.processor} report",
        error=UntrustedEvidence,
        code="runtime-data-mismatch",
        message="the processor's report was made for other runtime data than came with it, "
        "so nobody vouches for the TPM's key in it",
    )


def _check_td_report(report: TdReport, quote: TdQuote, finding: Finding) -> None:
    """The quote was made from the TDREPORT that the paravisor keeps, field by field."""
    finding.expect(
        same(report.report_data, quote.report_data),
        "REPORTDATA of the TDREPORT",
        found=report.report_data,
        wanted=quote.report_data,
        source="hcl",
        error=UntrustedEvidence,
        code="runtime-data-mismatch",
        message="the quote's REPORTDATA is another than that of the TDREPORT which the paravisor keeps",
    )
    finding.expect(
        report.body_of(quote.body) == quoted_body(quote),
        "TDREPORT is what was quoted",
        found=hashlib.sha384(quoted_body(quote)).digest(),
        wanted=hashlib.sha384(report.body_of(quote.body)).digest(),
        source="quote",
        error=UntrustedEvidence,
        code="td-report-mismatch",
        message="the quote was not made from the TDREPORT which the paravisor keeps; are they of one boot?",
    )


def _check_scheme(signature: Signature, finding: Finding) -> None:
    """The paravisor's TPM signs in one way; the key itself does not say which."""
    finding.expect(
        (signature.scheme, signature.hash_algorithm) == _SCHEME,
        "way of signing",
        found=signature.words,
        wanted="RSASSA with sha256",
        source="signature",
        error=UntrustedEvidence,
        code="unsupported-signature-algorithm",
    )


def _check_certified(key: RSAPublicKey, certificate: Certificate, finding: Finding) -> None:
    """Azure's certificate is about the key that the processor vouches for."""
    wanted, found = spelled(key), spelled(certificate.public_key)
    finding.expect(
        same(found, wanted),
        "key of Azure's certificate",
        found=hashlib.sha256(found).digest(),
        wanted=hashlib.sha256(wanted).digest(),
        source="ak_chain",
        error=UntrustedEvidence,
        code="wrong-attestation-key",
        message="Azure's certificate is about another key than the one that the processor vouches for",
    )
