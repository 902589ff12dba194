"""What a Nitro policy accepts, what it refuses, and what cannot be a policy at all."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from blindbox_attestation import strict_json
from blindbox_attestation.binding import Bound
from blindbox_attestation.errors import (
    DebugAllowed,
    InvalidPolicy,
    MeasurementMismatch,
    PolicyRefused,
)
from blindbox_attestation.nitro import NitroClaims, NitroPolicy, appraise, policy_json
from blindbox_attestation.nitro.claims import pcr_of
from blindbox_attestation.walk import Walk
from tests.kit import NOON
from tests.kit.aws import INSTANCE, PCRS, ROLE, FakeAws, pcr
from tests.kit.verdict import verdict

AWS = FakeAws()
ZERO = bytes(48)
OTHER = pcr("another")
BOUND = Bound(digest=bytes(range(48)), nonce=bytes(range(32)), key_config=b"keys" * 300)


def code_of(policy: NitroPolicy | None = None, **changes: Any) -> str:
    """The code that a well-signed document ends with, or "accepted"."""
    return verdict(lambda: appraise(AWS.document(**changes), {}, policy or AWS.policy(), now=NOON))


def claims_of(data: bytes) -> NitroClaims:
    return appraise(data, {}, AWS.policy(), now=NOON)


@pytest.mark.parametrize(
    ("zero", "policy"),
    [
        ((0, 1, 2), {}),
        ((0,), {}),
        ((1,), {}),
        ((2,), {}),
        ((0, 1, 2), {"pcrs": {8: {PCRS[8]}}}),  # a policy that does not look at PCR0
    ],
)
def test_a_debug_enclave_is_refused_by_every_policy(zero: tuple[int, ...], policy: dict[str, Any]) -> None:
    """C-7: its signature is valid; its image registers are zero."""
    data = AWS.document(pcrs={**PCRS, **dict.fromkeys(zero, ZERO)})
    with pytest.raises(DebugAllowed, match=f"PCR{zero[0]} is all zero") as caught:
        appraise(data, {}, AWS.policy(**policy), now=NOON)
    assert caught.value.code == "debug-allowed"
    assert caught.value.steps[-1].number == 10


def test_another_image_is_refused_with_what_was_found() -> None:
    """C-6: a type of its own."""
    with pytest.raises(MeasurementMismatch, match=OTHER.hex()) as caught:
        appraise(AWS.document(pcrs={**PCRS, 0: OTHER}), {}, AWS.policy(), now=NOON)
    assert caught.value.code == "measurement-mismatch"
    assert caught.value.steps[-1].checks[-1].source == "pcrs"


@pytest.mark.parametrize("number", [1, 2, 5, 8, 15])
def test_each_named_register_must_hold_a_named_value(number: int) -> None:
    """C-6: and one that is not named may hold anything."""
    asked = AWS.policy(pcrs={0: {PCRS[0]}, number: {pcr("first"), pcr("second")}})
    assert code_of(asked, pcrs={**PCRS, number: pcr("first")}) == "accepted"
    assert code_of(asked, pcrs={**PCRS, number: pcr("second")}) == "accepted"
    assert code_of(asked, pcrs={**PCRS, number: OTHER}) == "pcr-mismatch"
    assert code_of(pcrs={**PCRS, number: OTHER}) == "accepted"


def test_a_named_register_that_is_not_there_is_refused() -> None:
    """C-6: an absent value is no match."""
    asked = AWS.policy(pcrs={0: {PCRS[0]}, 20: {OTHER}})
    assert code_of(asked) == "pcr-mismatch"
    assert code_of(asked, pcrs={**PCRS, 20: OTHER}) == "accepted"


def test_an_image_may_be_named_by_who_signed_it() -> None:
    asked = AWS.policy(pcrs={8: {PCRS[8]}})
    assert code_of(asked, pcrs={**PCRS, 0: OTHER}) == "accepted"
    assert code_of(asked, pcrs={**PCRS, 8: OTHER}) == "pcr-mismatch"
    assert code_of(asked, pcrs={**PCRS, 8: ZERO}) == "pcr-mismatch"


@pytest.mark.parametrize(
    ("wish", "number"),
    [
        ({"instance_ids": {INSTANCE, "i-1"}}, 4),
        ({"iam_roles": {ROLE}}, 3),
        ({"pcrs": {0: {PCRS[0]}, 3: {PCRS[3]}}}, 3),
        ({"pcrs": {0: {PCRS[0]}, 4: {PCRS[4]}}}, 4),
    ],
)
def test_a_policy_may_name_the_machine_or_its_role(wish: dict[str, Any], number: int) -> None:
    """C-51: the same image in another account is another machine."""
    asked = AWS.policy(**wish)
    assert code_of(asked) == "accepted"
    assert code_of(asked, pcrs={**PCRS, number: OTHER}) == "instance-not-listed"
    assert code_of(asked, pcrs={**PCRS, number: ZERO}) == "instance-not-listed"
    absent = {key: value for key, value in PCRS.items() if key != number}
    assert code_of(asked, pcrs=absent) == "instance-not-listed"
    assert code_of(pcrs={**PCRS, number: OTHER}) == "accepted"


def test_the_register_of_an_instance_is_made_as_aws_makes_it() -> None:
    assert pcr_of("i-0827e799ec9232d44").hex().startswith("7b3574ad9b7e88ec")


def test_the_report_says_what_was_not_asked() -> None:
    """C-51: a policy that names no machines says so."""
    walk = Walk()
    appraise(AWS.document(), {}, AWS.policy(), now=NOON, walk=walk)
    last = walk.steps[-1]
    assert last.outcome == "not asked"
    assert "any AWS account" in last.detail
    assert [check.outcome for check in last.checks] == ["not asked", "not asked"]
    launch = walk.steps[-2]
    assert {check.name for check in launch.checks if check.outcome == "not asked"} == {
        f"PCR{number}" for number in PCRS if number not in (0, 3, 4)
    }
    walk = Walk()
    appraise(AWS.document(), {}, AWS.policy(instance_ids={INSTANCE}), now=NOON, walk=walk)
    assert walk.steps[-1].outcome == "passed"


# --- binding ---


def test_an_answer_speaks_for_the_key_and_the_question_it_was_made_for() -> None:
    claims = claims_of(AWS.answer(BOUND))
    assert claims.speaks_for(BOUND)
    assert claims.carries(BOUND.nonce)
    assert not claims.carries(BOUND.nonce[:-1])
    assert not claims.carries(b"")


@pytest.mark.parametrize(
    "change",
    [
        {"user_data": None},
        {"user_data": bytes(48)},
        {"user_data": BOUND.digest[:-1]},
        {"user_data": BOUND.digest + b"\x00"},
        {"nonce": None},
        {"nonce": bytes(32)},
        {"nonce": BOUND.nonce + b"\x00"},
        {"public_key": None},
        {"public_key": BOUND.key_config[:1024]},
        {"public_key": hashlib.sha384(b"another key").digest()},
        {"public_key": hashlib.sha384(BOUND.key_config).digest()[:47]},
    ],
)
def test_any_other_value_in_any_of_the_three_places_is_another_answer(change: dict[str, Any]) -> None:
    """C-2, C-4, C-5: each value has its place, and is compared whole."""
    assert not claims_of(AWS.answer(BOUND, **change)).speaks_for(BOUND)


def test_the_values_may_not_change_places() -> None:
    """C-4: B offered as the nonce, the nonce as the user data."""
    swapped = AWS.document(
        user_data=BOUND.nonce, nonce=BOUND.digest, public_key=hashlib.sha384(BOUND.key_config).digest()
    )
    assert not claims_of(swapped).speaks_for(BOUND)


def test_without_a_nonce_the_document_must_have_none() -> None:
    cached = Bound(digest=BOUND.digest, nonce=b"", key_config=BOUND.key_config)
    assert claims_of(AWS.answer(cached)).speaks_for(cached)
    assert claims_of(AWS.answer(cached, nonce=b"")).speaks_for(cached)
    assert not claims_of(AWS.answer(BOUND)).speaks_for(cached)
    assert not claims_of(AWS.answer(cached)).speaks_for(BOUND)


# --- policies ---


@pytest.mark.parametrize(
    "wish",
    [
        {"pcrs": {}},
        {"pcrs": None},
        {"pcrs": {1: {OTHER}}},  # names no program
        {"pcrs": {0: set()}},
        {"pcrs": {0: OTHER}},
        {"pcrs": {0: {OTHER[:32]}}},
        {"pcrs": {0: {OTHER.hex()}}},
        {"pcrs": {0: {ZERO}}},
        {"pcrs": {0: {OTHER}, 1: {ZERO}}},
        {"pcrs": {0: {OTHER}, 2: {ZERO, OTHER}}},
        {"pcrs": {8: {ZERO}}},
        {"pcrs": {0: {OTHER}, 32: {OTHER}}},
        {"pcrs": {0: {OTHER}, -1: {OTHER}}},
        {"pcrs": {0: {OTHER}, "1": {OTHER}}},
        {"pcrs": {False: {OTHER}}},
        {"pcrs": {0: {OTHER}, 5.0: {OTHER}}},
        {"instance_ids": set()},
        {"instance_ids": "i-1"},
        {"instance_ids": {""}},
        {"instance_ids": {"i-ä"}},
        {"instance_ids": {b"i-1"}},
        {"instance_ids": [["i-1"]]},
        {"iam_roles": set()},
        {"iam_roles": {"x" * 257}},
        {"max_age_seconds": -1},
        {"max_age_seconds": 3 * 60 * 60 + 1},
        {"max_age_seconds": True},
        {"max_age_seconds": 1.5},
        {"clock_skew_seconds": -1},
        {"clock_skew_seconds": 3601},
        {"roots": {}},
        {"roots": {b"short": "x"}},
        {"roots": {bytes(32): 1}},
        {"roots": None},
    ],
)
def test_a_policy_that_could_not_mean_what_it_says_is_no_policy(wish: dict[str, Any]) -> None:
    """C-22: an empty set accepts nobody, and is most likely a mistake."""
    with pytest.raises(InvalidPolicy):
        AWS.policy(**wish)


FULL = NitroPolicy(
    pcrs={0: {PCRS[0], OTHER}, 8: {PCRS[8]}, 15: {ZERO}},
    instance_ids={INSTANCE},
    iam_roles={ROLE},
    max_age_seconds=60,
    clock_skew_seconds=0,
)


@pytest.mark.parametrize("policy", [NitroPolicy(pcrs={0: {PCRS[0]}}), NitroPolicy(pcrs={8: {OTHER}}), FULL])
def test_a_policy_and_its_json_are_the_same(policy: NitroPolicy) -> None:
    text = strict_json.dump(policy_json.write(policy))
    read = policy_json.read(strict_json.parse(text), "nitro")
    assert read == policy
    assert hash(read) == hash(policy)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"roots": {}}, "unknown-key"),
        ({"debug": True}, "unknown-key"),
        ({"pcrs": {"0": ["00"]}}, "wrong-type"),
        ({"pcrs": {"00": [OTHER.hex()]}}, "unknown-key"),
        ({"pcrs": {"32": [OTHER.hex()]}}, "unknown-key"),
        ({"pcrs": [OTHER.hex()]}, "wrong-type"),
        ({"max_age_seconds": "60"}, "wrong-type"),
    ],
)
def test_a_misspelt_wish_in_json_is_an_error(change: dict[str, Any], code: str) -> None:
    with pytest.raises(strict_json.JsonRefused) as caught:
        policy_json.read({**policy_json.write(FULL), **change}, "nitro")
    assert caught.value.code == code


def test_json_without_registers_is_no_policy() -> None:
    with pytest.raises(strict_json.JsonRefused) as caught:
        policy_json.read({}, "nitro")
    assert caught.value.code == "missing-key"
    assert policy_json.SCHEMA["required"] == ["pcrs"]
    json.dumps(policy_json.SCHEMA)


def test_a_policy_says_in_words_what_it_checks_and_what_it_does_not() -> None:
    """C-51: who has to be trusted, and what is left open."""
    short = AWS.policy().in_words()
    assert any("AWS" in one for one in short.trusts)
    assert any(PCRS[0].hex()[:16] in one for one in short.checks)
    assert any("any AWS account" in one for one in short.unchecked)
    full = FULL.in_words()
    assert any(INSTANCE in one for one in full.checks)
    assert any(ROLE in one for one in full.checks)
    assert not any("any AWS account" in one for one in full.unchecked)
    assert any("Which image" in one for one in AWS.policy(pcrs={8: {OTHER}}).in_words().unchecked)
    assert not any("Which image" in one for one in short.unchecked)
    assert "The enclave is not in debug mode (PCR0 to PCR2 are not zero)." in short.checks
    assert "The document is at most 300 seconds old." in short.checks


@pytest.mark.parametrize(
    "wish",
    [
        {"instance_ids": {INSTANCE}},
        {"iam_roles": {ROLE}},
        {"pcrs": {0: {PCRS[0]}, 3: {PCRS[3]}}},
        {"pcrs": {0: {PCRS[0]}, 4: {PCRS[4]}}},
    ],
)
def test_who_names_a_machine_in_any_way_is_not_told_that_any_passes(wish: dict[str, Any]) -> None:
    """C-51: in the report, and in the policy's own words."""
    policy, walk = AWS.policy(**wish), Walk()
    appraise(AWS.document(), {}, policy, now=NOON, walk=walk)
    assert walk.steps[-1].outcome == "passed"
    assert not any("any AWS account" in one for one in policy.in_words().unchecked)


def test_a_refusal_is_of_the_kind_that_policies_give() -> None:
    with pytest.raises(PolicyRefused):
        appraise(AWS.document(), {}, AWS.policy(instance_ids={"i-1"}), now=NOON)
