"""
The judge: from a document, a policy, a nonce and the time to what was proved, or an error.

This module walks the steps of SPEC §4 in their order and stops at the first that fails. What a platform's
evidence means is in the platform's own package; nothing is fetched, and nobody is asked what time it is.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from . import snp
from .binding import binding, evidence_id, report_data, transcript_bytes
from .errors import InvalidPolicy, PlatformNotAccepted, PolicyRefused, UnboundKey
from .evidence import CACHED, FRESH, NONCE_SIZE, SEV_SNP, SIMULATED, AttestationDocument, Transcript
from .policy import Policy
from .simulated import UnsafeSimulatedPolicy
from .snp.claims import SnpClaims
from .snp.policy import SnpPolicy
from .steps import Step
from .walk import Finding, Walk

__all__ = ["Step", "Verified", "verify"]

LONGEST_WINDOW: Final = {FRESH: timedelta(hours=48), CACHED: timedelta(hours=1)}
"""How long a machine may say that its key lives: SPEC §2.1."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was proved, and nothing else: every value is from the transcript that the hardware signed for."""

    platform: str
    key_config: bytes  # application/ohttp-keys: the only place to take a key from
    measurement: bytes
    claims: SnpClaims
    evidence_id: bytes  # 48 bytes
    boot_id: bytes  # 16 bytes
    config_digest: bytes  # 48 bytes
    profile: str
    tls_spki_sha256: bytes  # 32 bytes, or none
    not_before: datetime
    not_after: datetime
    verified_at: datetime
    simulated: bool  # True: nothing was proved, see simulated.py
    steps: tuple[Step, ...]


def verify(
    document: bytes, policy: Policy | UnsafeSimulatedPolicy, *, nonce: bytes, now: datetime
) -> Verified:
    """
    Prove that the document's key belongs to a machine that `policy` accepts, in answer to `nonce`.

    1. read the document                                               SPEC §2
    2. see that the policy names its platform
    3.–7. see that a genuine chip signed the evidence                  SPEC §4.1
    8. see that it speaks for this key and answers this nonce          SPEC §2.1
    9.–13. let the policy judge what the chip says

    An empty `nonce` asks for the cached form. Returns what was proved. Raises `AttestationError` at the first
    step that fails, with a `code`, and with the steps so far.
    """
    if not isinstance(policy, Policy | UnsafeSimulatedPolicy):
        raise InvalidPolicy(f"a policy is needed to verify anything; this is a {type(policy).__name__}")
    if len(nonce) not in (0, NONCE_SIZE):
        raise ValueError(f"a nonce has {NONCE_SIZE} bytes, or none for the cached form; not {len(nonce)}")
    if now.tzinfo is None:
        raise ValueError("now must say its time zone")
    now = now.astimezone(UTC)
    walk = Walk()
    with walk.step(1) as finding:
        claimed = AttestationDocument.parse(document)
        finding.passed(f"{len(document)} bytes")
    with walk.step(2) as finding:
        accepted = _accepted(claimed.platform, policy)
        finding.passed(claimed.platform)
    claims = snp.authenticate(claimed.evidence, claimed.endorsements, accepted, now=now, walk=walk)
    with walk.step(8) as finding:
        transcript = transcript_bytes(claimed.platform, claimed.transcript)
        _check_binding(transcript, claims)
        _check_question(claimed.transcript, policy, nonce, now, finding)
    snp.judge(claims, accepted, walk=walk)
    told = claimed.transcript
    return Verified(
        platform=claimed.platform,
        key_config=told.key_config,
        measurement=claims.measurement,
        claims=claims,
        evidence_id=evidence_id(transcript, claimed.evidence),
        boot_id=told.boot_id,
        config_digest=told.config_digest,
        profile=told.profile,
        tls_spki_sha256=told.tls_spki_sha256,
        not_before=_time(told.not_before),
        not_after=_time(told.not_after),
        verified_at=now,
        simulated=claimed.platform == SIMULATED,
        steps=walk.steps,
    )


def _accepted(platform: str, policy: Policy | UnsafeSimulatedPolicy) -> SnpPolicy:
    """Step 2: what the policy asks of this platform."""
    if isinstance(policy, UnsafeSimulatedPolicy):
        if platform != SIMULATED:
            raise PlatformNotAccepted(
                f"the machine says it is {platform!a}; UnsafeSimulatedPolicy accepts simulated machines only"
            )
        return policy.snp
    if platform == SIMULATED:
        raise PlatformNotAccepted(
            "the machine is simulated: its signing key is public and proves nothing. "
            "Only UnsafeSimulatedPolicy, written in code, accepts that",
            code="simulated-evidence",
        )
    if platform != SEV_SNP or policy.snp is None:
        raise PlatformNotAccepted(f"the policy does not name the platform {platform!a}; it names {SEV_SNP}")
    return policy.snp


def _check_binding(transcript: bytes, claims: SnpClaims) -> None:
    """Step 8, first half: the chip signed for exactly these bytes; all 64 are compared, in constant time."""
    if not hmac.compare_digest(report_data(binding(transcript)), claims.report_data):
        raise UnboundKey("the evidence is genuine, but it was made for another key or another transcript")


def _check_question(
    told: Transcript, policy: Policy | UnsafeSimulatedPolicy, nonce: bytes, now: datetime, finding: Finding
) -> None:
    """Step 8, second half: it answers the question that was asked, and its time is now."""
    asked = FRESH if nonce else CACHED
    if asked == CACHED and not policy.accept_cached:
        raise PolicyRefused(
            "cached evidence was asked for, and the policy does not accept it", code="form-not-accepted"
        )
    if told.form != asked:
        raise PolicyRefused(
            f"evidence of form {told.form} came, form {asked} was asked for", code="form-not-accepted"
        )
    if not hmac.compare_digest(told.nonce, nonce):
        raise UnboundKey(
            "the evidence answers another question than ours: is it an old one?", code="wrong-nonce"
        )
    not_before, not_after = _time(told.not_before), _time(told.not_after)
    if not_after - not_before > LONGEST_WINDOW[told.form]:
        raise UnboundKey(
            f"the key is said to live for {not_after - not_before}, "
            f"at most {LONGEST_WINDOW[told.form]} is accepted",
            code="window-too-long",
        )
    if not not_before - policy.clock_skew <= now <= not_after + policy.clock_skew or not_after <= not_before:
        raise UnboundKey(
            f"the key is valid from {not_before:%Y-%m-%d %H:%M:%S} to {not_after:%Y-%m-%d %H:%M:%S} UTC, "
            f"and now is {now:%Y-%m-%d %H:%M:%S}; is this machine's clock right?",
            code="outside-validity",
        )
    finding.passed(f"{'our nonce' if nonce else 'cached'}, valid until {not_after:%Y-%m-%d %H:%M:%S} UTC")


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
