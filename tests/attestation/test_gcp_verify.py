"""A whole document with a Confidential Space token in it: which key is proved, and which is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from blindbox_attestation.errors import UnboundKey
from blindbox_attestation.evidence import CONFIDENTIAL_SPACE, AttestationDocument
from blindbox_attestation.policy import Policy
from blindbox_attestation.verify import appraise, verify
from tests.kit import NOON
from tests.kit.amd import KEY_CONFIG, FakeAmd
from tests.kit.google import FakeGoogle
from tests.kit.verdict import verdict

GOOGLE = FakeGoogle()
NONCE = bytes(range(32))
TRANSCRIPT = FakeAmd().transcript(KEY_CONFIG, NONCE)
POLICY = Policy(gcp=GOOGLE.policy())


def code_of(document: bytes, policy: Policy = POLICY, nonce: bytes = NONCE) -> str:
    """The code that a verification ends with, or "accepted"."""
    return verdict(lambda: verify(document, policy, nonce=nonce, now=NOON))


def test_an_honest_document_proves_its_key() -> None:
    proved = verify(GOOGLE.whole(TRANSCRIPT), POLICY, nonce=NONCE, now=NOON)
    assert proved.key_config == KEY_CONFIG
    assert proved.platform == CONFIDENTIAL_SPACE
    assert proved.trusts == ("Google",)
    assert proved.measurement == proved.claims.measurement
    assert len(proved.measurement) == 32
    assert [step.number for step in proved.steps] == list(range(1, 14))


@pytest.mark.parametrize(
    "change",
    [
        {"key_config": KEY_CONFIG + b"\x00"},
        {"not_after": TRANSCRIPT.not_after + 1},
        {"not_before": TRANSCRIPT.not_before - 1},
        {"boot_id": bytes(16)},
        {"config_digest": bytes(48)},
        {"receipt_key": bytes(32)},
        {"tls_spki_sha256": bytes(32)},
        {"nonce": bytes(32)},
    ],
)
def test_evidence_made_for_another_transcript_is_refused(change: dict[str, Any]) -> None:
    """C-2, C-3, C-20: the key, and everything said beside it, is what the evidence was made for."""
    genuine = AttestationDocument.parse(GOOGLE.whole(TRANSCRIPT))
    changed = replace(genuine, transcript=replace(TRANSCRIPT, **change)).encode()
    assert code_of(changed) == "unbound-key"


def test_an_answer_to_another_question_is_refused() -> None:
    """C-1: genuine, and replayed."""
    assert code_of(GOOGLE.whole(TRANSCRIPT), nonce=bytes(32)) == "wrong-nonce"


def test_the_cached_form_is_accepted_where_the_policy_accepts_it() -> None:
    cached = GOOGLE.whole(FakeAmd().transcript(KEY_CONFIG, b""))
    assert code_of(cached, Policy(gcp=GOOGLE.policy(), accept_cached=True), b"") == "accepted"
    assert code_of(cached, POLICY, b"") == "form-not-accepted"


def test_evidence_of_one_platform_is_not_evidence_of_another() -> None:
    """C-13: the platform is part of what was signed, and the policy names it."""
    genuine = AttestationDocument.parse(GOOGLE.whole(TRANSCRIPT))
    assert code_of(replace(genuine, platform="sev-snp").encode()) == "platform-not-accepted"
    assert code_of(GOOGLE.whole(TRANSCRIPT), FakeAmd().policy()) == "platform-not-accepted"
    assert code_of(FakeAmd().document(KEY_CONFIG, NONCE)) == "platform-not-accepted"


def test_evidence_alone_is_judged_by_its_nonce() -> None:
    """C-1: a nonce is a text in a token, given as its bytes."""
    data = GOOGLE.token(eat_nonce=["another one", "0123456789"])
    assert appraise(CONFIDENTIAL_SPACE, data, {}, POLICY, nonce=b"0123456789", now=NOON).nonces
    assert appraise(CONFIDENTIAL_SPACE, data, {}, POLICY, nonce=None, now=NOON).nonces
    with pytest.raises(UnboundKey) as caught:
        appraise(CONFIDENTIAL_SPACE, data, {}, POLICY, nonce=b"012345678", now=NOON)
    assert caught.value.code == "wrong-nonce"
