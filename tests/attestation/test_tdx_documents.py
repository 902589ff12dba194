"""A TDX machine's document from one end to the other: key, question and quote belong together."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from blindbox_attestation import strict_json
from blindbox_attestation.errors import AttestationError, PlatformNotAccepted, UnboundKey
from blindbox_attestation.evidence import AttestationDocument
from blindbox_attestation.policy import Policy
from blindbox_attestation.verify import Verified, appraise, verify
from tests.kit import NOON
from tests.kit.amd import KEY_CONFIG, FakeAmd
from tests.kit.intel import MRTD, FakeIntel

INTEL = FakeIntel()
NONCE = bytes(range(32))


def proved(document: bytes | None = None, *, policy: Policy | None = None, **others: Any) -> Verified:
    return verify(
        INTEL.document(nonce=NONCE) if document is None else document,
        policy or Policy(tdx=INTEL.tdx_policy()),
        nonce=NONCE,
        now=NOON,
        **others,
    )


@pytest.mark.parametrize("version", [4, 5])
def test_an_honest_machine_proves_its_key(version: int) -> None:
    found = proved(INTEL.document(nonce=NONCE, version=version))
    assert (found.platform, found.title, found.trusts) == ("tdx", "Intel TDX", ("Intel",))
    assert (found.key_config, found.measurement, found.simulated) == (KEY_CONFIG, MRTD, False)
    assert [step.number for step in found.steps] == list(range(1, 14))
    assert {step.outcome for step in found.steps[:-1]} == {"passed"}


def test_collateral_may_come_with_the_document_or_from_intel() -> None:
    """C-23: both are verified alike."""
    (told,) = INTEL.endorsements().values()
    bare = INTEL.document(nonce=NONCE, endorsements={})
    assert proved(bare, collateral={"collateral": told}).measurement == MRTD
    with pytest.raises(AttestationError) as caught:
        proved(bare)
    assert caught.value.code == "missing-endorsement"
    with pytest.raises(AttestationError) as caught:
        proved(bare, collateral={"collateral": FakeIntel("Another Intel Corporation").collateral()})
    assert caught.value.code == "unpinned-root"


def test_a_genuine_quote_for_another_key_or_question_is_refused() -> None:
    """C-1, C-2: taken from an honest machine's document, put into one's own."""
    honest = AttestationDocument.parse(INTEL.document(nonce=NONCE))
    for changes in (
        {"key_config": KEY_CONFIG[:-1] + b"\x00"},
        {"nonce": bytes(32)},
        {"boot_id": bytes(16)},
        {"config_digest": bytes(48)},
        {"receipt_key": bytes(32)},
        {"tls_spki_sha256": bytes(32)},
    ):
        lie = INTEL.document(
            **{"nonce": NONCE, **changes}, evidence=honest.evidence, endorsements=honest.endorsements
        )
        with pytest.raises(UnboundKey) as caught:
            proved(lie)
        assert (caught.value.code, caught.value.steps[-1].number) == ("unbound-key", 8)


def test_an_honest_answer_to_an_older_question_is_refused() -> None:
    """C-1."""
    with pytest.raises(UnboundKey) as caught:
        proved(INTEL.document(nonce=bytes(32)))
    assert caught.value.code == "wrong-nonce"


def test_a_policy_for_another_platform_does_not_accept_tdx() -> None:
    """C-13: and one for TDX accepts nothing else under that name."""
    with pytest.raises(PlatformNotAccepted):
        proved(policy=FakeAmd().policy())
    with pytest.raises(PlatformNotAccepted):
        proved(FakeAmd().document(nonce=NONCE))
    renamed = FakeAmd().document(nonce=NONCE, platform="tdx")
    with pytest.raises(AttestationError) as caught:
        proved(renamed)
    assert caught.value.steps[-1].number == 3


def test_a_quote_outside_a_document_is_judged_against_a_nonce() -> None:
    policy = Policy(tdx=INTEL.tdx_policy())
    value = b"\x07" * 64
    quote = INTEL.quote(value)
    appraise("tdx", quote, INTEL.endorsements(), policy, nonce=value, now=NOON)
    with pytest.raises(UnboundKey) as caught:
        appraise("tdx", quote, INTEL.endorsements(), policy, nonce=bytes(64), now=NOON)
    assert caught.value.code == "wrong-nonce"


def test_time_is_the_callers() -> None:
    """C-11: the same bytes, half a year later."""
    with pytest.raises(AttestationError) as caught:
        verify(
            INTEL.document(nonce=NONCE),
            Policy(tdx=INTEL.tdx_policy()),
            nonce=NONCE,
            now=NOON + timedelta(days=180),
        )
    assert caught.value.code == "crl-not-valid-now"


def test_a_policy_file_can_speak_of_tdx() -> None:
    text = json.dumps({"version": 1, "tdx": {"mrtd": [MRTD.hex()], "minimum_tcb_evaluation": 18}})
    policy = Policy.from_json(text)
    assert policy.tdx is not None
    assert policy.tdx.mrtd == {MRTD}
    assert Policy.from_json(policy.to_json()) == policy
    assert strict_json.parse(policy.to_json().encode())["tdx"]["minimum_tcb_evaluation"] == 18
    # A file cannot bring a root along, so the fake machine stays a fake one.
    with pytest.raises(AttestationError) as caught:
        proved(policy=policy)
    assert caught.value.code == "unpinned-root"
