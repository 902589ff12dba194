"""The judge's own edges: what it gives back for several policies, and evidence judged without a document."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from typing import Any

import pytest

from blindbox_attestation import simulated
from blindbox_attestation.errors import (
    AttestationError,
    InvalidPolicy,
    MeasurementMismatch,
    PlatformNotAccepted,
    UnboundKey,
)
from blindbox_attestation.evidence import AttestationDocument
from blindbox_attestation.policy import AllOf, AnyOf, Policy
from blindbox_attestation.simulated import (
    UnsafeSimulatedPolicy,
    UnsafeSimulationWarning,
    sign_report,
    simulated_report,
)
from blindbox_attestation.snp.report import SIGNED_SIZE, Report
from blindbox_attestation.verify import Verified, appraise, verify
from blindbox_attestation.walk import Walk
from tests.kit import NOON
from tests.kit.amd import KEY_CONFIG, MEASUREMENT, FakeAmd
from tests.kit.simulated import unsafe

AMD = FakeAmd("Genoa")
NONCE = bytes(range(32))
DOCUMENT = AMD.document(KEY_CONFIG, NONCE)
REFUSING = AMD.policy(measurements={b"\x01" * 48})


def judged(policy: Any, **changes: Any) -> Verified:
    return verify(DOCUMENT, policy, nonce=NONCE, now=NOON, **changes)


@pytest.mark.parametrize("kind", [AnyOf, AllOf])
def test_several_policies_give_back_the_same_proof_as_one(kind: Any) -> None:
    assert replace(judged(kind([AMD.policy()])), steps=()) == replace(judged(AMD.policy()), steps=())


def test_any_of_gives_back_the_proof_of_the_policy_that_accepted() -> None:
    assert judged(AnyOf([REFUSING, AMD.policy()])) == judged(AMD.policy())


def test_any_of_that_all_refuse_raises_and_gives_nothing_back() -> None:
    with pytest.raises(MeasurementMismatch):
        judged(AnyOf([REFUSING]))


def test_all_of_tells_the_checks_of_every_policy_and_each_only_once() -> None:
    """A step that one policy asks about is not told as unasked because another does not ask."""
    plain, named = AMD.policy(), AMD.policy(chip_ids={AMD.chip_id})
    assert judged(AllOf([plain, plain])).steps == judged(plain).steps
    for policies in ([plain, named], [named, plain]):
        steps = judged(AllOf(policies)).steps
        assert [step.number for step in steps] == list(range(1, 14))
        assert steps[12].outcome == "passed"
        chips = [check.outcome for check in steps[12].checks if "chip" in check.name]
        assert sorted(chips) == ["not asked", "passed"]
        assert len(set(steps[11].checks)) == len(steps[11].checks)


def test_what_was_fetched_completes_what_came_with_the_document_and_does_not_replace_it() -> None:
    bare = AMD.document(KEY_CONFIG, NONCE, endorsements={})
    with pytest.raises(AttestationError) as refused:
        verify(bare, AMD.policy(), nonce=NONCE, now=NOON)
    assert refused.value.code == "missing-endorsement"
    verify(bare, AMD.policy(), nonce=NONCE, now=NOON, collateral=AMD.endorsements())
    for kind in (AnyOf, AllOf):
        verify(bare, kind([AMD.policy()]), nonce=NONCE, now=NOON, collateral=AMD.endorsements())
    assert judged(AMD.policy(), collateral={"vcek": b"nonsense"}).platform == "sev-snp"


def evidence() -> bytes:
    return AMD.report(NONCE.ljust(64, b"\x00"))


def appraised(nonce: bytes | None, policy: Policy | None = None, walk: Walk | None = None) -> Any:
    return appraise(
        "sev-snp",
        evidence(),
        AMD.endorsements(),
        policy or AMD.policy(),
        nonce=nonce,
        now=NOON,
        walk=walk,
    )


def test_evidence_without_a_document_is_judged_by_the_same_steps() -> None:
    walk = Walk()
    assert appraised(NONCE.ljust(64, b"\x00"), walk=walk).measurement == MEASUREMENT
    assert [step.number for step in walk.steps] == list(range(2, 14))
    assert walk.steps[6].outcome == "passed"
    with pytest.raises(MeasurementMismatch):
        appraised(None, REFUSING)


def test_evidence_without_a_document_is_made_for_the_nonce_that_was_asked() -> None:
    """C-1: and where none was asked, the report says so."""
    with pytest.raises(UnboundKey) as refused:
        appraised(bytes(64))
    assert refused.value.code == "wrong-nonce"
    assert refused.value.steps[-1].number == 8
    walk = Walk()
    appraised(None, walk=walk)
    assert walk.steps[6].outcome == "not asked"


@pytest.mark.parametrize("platform", ["tdx", "simulated", "snp", ""])
def test_evidence_without_a_document_is_of_a_platform_that_the_policy_names(platform: str) -> None:
    with pytest.raises(PlatformNotAccepted):
        appraise(platform, evidence(), AMD.endorsements(), AMD.policy(), nonce=None, now=NOON)


def test_a_simulated_report_is_the_one_that_is_written_down() -> None:
    """Every byte but the signature, which is made anew each time."""
    report = simulated_report(b"\x5a" * 64, host_data=b"\xa5" * 32)
    assert len(report) == 1184
    assert hashlib.sha256(report[:SIGNED_SIZE]).hexdigest() == WRITTEN_DOWN
    assert report[SIGNED_SIZE + 144 :] == bytes(368)
    for size in (0, 31, 33):
        with pytest.raises(ValueError, match="host data 32"):
            simulated_report(bytes(64), host_data=bytes(size))


def test_each_field_of_a_simulated_report_has_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is cut or filled up when it is written: it is read back as it was."""
    seen: list[Report] = []

    def sign(report: Report, key: Any) -> bytes:
        seen.append(report)
        return sign_report(report, key)

    monkeypatch.setattr(simulated, "sign_report", sign)
    simulated_report(bytes(64))
    assert [Report.parse(report.encode()) for report in seen] == seen
    assert len(seen) == 1


WRITTEN_DOWN = "d60ce22414d14065137002053360d91aa86db00c215459d92299b67312d2a79f"


def test_a_signature_is_two_numbers_of_72_bytes_little_endian() -> None:
    report = Report.parse(AMD.report(bytes(64)))
    signed = sign_report(report, AMD.chip_key)
    r, s = (int.from_bytes(signed[SIGNED_SIZE + at : SIGNED_SIZE + at + 72], "little") for at in (0, 72))
    assert 0 < r < 1 << 384
    assert 0 < s < 1 << 384
    assert len(signed) == 1184


def test_an_unsafe_policy_is_narrowed_like_any_other_and_the_warning_points_at_its_writer() -> None:
    ours = b"\x09" * 32
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        policy = UnsafeSimulatedPolicy()
        narrowed = policy.with_host_data(ours)
    assert {one.category for one in heard} == {UnsafeSimulationWarning}
    assert heard[0].filename == __file__
    assert narrowed == replace_quietly(policy, host_data=ours)
    assert (policy.host_data, narrowed.host_data, narrowed.snp.host_data) == (None, ours, ours)
    assert narrowed.digest != policy.digest


def replace_quietly(policy: UnsafeSimulatedPolicy, **changes: Any) -> UnsafeSimulatedPolicy:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return replace(policy, **changes)


def test_measurements_of_an_unsafe_policy_are_frozen() -> None:
    """A set that is changed afterwards does not change the policy."""
    given = {b"\x01" * 48}
    policy = replace_quietly(UNSAFE, measurements=given)
    given.add(b"\x02" * 48)
    assert policy.measurements == frozenset({b"\x01" * 48})
    assert isinstance(policy.measurements, frozenset)
    with pytest.raises(InvalidPolicy):
        replace_quietly(UNSAFE, measurements={b"\x01" * 47})


UNSAFE = unsafe()


def test_a_document_says_how_it_was_proved() -> None:
    proved = judged(AMD.policy())
    claimed = AttestationDocument.parse(DOCUMENT)
    assert (proved.title, proved.trusts) == ("AMD SEV-SNP", ("AMD",))
    assert proved.claims.measurement == proved.measurement
    assert proved.profile == claimed.transcript.profile
