"""
Intel TDX: `authenticate` (is it genuine?), `judge` (is it acceptable?), and `appraise`, which is both.

Every platform has these three. They know nothing of documents: whether genuine evidence is about *our* key
and *our* question is step 8 of SPEC §4, in `verify.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime

from ..binding import same
from ..errors import UntrustedEvidence
from ..event_log import EventLog
from ..walk import Finding, Walk
from . import attributes, chain, dcap
from .claims import TdxClaims
from .collateral import Collateral
from .policy import TdxPolicy
from .quote import QE_REPORT_DATA, Quote

__all__ = ["Quote", "TdxClaims", "TdxPolicy", "appraise", "authenticate", "judge"]


def authenticate(
    evidence: bytes, endorsements: Mapping[str, bytes], policy: TdxPolicy, *, now: datetime, walk: Walk
) -> TdxClaims:
    """
    Prove that a genuine TDX module signed this quote. SPEC §4, steps 3 to 7; of the policy, only what those
    need.

    3. read the quote, and what Intel says about the machine           SPEC §4.3
    4. trace all certificates to a pinned root, valid at `now`
    5. see that none of them is revoked
    6. see that Intel speaks, now, about this kind of machine and this firmware
    7. check the signatures: of the PCK, of the quoting enclave

    `dcap-qvl` is asked once, as soon as the root is known, and its no counts in the step where it belongs.
    """
    with walk.step(3) as finding:
        quote = Quote.parse(evidence)
        sent = endorsements.get("collateral")
        collateral = None if sent is None else Collateral.parse(sent)
        log = _log(endorsements, policy)
        finding.passed(f"TDX quote, version {quote.version}")
    with walk.step(4) as finding:
        root = chain.pinned_root(quote, policy.roots, finding)
        if collateral is None:
            raise UntrustedEvidence(
                "Intel's collateral was not sent, nor fetched", code="missing-endorsement"
            )
        chains = chain.trace(quote, collateral, root, now=now, finding=finding)
        answer = dcap.ask(quote, collateral, root.der, now=now)
        _heed(answer, 4)
        finding.passed(str(chains))
    with walk.step(5) as finding:
        chain.check_revocation(chains, collateral, now=now, finding=finding)
        _heed(answer, 5)
        finding.passed("neither the root's list nor the PCK CA's names one of them")
    with walk.step(6) as finding:
        tcb_info, identity = chain.check_collateral(chains, collateral, now=now, finding=finding)
        _heed(answer, 6)
        finding.passed(f"FMSPC {tcb_info.fmspc.hex()}, TCB evaluation {tcb_info.statement.evaluation}")
    with walk.step(7) as finding:
        _heed(answer, dcap.LAST_STEP)
        _check_key(quote, finding)
        finding.passed("ECDSA P-256 with a key that Intel's quoting enclave vouches for")
    if isinstance(answer, dcap.Refusal):
        with walk.step(answer.step) as finding:
            # `dcap-qvl` looks at these after everything above. It refuses in one word what we tell apart.
            if answer.step == 10:
                attributes.check(quote.td_attributes, quote.xfam, quote.mrservicetd, None, finding)
            raise answer.raised()
    return TdxClaims.of(quote, chains.machine, answer, tcb_info, identity, log)


def judge(claims: TdxClaims, policy: TdxPolicy, *, walk: Walk) -> None:
    """Let the policy judge what the quote says. SPEC §4, steps 9 to 13."""
    for number, check in (
        (9, policy.check_tcb),
        (10, policy.check_guest),
        (11, policy.check_module),
        (12, policy.check_launch),
        (13, policy.check_machine),
    ):
        with walk.step(number) as finding:
            check(claims, finding)


def appraise(
    evidence: bytes,
    endorsements: Mapping[str, bytes],
    policy: TdxPolicy,
    *,
    now: datetime,
    walk: Walk | None = None,
) -> TdxClaims:
    """
    Judge a quote on its own, without a document around it: SPEC §4, steps 3 to 7 and 9 to 13.

    What comes back was said by a genuine TDX module, about a guest the policy accepts. It says nothing about
    freshness, nor about any key: compare `report_data` yourself, or use `verify`. Raises `AttestationError`.
    """
    walk = Walk() if walk is None else walk
    claims = authenticate(evidence, endorsements, policy, now=now, walk=walk)
    judge(claims, policy, walk=walk)
    return claims


def _log(endorsements: Mapping[str, bytes], policy: TdxPolicy) -> EventLog | None:
    """The log of the boot, if the policy wants one: what nobody relies on is not read."""
    sent = endorsements.get("event_log")
    return None if sent is None or policy.event_log == "unused" else EventLog.parse(sent)


def _heed(answer: dcap.Level | dcap.Refusal, step: int) -> None:
    """A no that belongs to this step or to one before it ends the walk here."""
    if isinstance(answer, dcap.Refusal) and answer.step <= step:
        raise answer.raised()


def _check_key(quote: Quote, finding: Finding) -> None:
    """The quoting enclave vouches for the attestation key in all 64 bytes; `dcap-qvl` compares 32 of them."""
    told = quote.qe_report[QE_REPORT_DATA]
    vouched = hashlib.sha256(quote.attestation_key + quote.authentication).digest()
    finding.expect(
        same(told, vouched.ljust(len(told), b"\x00")),
        "attestation key",
        found=told,
        wanted=vouched,
        source="report of the quoting enclave",
        error=UntrustedEvidence,
        code="wrong-attestation-key",
        message="the quoting enclave vouches for another attestation key than the one in the quote",
    )
