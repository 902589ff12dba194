"""
The judge: from a document, a policy, a nonce and the time to what was proved, or an error.

This module walks the steps of SPEC §4 in their order and stops at the first that fails. What a platform's
evidence means is in the platform's own package; nothing is fetched, and nobody is asked what time it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

from .binding import Bound, evidence_id, same, transcript_bytes
from .errors import AttestationError, InvalidPolicy, PlatformNotAccepted, PolicyRefused, UnboundKey
from .evidence import CACHED, FRESH, NONCE_SIZE, SIMULATED, AttestationDocument, Transcript
from .platforms import PLATFORMS, SIMULATION, Claims, Platform
from .policy import AllOf, AnyOf, Policy
from .simulated import UnsafeSimulatedPolicy
from .steps import Check, Outcome, Step
from .walk import Finding, Walk, moment

__all__ = ["AnyPolicy", "Check", "Step", "Verified", "appraise", "verify", "verify_kept"]

AnyPolicy: TypeAlias = Policy | AnyOf | AllOf | UnsafeSimulatedPolicy
"""What may be asked of a machine."""


LONGEST_WINDOW: Final = {FRESH: timedelta(hours=48), CACHED: timedelta(hours=1)}
"""How long a machine may say that its key lives: SPEC §2.1."""

_FORMS: Final = {FRESH: "fresh", CACHED: "cached"}


@dataclass(frozen=True, slots=True)
class Verified:
    """What was proved, and nothing else: every value is from the transcript that the hardware signed for."""

    platform: str
    title: str  # of the platform, for people
    trusts: tuple[str, ...]  # who has to be honest besides the program itself
    key_config: bytes  # application/ohttp-keys: the only place to take a key from
    measurement: bytes  # the one value that names the program; the claims have the others
    claims: Claims
    evidence_id: bytes  # 48 bytes
    boot_id: bytes  # 16 bytes
    config_digest: bytes  # 48 bytes
    profile: str
    tls_spki_sha256: bytes  # 32 bytes, or none
    receipt_key: bytes  # 32 bytes, or none: what it signs is said in receipt.py
    not_before: datetime
    not_after: datetime
    verified_at: datetime
    simulated: bool  # True: nothing was proved, see simulated.py
    steps: tuple[Step, ...]


def verify(
    document: bytes,
    policy: AnyPolicy,
    *,
    nonce: bytes,
    now: datetime,
    collateral: Mapping[str, bytes] | None = None,
) -> Verified:
    """
    Prove that the document's key belongs to a machine that `policy` accepts, in answer to `nonce`.

    1. read the document                                               SPEC §2
    2. see that the policy names its platform
    3.–7. see that genuine hardware, or a vendor, signed the evidence  SPEC §4.1 to §4.7
    8. see that it speaks for this key and answers this nonce          SPEC §2.1
    9.–13. let the policy judge what it says

    An empty `nonce` asks for the cached form. `collateral` is what the caller has fetched from
    vendors beforehand, by the names of SPEC §2; what came with the document is preferred to it, and
    both are verified alike. Returns what was proved. Raises `AttestationError` at the first step that
    fails, with a `code`, and with the steps so far.
    """
    _check_policy(policy)
    if len(nonce) not in (0, NONCE_SIZE):
        raise ValueError(f"a nonce has {NONCE_SIZE} bytes, or none for the cached form; not {len(nonce)}")
    question = _Question(nonce, _utc(now, "now"), policy.accept_cached, policy.clock_skew)
    return _judged(document, policy, question, collateral or {})


def verify_kept(
    document: bytes,
    policy: AnyPolicy,
    *,
    at: datetime,
    collateral: Mapping[str, bytes] | None = None,
) -> Verified:
    """
    Prove who the machine was that left `document` beside something it had signed at `at` (SPEC §8).

    As `verify`, for the cached form, which is taken whether or not the policy accepts it for calls: there a
    nonce keeps an old machine from answering for today's, and here nobody asks. Whoever reads was not there
    when it was signed, so no nonce could be theirs; what ties both together is the key in the transcript.
    """
    _check_policy(policy)
    question = _Question(b"", _utc(at, "at"), True, policy.clock_skew)
    return _judged(document, policy, question, collateral or {})


def _check_policy(policy: object) -> None:
    if not isinstance(policy, Policy | AnyOf | AllOf | UnsafeSimulatedPolicy):
        raise InvalidPolicy(f"a policy is needed to verify anything; this is a {type(policy).__name__}")


def _utc(time: datetime, name: str) -> datetime:
    if time.tzinfo is None:
        raise ValueError(f"{name} must say its time zone")
    return time.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class _Question:
    """What was asked and when, and on whose terms: of several policies in one, the strictest's."""

    nonce: bytes
    now: datetime
    accept_cached: bool
    clock_skew: timedelta


def _judged(
    document: bytes, policy: AnyPolicy, question: _Question, collateral: Mapping[str, bytes]
) -> Verified:
    if isinstance(policy, AnyOf):
        return _any_of(document, policy, question, collateral)
    if isinstance(policy, AllOf):
        proofs = [_judged(document, one, question, collateral) for one in policy.policies]
        return replace(proofs[-1], steps=_all_steps([proof.steps for proof in proofs]))
    return _verify(document, policy, question, collateral)


def _verify(
    document: bytes,
    policy: Policy | UnsafeSimulatedPolicy,
    question: _Question,
    collateral: Mapping[str, bytes],
) -> Verified:
    now = question.now
    walk = Walk()
    with walk.step(1) as finding:
        claimed = AttestationDocument.parse(document)
        finding.passed(f"{len(document)} bytes")
    with walk.step(2) as finding:
        platform, accepted = _accepted(claimed.platform, policy)
        finding.passed(claimed.platform)
    endorsements = {**collateral, **claimed.endorsements}
    claims: Claims = platform.authenticate(claimed.evidence, endorsements, accepted, now=now, walk=walk)
    with walk.step(8) as finding:
        transcript = transcript_bytes(claimed.platform, claimed.transcript)
        spoken = claims.speaks_for(Bound.of(transcript, claimed.transcript))
        finding.expect(
            spoken,
            "made for this key and this question",
            found=spoken,
            wanted=True,
            source="evidence",
            error=UnboundKey,
            code="unbound-key",
            message="the evidence is genuine, but it was made for another key or another transcript",
        )
        _check_question(claimed.transcript, question, finding)
        _check_settings(claimed.transcript, policy, finding)
    platform.judge(claims, accepted, walk=walk)
    told = claimed.transcript
    return Verified(
        platform=claimed.platform,
        title=platform.title,
        trusts=platform.trusts,
        key_config=told.key_config,
        measurement=claims.measurement,
        claims=claims,
        evidence_id=evidence_id(transcript, claimed.evidence),
        boot_id=told.boot_id,
        config_digest=told.config_digest,
        profile=told.profile,
        tls_spki_sha256=told.tls_spki_sha256,
        receipt_key=told.receipt_key,
        not_before=_time(told.not_before),
        not_after=_time(told.not_after),
        verified_at=now,
        simulated=claimed.platform == SIMULATED,
        steps=walk.steps,
    )


def _any_of(document: bytes, policy: AnyOf, question: _Question, collateral: Mapping[str, bytes]) -> Verified:
    """The first policy that accepts; if none does, the refusal of the one that came furthest."""
    refusals: list[AttestationError] = []
    for one in policy.policies:
        try:
            return _judged(document, one, question, collateral)
        except AttestationError as error:
            refusals.append(error)
    raise max(refusals, key=lambda error: len(error.steps))


def _all_steps(walks: Sequence[tuple[Step, ...]]) -> tuple[Step, ...]:
    """The same steps, walked under several policies, with every check that any of them made."""
    order: tuple[Outcome, ...] = ("passed", "not asked", "not applicable")
    merged: list[Step] = []
    for same_step in zip(*walks, strict=True):
        checks = tuple(dict.fromkeys(check for step in same_step for check in step.checks))
        told = min(same_step, key=lambda step: order.index(step.outcome))
        merged.append(replace(told, checks=checks))
    return tuple(merged)


def appraise(
    platform: str,
    evidence: bytes,
    endorsements: Mapping[str, bytes],
    policy: Policy,
    *,
    nonce: bytes | None,
    now: datetime,
    walk: Walk | None = None,
) -> Claims:
    """
    Judge evidence on its own, without a document around it: steps 2 to 13 of SPEC §4.

    `nonce` is what the evidence has to have been made for: REPORT_DATA, a quote's extraData, a
    document's nonce. With None, nothing is said about freshness. It says nothing about any key: for
    that use `verify`. Raises `AttestationError`.
    """
    if nonce == b"":
        raise ValueError("an empty nonce is in all evidence that was made for none; give one, or None")
    walk = Walk() if walk is None else walk
    with walk.step(2) as finding:
        judge, accepted = _accepted(platform, policy)
        finding.passed(platform)
    claims: Claims = judge.authenticate(evidence, endorsements, accepted, now=now, walk=walk)
    with walk.step(8) as finding:
        if nonce is None:
            finding.was_not_asked("no nonce was given: this may be old evidence")
        else:
            carried = claims.carries(nonce)
            finding.expect(
                carried,
                "made for this nonce",
                found=carried,
                wanted=True,
                source="evidence",
                error=UnboundKey,
                code="wrong-nonce",
                message=f"the evidence was not made for the nonce {nonce.hex()}",
            )
    judge.judge(claims, accepted, walk=walk)
    return claims


def _accepted(platform: str, policy: Policy | UnsafeSimulatedPolicy) -> tuple[Platform, Any]:
    """Step 2: whose rules apply, and what the policy asks of this platform."""
    if isinstance(policy, UnsafeSimulatedPolicy):
        if platform != SIMULATED:
            raise PlatformNotAccepted(
                f"the machine says it is {platform!a}; UnsafeSimulatedPolicy accepts simulated machines only"
            )
        return SIMULATION, policy.snp
    if platform == SIMULATED:
        raise PlatformNotAccepted(
            "the machine is simulated: its signing key is public and proves nothing. "
            "Only UnsafeSimulatedPolicy, written in code, accepts that",
            code="simulated-evidence",
        )
    found = PLATFORMS.get(platform)
    wish = policy.part(found.key) if found is not None else None
    if found is None or wish is None:
        raise PlatformNotAccepted(
            f"the policy does not name the platform {platform!a}; it names {', '.join(policy.platforms)}"
        )
    return found, wish


def _check_settings(told: Transcript, policy: Policy | UnsafeSimulatedPolicy, finding: Finding) -> None:
    """Step 8, the settings: the machine says how it was told to run, and its evidence vouches for that."""
    wanted = policy.config_digests
    if wanted is None:
        finding.not_asked("settings", found=told.config_digest.hex(), source="transcript")
        return
    finding.expect(
        told.config_digest in wanted,
        "settings",
        found=told.config_digest,
        wanted=wanted,
        source="transcript",
        code="settings-not-listed",
        message=f"the machine runs with the settings {told.config_digest.hex()}, and the policy names "
        f"{' or '.join(sorted(one.hex() for one in wanted))}: somebody gave it others",
    )


def _check_question(told: Transcript, question: _Question, finding: Finding) -> None:
    """Step 8, second half: it answers the question that was asked, and its time is now."""
    nonce, now = question.nonce, question.now
    asked = FRESH if nonce else CACHED
    if asked == CACHED and not question.accept_cached:
        raise PolicyRefused(
            "cached evidence was asked for, and the policy does not accept it", code="form-not-accepted"
        )
    finding.expect(
        told.form == asked,
        "form",
        found=_FORMS[told.form],
        wanted=_FORMS[asked],
        source="transcript",
        code="form-not-accepted",
        message=f"evidence of form {told.form} came, form {asked} was asked for",
    )
    finding.expect(
        same(told.nonce, nonce),
        "nonce",
        found=told.nonce,
        wanted=nonce,
        source="transcript",
        error=UnboundKey,
        code="wrong-nonce",
        message="the evidence answers another question than ours: is it an old one?",
    )
    not_before, not_after = _time(told.not_before), _time(told.not_after)
    finding.expect(
        not_after - not_before <= LONGEST_WINDOW[told.form],
        "life of the key",
        found=not_after - not_before,
        wanted=f"at most {LONGEST_WINDOW[told.form]}",
        source="transcript",
        error=UnboundKey,
        code="window-too-long",
        message=f"the key is said to live for {not_after - not_before}, "
        f"at most {LONGEST_WINDOW[told.form]} is accepted",
    )
    finding.expect(
        not_before < not_after
        and not_before - now <= question.clock_skew  # differences: a sum may leave the calendar
        and now - not_after <= question.clock_skew,
        "time",
        found=f"{moment(not_before)} to {moment(not_after)}",
        wanted=f"{moment(now)}, give or take {question.clock_skew}",
        source="transcript",
        error=UnboundKey,
        code="outside-validity",
        message=f"the key is valid from {moment(not_before)} to {moment(not_after)}, "
        f"and now is {moment(now)}; is this machine's clock right?",
    )
    finding.passed(f"{'our nonce' if nonce else 'cached'}, valid until {moment(not_after)}")


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
