"""`AnyOf` and `AllOf`: several policies in one, in code, in a file, and judged."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from datetime import timedelta
from typing import Any

import pytest

from blindbox_attestation import (
    AllOf,
    AnyOf,
    AttestationError,
    InvalidPolicy,
    PlatformNotAccepted,
    Policy,
    verify,
)
from blindbox_attestation.policy import DEEPEST, MOST, AnyKind, read
from tests.kit import NOON
from tests.kit.amd import KEY_CONFIG, FakeAmd
from tests.kit.policies import LEAST, policy
from tests.kit.simulated import unsafe
from tests.kit.verdict import verdict

AMD = FakeAmd("Genoa")
TURIN = FakeAmd("Turin")
NONCE = bytes(range(32))
SNP, TDX, NITRO = (Policy.from_json(json.dumps(policy(key))) for key in ("snp", "tdx", "nitro"))
BOTH = Policy(snp=SNP.snp, tdx=TDX.tdx)
HOST_DATA = b"\x09" * 32
KINDS = (AnyOf, AllOf)


def code(document: bytes, asked: AnyKind) -> str:
    return verdict(lambda: verify(document, asked, nonce=NONCE, now=NOON))


# --- made in code ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_is_not_judged_by_thousands_of_policies(kind: Any) -> None:
    """C-17, C-18: a proof file brings a stranger's policy, and each part of it costs a whole judgement."""
    assert kind([SNP] * MOST).policies
    with pytest.raises(InvalidPolicy, match=f"at most {MOST}"):
        kind([SNP] * (MOST + 1))
    with pytest.raises(InvalidPolicy, match=f"at most {MOST}"):
        AnyOf([AllOf([SNP] * MOST), SNP])
    word = {AnyOf: "any_of", AllOf: "all_of"}[kind]
    with pytest.raises(InvalidPolicy, match=f"{word} holds 5000 policies, at most {MOST}"):
        read(json.dumps({"version": 1, word: [{}] * 5000}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "policies",
    [None, [], (), {}, "", set(), SNP, {SNP}, [None], ["any"], [{}], [SNP, None], [SNP.snp]],
    ids=repr,
)
def test_several_policies_are_a_list_of_policies_and_one_at_least(kind: Any, policies: Any) -> None:
    """C-22: an empty list would accept nobody, or everybody; neither is meant."""
    with pytest.raises(InvalidPolicy):
        kind(policies)


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_for_simulated_machines_cannot_stand_among_others(kind: Any) -> None:
    """C-21: nor within one that does, however deep."""
    for policies in ([unsafe()], [SNP, unsafe()], [AnyOf([SNP]), unsafe()]):
        with pytest.raises(InvalidPolicy, match="UnsafeSimulatedPolicy"):
            kind(policies)


def test_policies_are_nested_to_a_small_depth() -> None:
    assert DEEPEST == 2
    nested = AnyOf([AllOf([SNP, SNP]), TDX])
    for kind in KINDS:
        with pytest.raises(InvalidPolicy, match="deep"):
            kind([nested])


def test_all_of_policies_that_share_no_platform_cannot_be_made() -> None:
    """C-22: they would accept nobody."""
    with pytest.raises(InvalidPolicy, match="no platform"):
        AllOf([SNP, TDX])
    with pytest.raises(InvalidPolicy, match="no platform"):
        AllOf([AnyOf([SNP, TDX]), NITRO])


def test_any_of_names_all_their_platforms_and_all_of_those_in_common() -> None:
    assert AnyOf([TDX, SNP, BOTH]).platforms == ("tdx", "sev-snp")
    assert AllOf([BOTH, TDX]).platforms == ("tdx",)
    assert AllOf([AnyOf([SNP, NITRO]), BOTH]).platforms == ("sev-snp",)


@pytest.mark.parametrize("kind", KINDS)
def test_of_several_policies_the_strictest_times_count(kind: Any) -> None:
    quick = replace(SNP, max_age=timedelta(seconds=5), accept_cached=True)
    exact = replace(SNP, clock_skew=timedelta(seconds=7), accept_cached=True)
    several = kind([quick, exact])
    assert (several.max_age, several.clock_skew) == (timedelta(seconds=5), timedelta(seconds=7))
    assert several.accept_cached
    assert not kind([quick, SNP]).accept_cached


@pytest.mark.parametrize("kind", KINDS)
def test_several_policies_stay_as_they_were_made_and_may_be_a_key(kind: Any) -> None:
    given = [SNP, BOTH]
    several = kind(given)
    given.append(TDX)
    assert several.policies == (SNP, BOTH)
    assert several == kind((SNP, BOTH))
    assert hash(several) == hash(kind((SNP, BOTH)))
    for name in ("policies", "digest", "another"):
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            setattr(several, name, ())


def test_equal_policies_and_no_others_share_a_digest() -> None:
    """Also when one is made of the other."""
    made: list[AnyKind] = [
        SNP,
        TDX,
        BOTH,
        AnyOf([SNP]),
        AllOf([SNP]),
        AnyOf([SNP, SNP]),
        AnyOf([SNP, TDX]),
        AnyOf([TDX, SNP]),
        AnyOf([BOTH]),
        AllOf([BOTH, SNP]),
        AnyOf([AllOf([SNP]), TDX]),
        AnyOf([AllOf([SNP, SNP]), TDX]),
        AnyOf([AnyOf([SNP]), TDX]),
        AllOf([AnyOf([SNP, TDX])]),
    ]
    assert len({one.digest for one in made}) == len(set(made)) == len(made)
    assert AnyOf([SNP, AllOf([BOTH, TDX])]).digest == AnyOf([SNP, AllOf([BOTH, TDX])]).digest


# --- narrowed ---


def test_host_data_is_asked_of_those_that_can_promise_it() -> None:
    """C-51: a platform that has none is named no more, rather than passing unasked."""
    assert BOTH.with_host_data(HOST_DATA) == SNP.with_host_data(HOST_DATA)
    assert AnyOf([TDX, BOTH, SNP]).with_host_data(HOST_DATA) == AnyOf([SNP.with_host_data(HOST_DATA)] * 2)
    assert AllOf([BOTH, SNP]).with_host_data(HOST_DATA) == AllOf([SNP.with_host_data(HOST_DATA)] * 2)
    nested = AnyOf([AllOf([BOTH, TDX]), AllOf([BOTH, SNP])])
    assert nested.with_host_data(HOST_DATA) == AnyOf([AllOf([SNP.with_host_data(HOST_DATA)] * 2)])


@pytest.mark.parametrize(
    "asked", [TDX, NITRO, AnyOf([TDX, NITRO]), AllOf([BOTH, TDX]), AnyOf([AllOf([TDX])])]
)
def test_where_nobody_can_promise_host_data_the_wish_is_an_error(asked: Any) -> None:
    """C-22: it is not dropped."""
    with pytest.raises(InvalidPolicy, match="host data"):
        asked.with_host_data(HOST_DATA)


@pytest.mark.parametrize("asked", [SNP, AnyOf([TDX, SNP]), AllOf([SNP])])
def test_host_data_of_a_wrong_length_is_an_error_in_its_own_words(asked: Any) -> None:
    with pytest.raises(InvalidPolicy, match="32 bytes"):
        asked.with_host_data(HOST_DATA[1:])


def test_a_floor_for_intel_s_evaluations_is_raised_and_never_lowered() -> None:
    """C-12: whatever is fetched later, the policy's own floor stays."""

    def floor(asked: Any) -> int:
        return int(asked.tdx.minimum_tcb_evaluation)

    assert floor(BOTH.with_tcb_evaluation_floor(20)) == 20
    assert BOTH.with_tcb_evaluation_floor(20).snp == BOTH.snp
    assert BOTH.with_tcb_evaluation_floor(1) == BOTH
    assert SNP.with_tcb_evaluation_floor(20) == SNP
    raised = AnyOf([SNP, AllOf([BOTH, TDX])]).with_tcb_evaluation_floor(20)
    assert raised == AnyOf(
        [SNP, AllOf([BOTH.with_tcb_evaluation_floor(20), TDX.with_tcb_evaluation_floor(20)])]
    )
    assert type(raised.policies[1]) is AllOf


# --- in a file ---


def test_several_policies_come_back_from_json_as_the_same() -> None:
    for several in (
        AnyOf([SNP]),
        AllOf([SNP, BOTH]),
        AnyOf([SNP, AllOf([replace(TDX, accept_cached=True), BOTH])]),
        AllOf([AnyOf([SNP, TDX]), replace(BOTH, max_age=timedelta(seconds=1))]),
    ):
        again = read(several.to_json())
        assert type(again) is type(several)
        assert (again, again.digest, again.to_json()) == (several, several.digest, several.to_json())
    assert read(SNP.to_json()) == SNP


def test_a_single_policy_is_asked_for_by_its_own_reader() -> None:
    with pytest.raises(InvalidPolicy, match=r"policy\.read"):
        Policy.from_json(AnyOf([SNP]).to_json())


ONE = {"snp": LEAST["snp"]}

WRONG: list[dict[str, Any]] = [
    {"version": 1},
    {"any_of": [ONE]},
    {"version": 2, "any_of": [ONE]},
    {"version": 1, "any_of": []},
    {"version": 1, "all_of": []},
    {"version": 1, "any_of": None},
    {"version": 1, "any_of": ONE},
    {"version": 1, "any_of": "snp"},
    {"version": 1, "any_of": [None]},
    {"version": 1, "any_of": [[]]},
    {"version": 1, "any_of": [{}]},
    {"version": 1, "any_of": [ONE, {}]},
    {"version": 1, "any_of": [{"version": 1, **ONE}]},
    {"version": 1, "any_of": [ONE], "all_of": [ONE]},
    {"version": 1, "any_of": [ONE], **ONE},
    {"version": 1, "any_of": [ONE], "accept_cached": True},
    {"version": 1, "any_of": [ONE], "max_age_seconds": 60},
    {"version": 1, "one_of": [ONE]},
    {"version": 1, "any_of": [{"any_of": [{"any_of": [ONE]}]}]},
    {"version": 1, "any_of": [{"any_of": []}]},
    {"version": 1, "all_of": [ONE, {"tdx": LEAST["tdx"]}]},
    {"version": 1, "any_of": [{"snp": {**LEAST["snp"], "roots": {}}}]},
    {"version": 1, "any_of": [{"simulated": {}}]},
]


@pytest.mark.parametrize("value", WRONG, ids=json.dumps)
def test_a_file_of_several_policies_says_nothing_that_is_not_understood(value: dict[str, Any]) -> None:
    """C-22: empty, doubled, misspelt, in the wrong place or too deep; each is an error."""
    with pytest.raises(InvalidPolicy):
        read(json.dumps(value))


def test_a_policy_within_others_has_room_for_all_it_may_say() -> None:
    value = {"version": 1, "any_of": [{"all_of": [{key: LEAST[key] for key in LEAST}]}]}
    assert read(json.dumps(value)).platforms == read(json.dumps({"version": 1, **LEAST})).platforms


def test_an_error_in_a_file_says_where_it_is() -> None:
    value = {"version": 1, "any_of": [ONE, {"all_of": [{"tdx": {**LEAST["tdx"], "mrtd": ["zz"]}}]}]}
    with pytest.raises(InvalidPolicy, match=r"any_of\[1\]: all_of\[0\]: tdx: mrtd"):
        read(json.dumps(value))


# --- judged ---


def test_any_of_accepts_what_one_of_them_accepts() -> None:
    """C-22: each is judged whole; none lends a wish to another."""
    document = AMD.document(KEY_CONFIG, NONCE)
    good, other = AMD.policy(), AMD.policy(measurements={b"\x01" * 48})
    assert code(document, AnyOf([other, good])) == code(document, AnyOf([good, other])) == "accepted"
    assert code(document, AnyOf([other])) == "measurement-mismatch"
    # one has the right program, the other the right chip: together they still accept nobody
    named = AMD.policy(measurements={b"\x01" * 48}, chip_ids={AMD.chip_id})
    elsewhere = AMD.policy(chip_ids={b"\x01" * 64})
    assert code(document, AnyOf([named, elsewhere])) == "chip-not-listed"


def test_the_refusal_of_any_of_is_that_of_the_policy_which_came_furthest() -> None:
    document = AMD.document(KEY_CONFIG, NONCE)
    far, near = AMD.policy(chip_ids={b"\x01" * 64}), TURIN.policy()
    for policies in ([far, near, TDX], [TDX, near, far]):
        assert code(document, AnyOf(policies)) == "chip-not-listed"
    assert code(document, AnyOf([TDX, near])) == "unpinned-root"
    with pytest.raises(PlatformNotAccepted):
        verify(document, AnyOf([TDX, NITRO]), nonce=NONCE, now=NOON)


def test_all_of_accepts_what_every_one_of_them_accepts() -> None:
    document = AMD.document(KEY_CONFIG, NONCE)
    good, named = AMD.policy(), AMD.policy(chip_ids={AMD.chip_id})
    elsewhere = AMD.policy(chip_ids={b"\x01" * 64})
    assert code(document, AllOf([good, named])) == "accepted"
    assert code(document, AllOf([good, elsewhere])) == "chip-not-listed"
    assert code(document, AllOf([elsewhere, good])) == "chip-not-listed"
    assert code(document, AllOf([AnyOf([elsewhere, named]), good])) == "accepted"
    assert code(document, AnyOf([AllOf([elsewhere, named]), TDX])) == "chip-not-listed"


def test_cached_evidence_is_taken_by_none_of_several_unless_by_each() -> None:
    cached = AMD.document(KEY_CONFIG, b"")
    takes, refuses = AMD.policy(accept_cached=True), AMD.policy()
    verify(cached, AllOf([takes, takes]), nonce=b"", now=NOON)
    with pytest.raises(AttestationError) as refused:
        verify(cached, AllOf([takes, refuses]), nonce=b"", now=NOON)
    assert refused.value.code == "form-not-accepted"


def test_any_of_several_is_no_way_around_the_strictest_of_their_times() -> None:
    """C-1, C-24: one of them would take cached evidence, or a clock that is an hour late."""
    cached = AMD.document(KEY_CONFIG, b"")
    takes, refuses = AMD.policy(accept_cached=True), AMD.policy()
    with pytest.raises(AttestationError) as refused:
        verify(cached, AnyOf([refuses, AllOf([takes])]), nonce=b"", now=NOON)
    assert refused.value.code == "form-not-accepted"
    verify(cached, AnyOf([takes, takes]), nonce=b"", now=NOON)
    end = int(NOON.timestamp()) - 60
    late = AMD.document(KEY_CONFIG, NONCE, not_before=end - 600, not_after=end)
    patient, exact = (AMD.policy(clock_skew=timedelta(seconds=skew)) for skew in (600, 0))
    assert code(late, AnyOf([patient])) == "accepted"
    assert code(late, AnyOf([exact, patient])) == "outside-validity"
