"""The judge: an honest machine is proved, and every well-made lie about it is refused at its step."""

from __future__ import annotations

import itertools
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from blindbox_attestation.binding import binding, evidence_id, report_data, transcript_bytes
from blindbox_attestation.errors import (
    AttestationError,
    InvalidPolicy,
    MeasurementMismatch,
    PlatformNotAccepted,
    PolicyRefused,
    UnboundKey,
)
from blindbox_attestation.evidence import AttestationDocument, Transcript
from blindbox_attestation.policy import Policy
from blindbox_attestation.snp import Report
from blindbox_attestation.snp.chain import check_signature
from blindbox_attestation.verify import Verified, verify
from blindbox_attestation.walk import Finding
from tests.kit import NOON
from tests.kit.amd import KEY_CONFIG, MEASUREMENT, FakeAmd

AMD = FakeAmd("Genoa")
NONCE = bytes(range(32))
OTHER_NONCE = bytes(reversed(range(32)))
OTHER_KEY = KEY_CONFIG[::-1]
SECOND = timedelta(seconds=1)


def judged(
    document: bytes, policy: Policy | None = None, nonce: bytes = NONCE, now: datetime = NOON
) -> Verified:
    return verify(document, policy or AMD.policy(), nonce=nonce, now=now)


def refusal(
    document: bytes, policy: Policy | None = None, nonce: bytes = NONCE, now: datetime = NOON
) -> AttestationError:
    with pytest.raises(AttestationError) as refused:
        judged(document, policy, nonce, now)
    error = refused.value
    assert [step.number for step in error.steps] == list(range(1, len(error.steps) + 1))
    assert [step.outcome for step in error.steps if step.outcome == "failed"] == ["failed"]
    assert error.steps[-1].outcome == "failed"
    assert error.steps[-1].detail == str(error)
    return error


def test_what_is_proved_is_what_the_chip_signed_for() -> None:
    document = AMD.document(KEY_CONFIG, NONCE, tls_spki_sha256=b"\x05" * 32, receipt_key=b"\x06" * 32)
    claimed = AttestationDocument.parse(document)
    proved = judged(document)
    told = claimed.transcript
    assert proved.key_config == told.key_config == KEY_CONFIG
    assert proved.measurement == proved.claims.measurement == MEASUREMENT
    assert proved.claims.report_data == report_data(binding(transcript_bytes("sev-snp", told)))
    assert proved.evidence_id == evidence_id(transcript_bytes("sev-snp", told), claimed.evidence)
    assert proved.boot_id == bytes(range(16))
    assert (proved.config_digest, proved.tls_spki_sha256) == (told.config_digest, b"\x05" * 32)
    assert proved.receipt_key == told.receipt_key == b"\x06" * 32
    assert (proved.not_before, proved.not_after) == (
        NOON - timedelta(seconds=60),
        NOON + timedelta(seconds=86340),
    )
    assert (proved.platform, proved.profile, proved.verified_at, proved.simulated) == (
        "sev-snp",
        "blindbox/1",
        NOON,
        False,
    )


def test_all_thirteen_steps_are_told_and_one_that_did_not_apply_does_not_look_passed() -> None:
    plain = judged(AMD.document(KEY_CONFIG, NONCE))
    assert [step.number for step in plain.steps] == list(range(1, 14))
    assert {step.number: step.outcome for step in plain.steps if step.outcome != "passed"} == {
        13: "not asked"
    }
    assert all(step.name and step.detail for step in plain.steps)
    named = AMD.policy(chip_ids={AMD.chip_id}, revocation="unchecked")
    told = judged(AMD.document(KEY_CONFIG, NONCE), named)
    assert {step.number: step.outcome for step in told.steps if step.outcome != "passed"} == {5: "not asked"}


def test_the_time_zone_of_now_does_not_matter_but_there_must_be_one() -> None:
    document = AMD.document(KEY_CONFIG, NONCE)
    assert judged(document, now=NOON.astimezone(timezone(timedelta(hours=9)))).verified_at == NOON
    with pytest.raises(ValueError, match="time zone"):
        judged(document, now=NOON.replace(tzinfo=None))


@pytest.mark.parametrize("policy", [None, {}, [], "UnsafeSimulatedPolicy", Policy, object()])
def test_nothing_is_verified_without_a_policy(policy: object) -> None:
    """C-22: None is not a policy that accepts everything."""
    with pytest.raises(InvalidPolicy):
        verify(AMD.document(KEY_CONFIG, NONCE), policy, nonce=NONCE, now=NOON)  # type: ignore[arg-type]


# --- one lie a step ---

STEPS: list[tuple[int, str, Callable[[], dict[str, Any]], dict[str, Any]]] = [
    (2, "platform-not-accepted", lambda: {"platform": "tdx"}, {}),
    (3, "unsupported-report-version", lambda: {"version": 6}, {}),
    (4, "missing-endorsement", lambda: {"endorsements": {}}, {}),
    (5, "crl-missing", lambda: {"endorsements": AMD.endorsements(crl=None)}, {}),
    (6, "chip-id-mismatch", lambda: {"chip_id": b"\x01" * 64}, {}),
    (7, "bad-signature", lambda: {"key": FakeAmd(name="Somebody").chip_key}, {}),
    (8, "unbound-key", lambda: {"report_data": bytes(64)}, {}),
    (9, "tcb-too-old", lambda: {"launch_tcb": bytes(8)}, {}),
    (10, "debug-allowed", lambda: {"policy": 0xB0000}, {}),
    (11, "vmpl", lambda: {"vmpl": 2}, {}),
    (12, "measurement-mismatch", lambda: {"measurement": bytes(48)}, {}),
    (13, "host-data", dict, {"host_data": b"\x01" * 32}),
]


@pytest.mark.parametrize(("number", "code", "lie", "policy"), STEPS, ids=[str(step[0]) for step in STEPS])
def test_each_step_ends_the_walk_when_it_fails(
    number: int, code: str, lie: Callable[[], dict[str, Any]], policy: dict[str, Any]
) -> None:
    """The failed step is the last one, and the ones before it are told."""
    error = refusal(AMD.document(KEY_CONFIG, NONCE, **lie()), AMD.policy(**policy))
    assert (error.code, error.steps[-1].number) == (code, number)


def test_an_unreadable_document_ends_the_walk_at_its_first_step() -> None:
    error = refusal(b"")
    assert (error.code, error.steps[-1].number) == ("malformed-json", 1)


def test_the_earlier_of_two_faults_is_the_one_that_is_told() -> None:
    document = AMD.document(KEY_CONFIG, NONCE, measurement=bytes(48), policy=0xB0000)
    assert refusal(document).code == "debug-allowed"
    assert refusal(document, nonce=OTHER_NONCE).code == "wrong-nonce"


# --- this key, this question ---


def test_evidence_with_an_old_nonce_is_refused() -> None:
    """C-1: a recorded document, valid in all else, in answer to a new question."""
    recorded = AMD.document(KEY_CONFIG, NONCE)
    judged(recorded)
    error = refusal(recorded, nonce=OTHER_NONCE)
    assert isinstance(error, UnboundKey)
    assert error.code == "wrong-nonce"


def test_an_old_report_under_our_nonce_is_refused() -> None:
    """C-1: the nonce in the transcript is made ours; the report was signed for another."""
    recorded = AttestationDocument.parse(AMD.document(KEY_CONFIG, OTHER_NONCE))
    forged = replace(recorded, transcript=replace(recorded.transcript, nonce=NONCE)).encode()
    assert refusal(forged).code == "unbound-key"


def test_genuine_evidence_does_not_carry_another_key() -> None:
    """C-2, C-3: relayed evidence, in answer to our nonce, with the relay's key in its place."""
    genuine = AttestationDocument.parse(AMD.document(KEY_CONFIG, NONCE))
    forged = replace(genuine, transcript=replace(genuine.transcript, key_config=OTHER_KEY)).encode()
    error = refusal(forged)
    assert isinstance(error, UnboundKey)
    assert error.code == "unbound-key"


def test_a_key_offered_beside_the_transcript_does_not_exist() -> None:
    """C-2, C-3: neither a second key nor a second place for one."""
    document = AMD.document(KEY_CONFIG, NONCE)
    offered = b64encode(OTHER_KEY)
    for where in (b'"transcript":{', b'{"version"', b'"endorsements":{'):
        extra = b'"key_config":"' + offered + b'",'
        at = document.index(where) + (1 if where.startswith(b"{") else len(where))
        assert refusal(document[:at] + extra + document[at:]).code in {"malformed-json", "unknown-key"}


CHANGED: dict[str, Any] = {
    "key_config": KEY_CONFIG + b"\x00",
    "nonce": OTHER_NONCE,
    "not_before": int(NOON.timestamp()) - 59,
    "not_after": int(NOON.timestamp()) + 59,
    "boot_id": b"\x01" * 16,
    "config_digest": b"\x01" * 48,
    "tls_spki_sha256": b"\x01" * 32,
    "receipt_key": b"\x01" * 32,
}


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_every_field_of_the_transcript_is_bound(name: str) -> None:
    """C-20: what a relay rewrites in the transcript, a dropped suite for one, was not signed."""
    document = AttestationDocument.parse(AMD.document(KEY_CONFIG, NONCE))
    changed = replace(document.transcript, **{name: CHANGED[name]})
    assert refusal(replace(document, transcript=changed).encode()).code == "unbound-key"


def test_form_and_profile_are_bound_too() -> None:
    """C-20: the fields that have one value today."""
    assert {field.name for field in fields(Transcript)} == {*CHANGED, "form", "profile"}
    document = AttestationDocument.parse(AMD.document(KEY_CONFIG, NONCE))
    cached = replace(document.transcript, form=2, nonce=b"")
    assert (
        refusal(replace(document, transcript=cached).encode(), AMD.policy(accept_cached=True), b"").code
        == "unbound-key"
    )
    older = document.encode().replace(b'"blindbox/1"', b'"blindbox/0"')
    assert refusal(older).code == "unsupported-version"


def test_a_tls_fingerprint_is_not_taken_for_a_key() -> None:
    """C-4: values change places inside the transcript, and the bytes under the hash differ."""
    value = b"\x07" * 32
    as_tls = AMD.transcript(KEY_CONFIG, NONCE, tls_spki_sha256=value)
    as_key = AMD.transcript(value, NONCE)
    assert transcript_bytes("sev-snp", as_tls) != transcript_bytes("sev-snp", as_key)
    evidence = AMD.report(report_data(binding(transcript_bytes("sev-snp", as_tls))))
    forged = AttestationDocument("sev-snp", as_key, evidence, AMD.endorsements()).encode()
    assert refusal(forged).code == "unbound-key"
    bare = AMD.document(value, NONCE, report_data=value.ljust(64, b"\x00"))
    assert refusal(bare).code == "unbound-key"


def test_no_two_transcripts_share_their_bytes() -> None:
    """C-4: moving a byte from one field to the next gives another hash, since every length is under it."""
    one = AMD.transcript(KEY_CONFIG, NONCE)
    moved = [
        transcript_bytes("sev-snp", one),
        transcript_bytes("simulated", one),
        # Without lengths: the very bytes of the first, and those of the first but for the form.
        transcript_bytes("sev-sn", replace(one, key_config=b"p" + KEY_CONFIG)),
        transcript_bytes("sev-snp", replace(one, key_config=KEY_CONFIG + NONCE, nonce=b"", form=2)),
        transcript_bytes("sev-snp", replace(one, not_before=one.not_after, not_after=one.not_before)),
        transcript_bytes("sev-snp", replace(one, nonce=b"", form=2)),
        transcript_bytes("sev-snp", replace(one, tls_spki_sha256=b"\x01" * 32)),
        transcript_bytes("sev-snp", replace(one, receipt_key=b"\x01" * 32)),
    ]
    assert len({binding(transcript) for transcript in moved}) == len(moved)
    assert {len(binding(transcript)) for transcript in moved} == {48}


def test_the_binding_is_computed_as_the_specification_says() -> None:
    """Field by field, written out once more."""
    import hashlib

    def lv(value: bytes) -> bytes:
        return len(value).to_bytes(4, "big") + value

    one = AMD.transcript(KEY_CONFIG, NONCE)
    transcript = (
        b"blindbox/attest/v1\x00" + lv(b"sev-snp") + lv(KEY_CONFIG) + lv(NONCE) + b"\x01"
        + one.not_before.to_bytes(8, "big") + one.not_after.to_bytes(8, "big") + lv(one.boot_id)
        + lv(one.config_digest) + lv(b"blindbox/1") + lv(b"")
    )  # fmt: skip
    assert transcript_bytes("sev-snp", one) == transcript
    signing = replace(one, receipt_key=b"\x09" * 32)
    assert transcript_bytes("sev-snp", signing) == transcript + lv(b"\x09" * 32)
    assert report_data(binding(transcript)) == hashlib.sha384(transcript).digest() + bytes(16)
    named = hashlib.sha384(b"blindbox/evidence-id/v1\x00" + lv(transcript) + lv(b"report")).digest()
    assert evidence_id(transcript, b"report") == named


def good_report_data() -> bytes:
    return report_data(binding(transcript_bytes("sev-snp", AMD.transcript(KEY_CONFIG, NONCE))))


@pytest.mark.parametrize("at", range(64))
def test_all_64_bytes_of_report_data_are_compared(at: int) -> None:
    """C-5: a byte that differs anywhere, in the zeros after the hash too, in a report that is well signed."""
    changed = bytearray(good_report_data())
    changed[at] ^= 0x80
    assert refusal(AMD.document(KEY_CONFIG, NONCE, report_data=bytes(changed))).code == "unbound-key"


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:47] + bytes(17),  # a prefix
        lambda data: data[:32] + bytes(32),
        lambda data: bytes(16) + data[:48],  # at the other end
        lambda data: data[:48] + data[:16],  # padded otherwise
        lambda data: data[::-1],
        lambda data: bytes(64),
    ],
)
def test_report_data_is_not_compared_as_a_prefix_nor_in_another_place(change: Any) -> None:
    """C-5: shortened, moved and padded otherwise."""
    assert (
        refusal(AMD.document(KEY_CONFIG, NONCE, report_data=change(good_report_data()))).code == "unbound-key"
    )


def test_a_binding_has_48_bytes() -> None:
    for size in (0, 32, 47, 49, 64):
        with pytest.raises(ValueError, match="48"):
            report_data(bytes(size))


@pytest.mark.parametrize("size", [1, 16, 31, 33, 64])
def test_a_caller_s_nonce_has_32_bytes_or_none(size: int) -> None:
    with pytest.raises(ValueError, match="32"):
        judged(AMD.document(KEY_CONFIG, NONCE), nonce=bytes(size))


# --- forms and times ---


def test_cached_evidence_is_taken_only_where_the_policy_says_so() -> None:
    """C-1: without a nonce of ours it may be an old one."""
    cached = AMD.document(KEY_CONFIG, b"")
    fresh = AMD.document(KEY_CONFIG, NONCE)
    accepting = AMD.policy(accept_cached=True)
    assert judged(cached, accepting, b"").key_config == KEY_CONFIG
    assert refusal(cached, AMD.policy(), b"").code == "form-not-accepted"
    assert refusal(cached, accepting, NONCE).code == "form-not-accepted"
    assert refusal(fresh, accepting, b"").code == "form-not-accepted"
    assert isinstance(refusal(cached, AMD.policy(), b""), PolicyRefused)
    assert judged(fresh, accepting, NONCE).key_config == KEY_CONFIG


@pytest.mark.parametrize(("nonce", "longest"), [(NONCE, 48 * 3600), (b"", 3600)])
def test_a_key_may_not_be_said_to_live_too_long(nonce: bytes, longest: int) -> None:
    """C-1: 48 hours with a nonce, one hour without."""
    policy = AMD.policy(accept_cached=True)
    start = int(NOON.timestamp()) - 10
    judged(AMD.document(KEY_CONFIG, nonce, not_before=start, not_after=start + longest), policy, nonce)
    error = refusal(
        AMD.document(KEY_CONFIG, nonce, not_before=start, not_after=start + longest + 1), policy, nonce
    )
    assert error.code == "window-too-long"


@pytest.mark.parametrize("skew", [0, 300])
def test_evidence_counts_inside_its_time_and_the_clock_skew_on_both_sides(skew: int) -> None:
    """C-1, C-24: a second on either side of each bound."""
    start = int(NOON.timestamp())
    document = AMD.document(KEY_CONFIG, NONCE, not_before=start, not_after=start + 1000)
    policy = AMD.policy(clock_skew=timedelta(seconds=skew))
    first, last = NOON - timedelta(seconds=skew), NOON + timedelta(seconds=1000 + skew)
    judged(document, policy, now=first)
    judged(document, policy, now=last)
    for now in (first - SECOND, last + SECOND):
        error = refusal(document, policy, now=now)
        assert isinstance(error, UnboundKey)
        assert error.code == "outside-validity"


def test_a_time_that_ends_before_it_begins_is_no_time() -> None:
    start = int(NOON.timestamp())
    for end in (start, start - 100):
        document = AMD.document(KEY_CONFIG, NONCE, not_before=start, not_after=end)
        assert refusal(document).code == "outside-validity"


# --- what the policy names ---


def test_another_measurement_is_refused_by_its_own_type() -> None:
    """C-6: well signed by a genuine chip, about our key and our nonce, and another program."""
    error = refusal(AMD.document(KEY_CONFIG, NONCE, measurement=b"\x01" * 48))
    assert isinstance(error, MeasurementMismatch)
    assert (b"\x01" * 48).hex() in str(error)


@pytest.mark.parametrize("platform", ["", "SEV-SNP", "sev-snp ", "tdx", "nitro", "az-snp-vtpm"])
def test_a_platform_that_the_policy_does_not_name_is_refused(platform: str) -> None:
    """C-20: there is no falling back to another platform, nor to another spelling of one."""
    error = refusal(AMD.document(KEY_CONFIG, NONCE, platform=platform))
    assert isinstance(error, PlatformNotAccepted)
    assert error.code == "platform-not-accepted"


def test_host_data_narrows_a_policy() -> None:
    """C-51: another machine with the same image."""
    ours = b"\x09" * 32
    narrowed = AMD.policy().with_host_data(ours)
    assert judged(AMD.document(KEY_CONFIG, NONCE, host_data=ours), narrowed).claims.host_data == ours
    assert refusal(AMD.document(KEY_CONFIG, NONCE), narrowed).code == "host-data"


def test_a_chip_list_keeps_out_an_honest_machine_of_somebody_else() -> None:
    """C-51: same vendor, same image, another chip."""
    elsewhere = FakeAmd("Genoa")
    elsewhere.hwid = bytes(range(64))
    elsewhere.chip_id = elsewhere.hwid
    sent = AMD.endorsements(vcek=elsewhere.certificate("vcek"))
    document = AMD.document(KEY_CONFIG, NONCE, chip_id=elsewhere.chip_id, endorsements=sent)
    assert judged(document).claims.chip_id == elsewhere.chip_id
    assert refusal(document, AMD.policy(chip_ids={AMD.chip_id})).code == "chip-not-listed"


# --- every bit ---


def test_any_flipped_bit_of_the_report_breaks_its_form_or_its_signature() -> None:
    """C-15: all 1184 bytes, all 8 bits; there is no unauthenticated one. Steps 3 and 7 alone refuse each."""
    good = AMD.report(good_report_data())
    key = AMD.chip_key.public_key()
    check_signature(good, Report.parse(good), key, Finding())
    ended: Counter[str] = Counter()
    for at, bit in itertools.product(range(len(good)), range(8)):
        changed = bytearray(good)
        changed[at] ^= 1 << bit
        try:
            check_signature(bytes(changed), Report.parse(bytes(changed)), key, Finding())
        except AttestationError as error:
            ended[error.code] += 1
        else:
            pytest.fail(f"bit {bit} of byte {at:#x} is not covered")
    assert ended.total() == 1184 * 8
    assert ended["bad-signature"] > 3000


def test_a_flipped_bit_in_any_byte_of_the_report_is_refused_by_the_verifier() -> None:
    """C-15: one bit of each byte in turn, through the whole judgement, the transcript being honest."""
    policy = AMD.policy()
    document = AttestationDocument.parse(AMD.document(KEY_CONFIG, NONCE))
    good = document.encode()
    judged(good, policy)
    head, _, tail = good.partition(b64encode(document.evidence))
    ended: set[int] = set()
    for at in range(len(document.evidence)):
        changed = bytearray(document.evidence)
        changed[at] ^= 1 << at % 8
        with pytest.raises(AttestationError) as refused:
            verify(head + b64encode(changed) + tail, policy, nonce=NONCE, now=NOON)
        ended.add(refused.value.steps[-1].number)
    assert {3, 6, 7} <= ended <= {3, 4, 6, 7}


def test_any_flipped_bit_of_the_document_is_refused() -> None:
    """C-15, C-17: every fifth byte of the JSON, one bit in turn; more of the transcript."""
    policy = AMD.policy()
    good = AMD.document(KEY_CONFIG, NONCE)
    start, end = good.index(b'"transcript"'), good.index(b'"evidence"')
    places = {
        *itertools.product(range(start, end, 4), range(8)),
        *((at, at // 5 % 8) for at in range(0, len(good), 5)),
    }
    for at, bit in sorted(places):
        changed = bytearray(good)
        changed[at] ^= 1 << bit
        with pytest.raises(AttestationError):
            verify(bytes(changed), policy, nonce=NONCE, now=NOON)


def test_a_document_cut_short_anywhere_or_with_a_byte_after_it_is_refused() -> None:
    """C-19: every prefix."""
    policy = AMD.policy()
    good = AMD.document(KEY_CONFIG, NONCE)
    for wrong in [*(good[:length] for length in range(len(good))), good + b"x", good + good]:
        with pytest.raises(AttestationError) as refused:
            verify(wrong, policy, nonce=NONCE, now=NOON)
        assert refused.value.code == "malformed-json"


def test_a_report_cut_short_anywhere_in_a_whole_document_is_refused() -> None:
    """C-19: every prefix of the evidence."""
    document = AttestationDocument.parse(AMD.document(KEY_CONFIG, NONCE))
    for length in range(0, len(document.evidence), 7):
        short = replace(document, evidence=document.evidence[:length]).encode()
        assert refusal(short).code == "malformed-report"


def test_the_verifier_asks_nobody_for_the_time() -> None:
    """C-1: the same document, judged at two times, by what it is told alone."""
    document = AMD.document(KEY_CONFIG, NONCE)
    judged(document, now=NOON)
    assert refusal(document, now=datetime(2040, 1, 1, tzinfo=UTC)).code == "certificate-not-valid-now"
